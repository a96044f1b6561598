"""Search with a typed query, a picture or both, over the pools of a data root.

::

    from retrievers import Searcher

    searcher = Searcher.open("runs/flags/checkpoints/last.ckpt", "data/flagland")
    for result in searcher.search("a red cross on white", image="photo.jpg", k=10):
        print(result.rank, result.score, result.id, result.text)
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from random import Random
from threading import Lock
from time import monotonic
from typing import Any, Literal, NamedTuple, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import DataLoader

from augment.data import DataRoot, InstructionRow
from augment.data.images import content_hash, open_image, read_picture
from augment.data.items import SPLITS
from augment.data.pools import open_queries
from augment.errors import DataError, ImageError, StoreError
from augment.records import Hit, Item, Modality, one_picture
from augment.store import Store
from augment.views import TextView, open_view
from retrievers.data.datasets import Reader, target_modality
from retrievers.data.examples import ItemCollator
from retrievers.data.pictures import ImageLoader
from retrievers.data.plan import Plan, PlanItems
from retrievers.data.texts import TextRecipe
from retrievers.data.writings import told
from retrievers.models.base import Encoder
from retrievers.models.load import load, open_recipe
from retrievers.search.answers import Answer, Cascaded, Pace, Result
from retrievers.search.pictures import QueryPictures
from retrievers.search.rewriting import QueryRewriter
from retrievers.search.second_stage import FOUND, Reranking, SecondStage
from retrievers.vectors import make_index
from retrievers.vectors.bm25 import Bm25Config, Bm25Index
from retrievers.vectors.embed import device_named, encode_contents, fill
from retrievers.vectors.held import Vectors
from retrievers.vectors.index import Index
from retrievers.vectors.rows import Embeddings
from retrievers.vectors.store import EmbeddingStore, read_manifest
from retrievers.vectors.words import analyser

#: In place of a checkpoint: search by words.
BM25 = "bm25"

_BATCH = 128

#: Latest searches whose seconds are told.
_PACED = 1000

#: Queries of a file that are looked at for one whose answer is among the candidates.
_TRIED = 40


class Suggestion(NamedTuple):
    """A published query to begin with.

    Attributes:
        text: as published; may be empty.
        picture: its name in :attr:`Searcher.pictures`; empty for none.
        instruction: the first one of its own data set and task; empty where there is none.
    """

    text: str
    picture: str
    instruction: str


@final
class Searcher:
    """A retriever, the text it was trained on, and the embedded candidates. See :meth:`open`.

    Searching is safe from several threads; one query is embedded at a time.
    """

    def __init__(
        self,
        root: DataRoot,
        plan: Plan,
        retriever: Encoder | None,
        recipe: TextRecipe,
        index: Index[Any],
        shown: TextView,
        pictures: QueryPictures,
        rewriter: QueryRewriter | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.root = root.path
        self.pictures = pictures
        self._plan = plan
        self._retriever = retriever
        self._recipe = recipe
        self._index = index
        self._shown = shown
        self._rewriter = rewriter
        self._notes = tuple(notes)
        self._lock = Lock()
        self._parts: dict[Modality, Index[Any]] = {}
        self._words = analyser("english")
        self._second: SecondStage | None = None
        self._latest: deque[tuple[float, int]] = deque(maxlen=_PACED)
        self._instructions = self._rows(recipe)

    @classmethod
    def open(
        cls,
        checkpoint: str | Path | Encoder,
        root: str | Path,
        *,
        store: str | Path | None = None,
        recipe: str | None = None,
        pools: Sequence[str] = (),
        vlm: str | None = None,
        embeddings: str | Path | None = None,
        device: str = "auto",
        allow_mismatch: bool = False,
        pictures: QueryPictures | None = None,
    ) -> Searcher:
        """Load a checkpoint, and the vectors of the candidates or else the candidates themselves.

        Args:
            checkpoint: a ``.ckpt`` file that ``fit`` wrote, or a model to take as it is
                (``flagland-clip``, ``local-dir:FOLDER``, ``hf-hub:NAME``), or ``bm25``: words
                instead of vectors, in published text and, with a store, generated text behind it;
                or an encoder, whose embeddings are to be named.
            root: folder in M-BEIR's layout.
            store: folder of generated texts; needed by a checkpoint trained on them, and shown
                beside the results of others.
            recipe: of the candidates' texts that bm25 searches and others show; several as ``A+B``.
                None takes the one meant. A checkpoint that was trained on texts finds its own.
            pools: names of local pools (``flags`` or ``flags_task0``); none takes all of them.
            vlm: rewrites queries as those of the training were, such as ``flagland-vlm``.
            embeddings: folder of ``python -m retrievers embed``. None takes ``embeddings`` beside
                the checkpoint's folder if that was made by this checkpoint, else embeds.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            allow_mismatch: go on with text of another recipe than the one trained on.
            pictures: where the pictures of queries are kept; shared by several searchers.

        Raises:
            DataError: if there is no such checkpoint, the root has no such pools, or a store is
                needed and not given.
            StoreError: if the store or the embeddings cannot be read.
            MismatchError: if the text is not of the recipe that the checkpoint was trained on, or
                the embeddings are not of this checkpoint.
            EngineError: if there is no such VLM.
        """
        data, plan = DataRoot(Path(root)), Plan()
        for path in _pool_files(data, pools):
            plan.add_pool(path.name, path)
        texts = None if store is None else Path(store)
        if texts is not None and not texts.is_dir():
            raise StoreError(f"{texts}: no such folder of generated texts")
        pictures = pictures or QueryPictures()
        if str(checkpoint) == BM25:
            if embeddings is not None or vlm is not None:
                raise DataError("bm25 has no embeddings and no rewritten queries; leave them out")
            shown = _generated(texts, recipe)
            read = TextRecipe(open_view("query", "raw"), shown, "plain", None)
            index, words = Bm25Index(), Bm25Config().fingerprint
            index.add(plan.ids, [read.candidate(i) or "" for i in plan.catalog.items()], words)
            index.build()
            return cls(data, plan, None, read, index, shown, pictures)
        made = checkpoint if isinstance(checkpoint, Encoder) else None
        retriever = made or load(str(checkpoint), str(device_named(device)))
        read = open_recipe(retriever.trained_on, data, texts, allow_mismatch)
        rewriter = (
            QueryRewriter(vlm, pictures.folder, read.query_view, allow_mismatch) if vlm else None
        )
        made_by = retriever.fingerprint(read.fingerprint)
        folder = None if embeddings is None else Path(embeddings)
        if folder is None and made is None:
            folder = _embeddings(Path(str(checkpoint)), made_by)
        vectors, notes = (
            _embed(retriever, read, data, plan, device)
            if folder is None
            else _read_embeddings(folder, made_by, plan, device)
        )
        shown = read.corpus_view if read.corpus_view.view != "raw" else _generated(texts, recipe)
        return cls(data, plan, retriever, read, vectors, shown, pictures, rewriter, notes)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def corpus_view(self) -> str:
        """Which text of candidates the retriever reads: raw, append or replace."""
        return self._recipe.corpus_view.view

    @property
    def query_view(self) -> str:
        """Which text of queries the retriever was trained on."""
        return self._recipe.query_view.view

    @property
    def score(self) -> str:
        """What the scores are."""
        if self._second is not None:
            return self._second.score
        return "BM25 score" if self._retriever is None else "Cosine similarity"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about every search."""
        notes = self._notes if self._second is None else (*self._notes, self._second.told)
        if self._rewriter is not None or self.query_view == "raw":
            return notes
        return (
            *notes,
            "the retriever was trained on rewritten queries and gets them as typed; name a model "
            "with --vlm to have them rewritten",
        )

    @property
    def pace(self) -> Pace | None:
        """How fast the latest searches were; None before the first."""
        latest = tuple(self._latest)
        return Pace.of(latest) if latest else None

    def rewrite_with(self, vlm: str, allow_mismatch: bool = False) -> None:
        """Have queries rewritten from now on; see :meth:`open`.

        Raises:
            EngineError: if there is no such VLM.
            MismatchError: if the training queries were not rewritten, or otherwise.
        """
        view = self._recipe.query_view
        self._rewriter = QueryRewriter(vlm, self.pictures.folder, view, allow_mismatch)

    def rerank_with(
        self,
        config: Reranking,
        *,
        store: str | Path | None = None,
        device: str = "auto",
        allow_mismatch: bool = False,
    ) -> None:
        """Have the best candidates of each search read again and reordered from now on.

        Args:
            config: by what, and how many.
            store: generated texts; needed by a reranker that was trained on them.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            allow_mismatch: go on with text of another recipe than the one trained on.

        Raises:
            DataError: if there is no such model, or it is no reranker.
            MismatchError: if the store has not the texts that it was trained on.
        """
        texts = None if store is None else Path(store)
        self._second = config.open(DataRoot(self.root), texts, device, allow_mismatch)
        if self._second.recipe is not None and not self._instructions:
            self._instructions = self._rows(self._second.recipe)

    def _rows(self, recipe: TextRecipe) -> tuple[InstructionRow, ...]:
        """The instructions of the searched data sets."""
        if recipe.instructions is None:
            return ()
        ids = self._plan.ids
        numbered = ids.filter(pc.match_substring_regex(ids, "^[0-9]+:[0-9]+$"))
        numbers = pc.replace_substring_regex(numbered, ":.*$", "")
        found = {"*", *pc.unique(numbers).to_pylist()}
        return tuple(row for row in recipe.instructions.rows if row.dataset_id in found)

    @property
    def vlm(self) -> str | None:
        """Name of the model that rewrites queries."""
        return None if self._rewriter is None else self._rewriter.model

    def instructions(self, modality: Modality | None = None) -> tuple[InstructionRow, ...]:
        """Rows of the root's table for the searched data sets, and for one kind of query.

        Empty where the retriever was trained without instructions.
        """
        return tuple(
            row
            for row in self._instructions
            if row.prompts and modality in (None, row.query_modality)
        )

    def item(self, id: str) -> Item | None:  # noqa: A002 - the word of the format
        """A candidate as published, or None."""
        return self._plan.find(id)

    def sample(self, count: int, seed: int = 0) -> tuple[Result, ...]:
        """Some candidates by chance, kinds taking turns; their scores are 0."""
        rows = Random(seed).sample(range(len(self)), min(4 * count, len(self)))  # noqa: S311
        kinds: dict[Modality, list[str]] = {}
        for did in self._index.ids.take(pa.array(rows)).to_pylist():
            found = self._plan.find(did)
            kinds.setdefault(found.modality if found else "text", []).append(did)
        turns = zip_longest(*kinds.values())
        ids = islice((one for turn in turns for one in turn if one is not None), count)
        return tuple(self._result(rank, Hit(did, 0.0)) for rank, did in enumerate(ids, start=1))

    def examples(self, count: int, seed: int = 0) -> list[Suggestion]:
        """Some published queries, by chance, whose answer is among the candidates.

        Of the root's test queries, or else its others; files take turns.
        """
        root = DataRoot(self.root)
        files = next(filter(None, map(root.query_files, reversed(SPLITS))), [])
        turns = zip_longest(*(self._asked(file.path, seed) for file in files))
        return list(islice((one for turn in turns for one in turn if one is not None), count))

    def _asked(self, path: Path, seed: int) -> Iterator[Suggestion]:
        try:
            table = open_queries(path)
        except DataError:  # what is wrong with it is told by `python -m augment validate`
            return
        for row in Random(seed).sample(range(len(table)), min(_TRIED, len(table))):  # noqa: S311
            query, picture = table[row], ""
            item = query.item
            if not any(self._plan.find(did) for did in query.positives):
                continue
            try:
                if item.images and self._retriever is not None:
                    picture = self.pictures.add(read_picture(self.root, item.images[0]))
            except ImageError:
                continue
            target = target_modality(query, self._plan.find)
            prompts = [one.prompts[0] for one in self.instructions(item.modality)
                       if one.dataset_id in (item.dataset, "*")
                       and one.candidate_modality == target]  # fmt: skip
            if item.text or picture:
                yield Suggestion(item.text or "", picture, prompts[0] if prompts else "")

    def search(
        self,
        query: str = "",
        image: str | Path | None = None,
        k: int = 10,
        instruction: str | None = None,
        *,
        picture: str | None = None,
        modality: Modality | Literal["asked"] | None = None,
        own_picture: Literal["keep", "content"] = "keep",
    ) -> Answer:
        """The best candidates for a query.

        Args:
            query: text; may be empty where there is a picture.
            image: file of a picture.
            k: how many candidates, at least 1.
            instruction: put before the query. None takes the first one that the root has for this
                kind of query and the modality, an empty one leaves it out.
            picture: in place of a file, the name of a picture in :attr:`pictures`.
            modality: only candidates that consist of this; asked: of what the instruction asks for,
                as the root's table says; None for any.
            own_picture: content leaves out candidates whose picture is that of the query, byte for
                byte.

        Raises:
            DataError: if there is neither text nor picture, or ``k`` is below 1.
            ImageError: if the picture cannot be used.
            EngineError: if the VLM cannot rewrite the query.
        """
        if image is not None:
            picture = self.pictures.add_file(image)
        started, text = monotonic(), query.strip() or None
        if text is None and picture is None:
            raise DataError("the query is empty; type a text or give a picture")
        if k < 1:
            raise DataError(f"cannot find {k} candidates; ask for at least 1")
        kind: Modality = "text" if picture is None else "image" if text is None else "image,text"
        digest = hashlib.sha256(f"{text}\0{picture}".encode()).hexdigest()[:16]
        item = Item(f"typed:{digest}", text, one_picture(picture), kind)
        with self._lock:
            notes: list[str] = []
            shown, rewritten = self._recipe.query_view.marked(item, text), None
            if self._rewriter is not None:
                shown, rewritten, note = self._rewriter(item)
                notes += [note] if note else []
            asked, target = self._instruction(kind, instruction, modality, notes)
            # A reranker may have learnt instructions where this retriever has not.
            own_asked = asked if self._recipe.instructions is not None else None
            read = self._recipe.instructed(shown, own_asked)
            if read is None and picture is None:
                raise DataError(f"nothing is left of the query {text!r}; type some words")
            vectors, wrote, tokens = self._embedded(read, picture, notes)
            own = None if own_picture == "keep" else picture
            index = self._index if target is None else self._narrowed(target)
            shows = None if own is None else lambda hit: self._shows(hit, own)
            hits = self._hits(index, vectors, k if self._second is None else max(k, FOUND), shows)
            ranked: list[tuple[Hit, Cascaded | None]] = [(hit, None) for hit in hits]
            if self._second is not None:
                recipe = self._second.recipe or self._recipe
                if recipe.query_view.fingerprint != self._recipe.query_view.fingerprint:
                    shown = recipe.query_view.marked(item, text)
                opened = None if picture is None else self.pictures.open(picture)
                again = (recipe.instructed(shown, asked), opened)
                ranked = [*self._second(hits, item.id, again, recipe, self._plan.find)]
            results = self._results(ranked[:k], f"{shown or ''} {wrote}")
        seen = picture is not None and self._retriever is not None
        seconds = monotonic() - started
        self._latest.append((seconds, tokens))
        return Answer(
            results, read, seen, own_asked, rewritten, tuple(notes), wrote, tokens, seconds
        )

    def like(
        self,
        id: str,  # noqa: A002 - the word of the format
        k: int = 10,
        modality: Modality | None = None,
    ) -> Answer:
        """The candidates most like one of them, which is left out, read as this retriever reads it.

        Args:
            id: of the candidate.
            k: how many, at least 1.
            modality: only candidates that consist of this; None for any.

        Raises:
            DataError: if there is no such candidate, or it has nothing to be read.
            ImageError: if its picture cannot be used.
        """
        item = self._plan.find(id)
        if item is None:
            raise DataError(f"there is no candidate {id!r}")
        started, text = monotonic(), self._recipe.candidate(item)
        wrote, tokens = "", 0
        with self._lock:
            asked: Any = None if not text else [text]
            if self._retriever is not None:
                image = open_image(self.root, item.images[0]) if item.images else None
                made = encode_contents(self._retriever, [(text, image)], "corpus", id)
                asked, (wrote, tokens) = made.vectors, told(made.writings)
            index = self._index if modality is None else self._narrowed(modality)
            hits = self._hits(index, asked, k, lambda hit: hit.did == id)
            found = self._results([(hit, None) for hit in hits], text or "")
        seen = bool(item.images) and self._retriever is not None
        self._latest.append((seconds := monotonic() - started, tokens))
        return Answer(found, text, seen, None, None, (), wrote, tokens, seconds)

    def _instruction(
        self,
        kind: Modality,
        given: str | None,
        modality: Modality | Literal["asked"] | None,
        notes: list[str],
    ) -> tuple[str | None, Modality | None]:
        """What is put before a query of a kind, and the modality that is searched."""
        prompt = (given or "").strip() or None
        rows: Sequence[InstructionRow] = () if given == "" else self.instructions(kind)
        if prompt is not None:
            rows = [row for row in rows if prompt in row.prompts]
        else:
            rows = [row for row in rows if row.candidate_modality == modality] or rows
        if self._recipe.instructions is None and not self._instructions:
            if given:
                notes.append("the retriever was trained without instructions; none was used")
            prompt = None
        elif given is None and rows:
            prompt = rows[0].prompts[0]
            names = dict.fromkeys(row.dataset_name for row in rows)
            if len(names) > 1:
                notes.append(
                    f"{len(names)} data sets have an instruction for such a query; that of "
                    f"{rows[0].dataset_name} was taken"
                )
        elif given is None:
            notes.append(f"the root has no instruction for queries of kind {kind!r}")
        if modality != "asked":
            return prompt, modality
        if not rows:
            notes.append("no instruction of the root says what is asked for; all is searched")
        return prompt, rows[0].candidate_modality if rows else None

    def _embedded(
        self, text: str | None, picture: str | None, notes: list[str]
    ) -> tuple[Any, str, int]:
        """What the index is asked with, None if it is nothing; text and tokens written before."""
        if self._retriever is not None:
            image = None if picture is None else self.pictures.open(picture)
            found = encode_contents(self._retriever, [(text, image)], "query")
            for one in found.writings:
                cut = ", cut off" if one.ending == "length" else ""
                notes.append(f"{one.tokens} tokens written before the vector{cut}")
            return found.vectors, *told(found.writings)
        if picture is not None:
            notes.append("BM25 reads words and does not see the picture")
        return None if text is None else [text], "", 0

    def _narrowed(self, modality: Modality) -> Index[Any]:
        """An index of the candidates of one modality."""
        if modality not in self._parts:
            every = pa.array([item.modality for item in self._plan.catalog.items()])
            own = every.take(pc.index_in(self._index.ids, value_set=self._plan.ids))
            rows = np.flatnonzero(pc.equal(own, modality))
            if not len(rows):
                raise DataError(f"no candidate of these pools is {modality}; ask for another kind")
            self._parts[modality] = self._index.only(rows)
        return self._parts[modality]

    def _hits(
        self, index: Index[Any], asked: Any, k: int, left_out: Callable[[Hit], bool] | None
    ) -> list[Hit]:
        """The best k, or as many as there are, that are not left out; none where none is asked."""
        wide = k if left_out is None else k + 1
        while asked is not None:
            run = index.run(["typed"], asked, wide, index.made_by or "")
            hits = [hit for hit in run.to_run()["typed"] if left_out is None or not left_out(hit)]
            if len(hits) >= k or wide >= len(index):
                return hits[:k]
            wide *= 2
        return []

    def _results(
        self, ranked: Sequence[tuple[Hit, Cascaded | None]], words: str
    ) -> tuple[Result, ...]:
        own = frozenset(self._words(words))
        return tuple(
            self._result(rank, hit, own, stages) for rank, (hit, stages) in enumerate(ranked, 1)
        )

    def _shows(self, hit: Hit, picture: str) -> bool:
        """Whether a candidate has the very picture that was asked with."""
        item = self._plan.find(hit.did)
        try:
            # Pictures of queries are named by their hash.
            return any(
                content_hash(self.root, image).startswith(picture)
                for image in (item.images if item else ())
            )
        except ImageError:
            return False

    def _result(
        self,
        rank: int,
        hit: Hit,
        words: frozenset[str] = frozenset(),
        stages: Cascaded | None = None,
    ) -> Result:
        item = self._plan.find(hit.did)
        assert item is not None  # noqa: S101 - the index was made from the plan
        made = self._shown.enrichment(hit.did)
        generated = made.text if made is not None and not made.rejected else None
        read = self._words(self._recipe.candidate(item) or "") if words else []
        shared = tuple(word for word in dict.fromkeys(read) if word in words)
        score = round(hit.score, 6)
        return Result(rank, score, hit.did, item.text, generated, item.image, shared, stages)


def _pool_files(root: DataRoot, names: Sequence[str]) -> list[Path]:
    """The files of some local pools; without names all of them, or else the union pools."""
    pools = root.pools()
    files = [file.path for file in pools or root.union_pools()]
    if not files:
        raise DataError(
            "no candidate pool in cand_pool/local or cand_pool/global; check the root with "
            "`python -m augment validate`",
            str(root.path),
        )
    if not names:
        return files
    by_name: dict[str, list[Path]] = {}
    for dataset, task, path in pools:
        for name in {dataset, dataset if task is None else f"{dataset}_task{task}"}:
            by_name.setdefault(name, []).append(path)
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise DataError(
            f"no pool named {', '.join(unknown)}; there are {', '.join(sorted(by_name))}",
            str(root.path),
        )
    return list(dict.fromkeys(path for name in names for path in by_name[name]))


def _generated(store: Path | None, recipe: str | None) -> TextView:
    """Published text, and generated text behind it where there is some."""
    if store is None or not Store(store).recipes("corpus"):
        return open_view("corpus", "raw")
    return open_view("corpus", "append", store, recipe)


def _embeddings(checkpoint: Path, made_by: str) -> Path | None:
    """The folder that ``embed`` fills by default, if it did with these weights and text."""
    folder = checkpoint.parent.parent / "embeddings"
    manifest = read_manifest(folder / "corpus") if (folder / "corpus").is_dir() else None
    known = manifest is not None and manifest.complete and manifest.made_by == made_by
    return folder if known else None


def _embed(
    retriever: Encoder, recipe: TextRecipe, root: DataRoot, plan: Plan, device: str
) -> tuple[Index[Vectors], list[str]]:
    """Embed the candidates of a plan, and keep the vectors in memory."""
    reader = Reader(recipe, ImageLoader(root.path, retriever.collator()), "skip")
    loader = DataLoader(
        PlanItems(plan, "corpus", reader),
        batch_size=_BATCH,
        collate_fn=ItemCollator(retriever.collator(), "corpus"),
    )
    room = Embeddings(len(plan))
    fill(room, loader, retriever, "corpus")
    rows = room.done.nonzero().flatten()
    if not len(rows):
        raise DataError("its pools hold no candidate that can be embedded", str(root.path))
    made_by = retriever.fingerprint(recipe.fingerprint)
    index = make_index("exact", made_by, device)
    room.add_to(index, plan.catalog.names(rows.numpy()), rows, made_by)
    return index, _notes(len(room.failed), len(room.degraded))


def _read_embeddings(
    folder: Path, made_by: str, plan: Plan, device: str
) -> tuple[Index[Vectors], list[str]]:
    """The candidates of a plan with the vectors that ``embed`` left, read where they lie.

    Vectors go by id: a candidate that changed after embedding is found by what it was then.
    """
    inner = folder / "corpus"
    # Checksums are compared, a second or two per GB: exact search reads every vector anyway.
    store = EmbeddingStore.open(inner if inner.is_dir() else folder, made_by)
    live, wanted = store.live, plan.ids
    places = pc.index_in(wanted, value_set=store.ids(live))
    kept = wanted.filter(pc.is_valid(places))
    if not len(kept):
        raise DataError("holds no vector of these pools; embed the same root", str(store.folder))
    rows = live[places.drop_null().to_numpy()]
    index = make_index("exact", store.made_by, device)
    index.add(kept, store, store.made_by, rows)
    return index, _notes(len(wanted) - len(kept), int(np.count_nonzero(store.degraded[rows])))


def _notes(failed: int, degraded: int) -> list[str]:
    kinds: Mapping[str, int] = {
        "candidates left out, without a vector: no text, and no picture that can be read": failed,
        "candidates found by their text alone, because their picture cannot be read": degraded,
    }
    return [f"{what}: {number:,}" for what, number in kinds.items() if number]
