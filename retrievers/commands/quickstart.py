"""``python -m retrievers quickstart FOLDER``: from a folder of pictures to a page that searches it.

Each step keeps what it did in OUT, so that a second run, or one after Ctrl-C or a kill, does only
what is left.
"""

from __future__ import annotations

import inspect
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augment.data.sources.entries import Entries, LeftOut, SourceEntry
from augment.errors import DataError, EngineError
from augment.files import digest, read_json, say, write_json

if TYPE_CHECKING:
    from augment.enrichment.pipeline import Options
    from augment.views import TextView
    from retrievers.data.module import MBeirData
    from retrievers.data.texts import TextRecipe, ViewConfig
    from retrievers.models.base import Encoder
    from retrievers.search.searcher import Searcher
else:  # the options are read off the hints, without torch
    Searcher = Any

#: In OUT: which folder it is of, and which files that had.
STATE = "quickstart.json"
_SMALL = (
    "note: {names} know{s} generated flags and nothing else; of other pictures what {it} say{s} "
    "and find{s} is noise, which shows how everything works. For yours:\n"
    "  --model ocr                        the text in pictures; needs no GPU and no download\n"
    "  --model Qwen/Qwen3-VL-8B-Instruct  descriptions; or --urls http://HOST:8000/v1 of a server\n"
    "  --retriever ViT-B-16-SigLIP2-256:webli, ViT-B-32-quickgelu:openai or another of open_clip,\n"
    "              Qwen/Qwen3-VL-Embedding-2B, or a folder or checkpoint of your own"
)


def quickstart(
    folder: Path,
    out: Path | None = None,
    model: str = "flagland-vlm",
    urls: Sequence[str] = (),
    retriever: str = "flagland-clip",
    device: str = "auto",
    threads: int | None = None,
    allow_mismatch: bool = False,
) -> dict[str, Searcher]:
    """From a folder of pictures to search: import them, describe them, embed them.

    Words are searched in the descriptions (BM25); the retriever reads the pictures, and a
    checkpoint that was trained on descriptions reads these, too. What is done already is kept in
    OUT, and pictures that came, went or changed since are noticed.

    Args:
        folder: Of pictures; what lies deeper counts. Text in NAME.txt beside a picture is its text.
        out: Folder of what is made; null: FOLDER-search, beside the folder.
        model: Describes: flagland-vlm, ocr (reads the text in pictures), a model folder, a Hugging
            Face name, or what augment.corpus takes besides.
        urls: Servers of the OpenAI API that have the model.
        retriever: A published model, a checkpoint, or bm25 for words alone; see ``search``.
        device: auto, cpu, cuda or cuda:N.
        threads: Of the CPU; null: all.
        allow_mismatch: Go on with a checkpoint that was trained on other text.

    Returns:
        Name -> searcher: the retriever, and ``bm25``.

    Raises:
        DataError: if the folder holds no picture that can be read, or OUT is of something else.
        EngineError: if there is no such model, or it died; the same call goes on.
        MismatchError: if the checkpoint was trained on other text.
    """
    from augment.enrichment.pipeline import Options

    folder = Path(folder).resolve()
    out = (Path(out) if out else folder.with_name(f"{folder.name}-search")).resolve()
    root, texts = import_pictures(folder, out), out / "texts"
    options = Options(model=model, urls=urls, device=device, threads=threads)
    describe(root, texts, options)
    say(f"3 of 3  embedding with {retriever}" if retriever != "bm25" else "3 of 3  indexing words")
    # Not before: these take seconds to load.
    from retrievers.models.load import load
    from retrievers.search.pictures import QueryPictures
    from retrievers.search.searcher import BM25, Searcher
    from retrievers.vectors.embed import device_named

    found, pictures = {}, QueryPictures()
    if retriever != BM25:
        encoder = load(retriever, str(device_named(device)))
        vectors = embed(encoder, root, texts, out / "vectors", options, allow_mismatch)
        path = Path(retriever)
        trained = path.suffix == ".ckpt" and path.exists()
        found[path.parent.parent.name if trained else path.name] = Searcher.open(
            encoder, root, store=texts, embeddings=vectors, device=device, pictures=pictures,
            allow_mismatch=allow_mismatch,
        )  # fmt: skip
    found[BM25] = Searcher.open(BM25, root, store=texts, pictures=pictures)
    return found


def import_pictures(folder: Path, out: Path) -> Path:
    """Make a data root of the pictures, unless it is there and they are the same; its path.

    Raises:
        DataError: see :func:`quickstart`.
    """
    from augment.data.sources.tables import folder as read
    from augment.data.sources.writing import Bounds, write_root

    if out.is_relative_to(folder):
        raise DataError("lies in the folder of pictures; name another --out", str(out))
    entries = [entry for entry in read(folder) if isinstance(entry, SourceEntry)]
    if not entries:
        raise DataError(
            "no picture (.jpg, .png, .webp, ...) in this folder or below it", str(folder)
        )
    root, kept = out / "root", _state(out)
    now = {"folder": digest(str(folder)), "files": digest([*_files(folder, entries)])}
    if kept.get("folder", now["folder"]) != now["folder"]:
        raise DataError("is of another folder of pictures; name another --out", str(out))
    if root.is_dir() and kept == now:
        say(f"1 of 3  {len(entries):,} pictures are imported already: {root}")
        return root
    say(f"1 of 3  importing {len(entries):,} pictures")
    write_json(out / STATE, {**now, "files": ""})  # what lies here is ours from now on
    if root.exists():
        shutil.rmtree(root)
    done = write_root(
        _shown(entries), root, folder.name, folder, "link", None, Bounds(),
        {"kind": "folder", "source": folder.name, "options": {}},
    )  # fmt: skip
    say(done)
    write_json(out / STATE, now)
    return root


def _state(out: Path) -> Mapping[str, Any]:
    """What an earlier run noted.

    Raises:
        DataError: if the folder holds something else.
    """
    if (out / STATE).is_file():
        return dict(read_json(out / STATE))
    if out.exists() and any(out.iterdir()):
        raise DataError("exists, and no quickstart made it; name another --out", str(out))
    out.mkdir(parents=True, exist_ok=True)
    return {}


def _files(folder: Path, entries: Sequence[SourceEntry]) -> Iterator[Sequence[Any]]:
    """What decides a data root: names, sizes and times of pictures, and texts beside them."""
    for entry in entries:
        seen = (folder / entry.id).lstat()
        yield [entry.id, entry.text, seen.st_size, seen.st_mtime_ns]


def _shown(entries: Sequence[SourceEntry]) -> Entries:
    """The entries, with progress; a name that is no text of any encoding cannot be an id."""
    from augment.enrichment.account import Progress

    with closing(Progress("pictures", len(entries))) as progress:
        for entry in entries:
            plain = entry.id.encode("utf-8", "replace").decode() == entry.id
            yield entry if plain else LeftOut("names that are not UTF-8", ascii(entry.id))
            progress.add(1)


def describe(root: Path, store: Path, options: Options) -> None:
    """Give every picture a text, unless it has one; these are the texts shown from now on.

    Raises:
        EngineError: if there is no such model, or it died.
        KeyboardInterrupt: after Ctrl-C; what was finished is kept.
    """
    from augment import corpus
    from augment.enrichment.pipeline import finish
    from augment.store import runs

    say(f"2 of 3  describing with {options.model}")
    summary = corpus.run(root, store, options=options)
    finish(summary, store)
    if summary.incomplete.startswith("stopped"):
        raise KeyboardInterrupt
    if summary.incomplete:
        raise EngineError(f"{summary.incomplete}; the same command goes on")
    runs.choose(store, runs.load_runs(store)[-1].recipe)


def embed(
    encoder: Encoder, root: Path, store: Path, out: Path, options: Options, allow_mismatch: bool
) -> Path:
    """Embed all candidates that have no vector yet; the folder of the vectors.

    Raises:
        DataError: if no candidate can be embedded.
        MismatchError: if the encoder was trained on other text.
    """
    from augment import Store, enrich
    from augment.data import DataRoot
    from augment.prompts.route import QUERY_PROMPTS
    from retrievers.data.plan import plan_pools
    from retrievers.models.load import open_recipe
    from retrievers.vectors.embed import embed as fill

    trained = encoder.trained_on
    if trained and not trained["query"].startswith("raw"):
        # It knows rewritten queries. The root has none, but their recipe is what it asks for.
        engine = options.engine(root)
        enrich([], QUERY_PROMPTS, engine, Store(store), root=root, options=options)
    recipe = open_recipe(trained, DataRoot(root), store, allow_mismatch)
    folder = out / encoder.fingerprint(recipe.fingerprint)[:12]
    data = _data(root, store, recipe, folder)
    found = fill(
        encoder, data, plan_pools(data.root), device=options.device, allow_mismatch=allow_mismatch
    )
    say(found.lines()[0])
    return folder


def _data(root: Path, store: Path, recipe: TextRecipe, folder: Path) -> MBeirData:
    """The root with the very text of a recipe."""
    from retrievers.data.module import EmbeddingConfig, MBeirData
    from retrievers.data.texts import ViewConfig

    def shown(view: TextView) -> ViewConfig:
        if view.view == "raw":
            return ViewConfig(mark=view.mark)
        name = str(view.recipe["id"])
        return ViewConfig(view.view, str(store), name, view.length, mark=view.mark)

    return MBeirData(
        str(root), shown(recipe.query_view), shown(recipe.corpus_view), text_rule=recipe.rule,
        instructions=recipe.instructions is not None, on_bad_image="skip",
        embeddings=EmbeddingConfig(str(folder), shard_seconds=10),
    )  # fmt: skip


def small(model: str, retriever: str) -> str:
    """What is to be said of packaged models, if one is used; else empty."""
    names = [name for name in (model, retriever) if name.startswith("flagland-")]
    s, it = ("", "they") if len(names) > 1 else ("s", "it")
    return _SMALL.format(names=" and ".join(names), s=s, it=it) if names else ""


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    from retrievers.search.command import stoppable

    return stoppable(_run, args)


def _run(args: Sequence[str]) -> int:
    from augment.enrichment.command import add_options, parser, values
    from retrievers.search.command import STOPPED, show

    about = inspect.getdoc(quickstart) or ""
    made = parser("python -m retrievers quickstart", about.partition("\n\nArgs:")[0])
    add_options(made, quickstart, positional=("folder",))
    made.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes any free one.")
    made.add_argument("--no-open", action="store_true", help="Open no browser.")
    parsed = made.parse_args(list(args))
    asked = values(parsed, quickstart)
    from retrievers.search.serve import listen

    warning = small(asked["model"], asked["retriever"])
    # Listening comes first: a port in use is told before anything is done.
    with listen("127.0.0.1", parsed.port) as listening:
        try:
            say(warning or f"{asked['folder']}: each step is kept; Ctrl-C and again goes on")
            searchers = quickstart(**asked)
            say("\n".join(filter(None, [_next(searchers), warning])))
            return show(searchers, listening, browser=not parsed.no_open)
        except KeyboardInterrupt:
            say("stopped; the same command goes on where it was", sys.stderr)
            return STOPPED


def _next(searchers: Mapping[str, Searcher]) -> str:
    """What else can be done with what was made."""
    root = next(iter(searchers.values())).root
    where = f"--root {shlex.quote(str(root))}"
    store = shlex.quote(str(root.parent / "texts"))
    return (
        f"next: python -m retrievers search {where} --store {store} --checkpoint bm25 WORDS\n"
        f"      python -m augment report {store} {where} --out REPORT"
    )
