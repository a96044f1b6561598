"""Minutes from other people's files to a search over enriched text, kind by kind.

Pairs of picture and text of a root are written as a set of each kind, in its published layout; then
the command of ``docs/your-data.md`` imports it, the packaged models describe its pictures, and BM25
searches over what they wrote, each a program of its own as a user starts it. What was measured is
kept in a JSON file as it comes; a run that was killed goes on with the next kind.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from augment.data.images import read_picture
from augment.data.items import RootItems
from augment.data.pools import open_queries
from augment.data.root import DataRoot
from augment.data.sources.forms import add_member
from augment.errors import DataError
from augment.files import read_json, say, write_json
from benchmarks.speed.harness import RESULTS, Page, Row, cost

PAGE = Path(__file__).parents[2] / "docs" / "your-data.md"


class Captioned(NamedTuple):
    """A JPEG file with a text about it, its number from 1, and that of the one that follows."""

    number: int
    text: str | None
    picture: bytes
    next: int


_Pairs = Sequence[Captioned]


def documented() -> dict[str, str]:
    """Kind -> its command in the documentation, without ``python -m``."""
    rows = r"^\| `(\w+)` .*`python -m (.+)` \| 0 \|$"
    return dict(re.findall(rows, PAGE.read_text(encoding="utf-8"), re.MULTILINE))


_PICTURE, _NUMBER, _NEXT = map(attrgetter, ("picture", "number", "next"))
_CLOTHES = ("dress", "shirt", "toptee")
_CARD = "".join(f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/*\n"
                for name in ("corpus", "queries", "qrels"))  # fmt: skip
_DOCUMENT = {"id": "d{n}", "content": "{text}"}
_ASKED = {"id": "{n}", "query": "{words}", "gold_ids": ["d{n}"]}

#: Kind -> path in a set of it -> what is there, by the names of the documented commands. A list,
#: and a key with {n}, stand for one of each pair; the second of two lines does, too.
LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "table": {"photos/{n}.jpg": _PICTURE,
              "products.csv": ("sku,title,photo", 'A-{n},"{text}",{n}.jpg')},
    "folder": {"photos/{n}.jpg": _PICTURE},
    "datasets": {"set": [{"text": "{text}", "image": {"bytes": _PICTURE, "path": None}}]},
    "webdataset": {"shards.tar": {"{n:06}.jpg": _PICTURE, "{n:06}.txt": "{text}"}},
    "beir": {"beir/corpus.jsonl": [{"_id": "d{n}", "title": "", "text": "{text}"}],
             "beir/queries.jsonl": [{"_id": "q{n}", "text": "{words}"}],
             "beir/qrels/test.tsv": ("query-id\tcorpus-id\tscore", "q{n}\td{n}\t1")},
    "coco": {"coco/{n}.jpg": _PICTURE, "coco/captions.json": {
        "images": [{"id": _NUMBER, "file_name": "{n}.jpg"}],
        "annotations": [{"id": _NUMBER, "image_id": _NUMBER, "caption": "{text}"}]}},
    "flickr30k": {"flickr/{n}.jpg": _PICTURE, "flickr/dataset.json": {"images": [
        {"imgid": _NUMBER, "filename": "{n}.jpg", "split": "test",
         "sentences": [{"sentid": _NUMBER, "raw": "{text}"}]}]}},
    "urban1k": {"urban/image/{n}.jpg": _PICTURE, "urban/caption/{n}.txt": "{text}"},
    "sharegpt4v": {"share/coco/{n}.jpg": _PICTURE, "share/share.json": [
        {"image": "coco/{n}.jpg", "conversations": [
            {"from": "human", "value": "What is it?\n<image>"},
            {"from": "gpt", "value": "{text}"}]}]},
    "sugarcrepe": {"sugar/{n}.jpg": _PICTURE, "sugar/swap_obj.json": {
        "{n}": {"filename": "{n}.jpg", "caption": "{text}", "negative_caption": "no {text}"}}},
    "cirr": {"cirr/img/dev/{n}.jpg": _PICTURE,
             "cirr/image_splits/split.rc2.val.json": {"{n}": "./dev/{n}.jpg"},
             "cirr/captions/cap.rc2.val.json": [
                 {"pairid": _NUMBER, "reference": "{n}", "target_hard": "{next}",
                  "caption": "{text}", "img_set": {"members": ["{n}", "{next}"]}}]},
    "fashioniq": {"fiq/images/{n}.jpg": _PICTURE,
                  **{f"fiq/image_splits/split.{kind}.val.json": ["{n}"] for kind in _CLOTHES},
                  **{f"fiq/captions/cap.{kind}.val.json": [
                      {"candidate": "{n}", "target": "{next}", "captions": ["{words}", "new"]}]
                     for kind in _CLOTHES}},
    "circo": {"circo/p/{n}.jpg": _PICTURE, "circo/coco/image_info_unlabeled2017.json": {
                  "images": [{"id": _NUMBER, "file_name": "{n}.jpg"}]},
              "circo/annotations/val.json": [
                  {"id": _NUMBER, "reference_img_id": _NUMBER, "target_img_id": _NEXT,
                   "relative_caption": "{text}", "gt_img_ids": [_NEXT]}]},
    "genecis": {"genecis/{n:012}.jpg": _PICTURE, "genecis/focus_object.json": [
        {"condition": "{text}", "reference": {"val_image_id": _NUMBER},
         "target": {"val_image_id": _NEXT}, "gallery": []}]},
    "visdial": {"visdial/{n}.jpg": _PICTURE, "visdial/space.json": ["{n}.jpg"],
                "visdial/chatir.json": [{"img": "{n}.jpg", "dialog": ["{text}", "is it? yes"]}]},
    "vist": {"vist/{n}.jpg": _PICTURE, "vist/test.story-in-sequence.json": {
        "images": [{"id": "{n}"}],
        "annotations": [[{"story_id": "{n}", "photo_flickr_id": "{n}", "text": "{text}",
                          "worker_arranged_photo_order": 1}]]}},
    "bright": {"bright/documents/biology.parquet": [_DOCUMENT],
               "bright/examples/biology.parquet": [{**_ASKED, "excluded_ids": ["N/A"]}]},
    "mm_bright": {"mm/documents/gis.parquet": [_DOCUMENT],
                  "mm/examples_multimodal/gis.parquet": [
                      {**_ASKED, "negative_ids": ["N/A"], "image_paths": ["{n}.jpg"]}],
                  "mm/examples_images/gis.parquet": [{"path": "{n}.jpg", "bytes": _PICTURE}]},
    "mteb": {"mteb/README.md": f"---\nconfigs:\n{_CARD}---\n",
             "mteb/corpus/test.parquet": [{"id": "d{n}", "image": {"bytes": _PICTURE}}],
             "mteb/queries/test.parquet": [{"id": "q{n}", "text": "{text}"}],
             "mteb/qrels/test.parquet": [{"query-id": "q{n}", "corpus-id": "d{n}", "score": 1}]},
    "mmeb": {"shots/{n}.jpg": _PICTURE, "mmeb/MSCOCO_t2i.jsonl": [
        {"qry_text": "{text}", "qry_img_path": "", "tgt_text": ["", ""],
         "tgt_img_path": ["{n}.jpg", "{next}.jpg"]}]},
    "ms_swift": {"swift/{n}.jpg": _PICTURE, "swift.jsonl": [
        {"messages": [{"role": "user", "content": "{text}"}],
         "positive_messages": [[{"role": "user", "content": "<image>"}]],
         "positive_images": [["swift/{n}.jpg"]]}]},
    "tevatron": {"tevatron/{n}.jpg": _PICTURE,
                 "corpus.jsonl": [{"docid": "d{n}", "text": "", "image": "tevatron/{n}.jpg"}],
                 "tevatron.jsonl": [{"query_id": "{n}", "query_text": "{text}",
                                     "positive_document_ids": ["d{n}"]}]},
}  # fmt: skip


def _of_each(form: Any, pairs: _Pairs) -> Any:
    """What a layout stands for."""
    if isinstance(form, list):
        return [_of(form[0], one) for one in pairs]
    if isinstance(form, tuple):
        return "\n".join([form[0], *(_of(form[1], one) for one in pairs), ""])
    if not isinstance(form, Mapping):
        return form
    many = {_of(key, one): _of(form[key], one) for one in pairs for key in form if "{n" in key}
    return many | {key: _of_each(form[key], pairs) for key in form if "{n" not in key}


def _of(form: Any, one: Captioned) -> Any:
    """A layout with what is said of one pair in it."""
    if isinstance(form, str):
        words = " ".join((one.text or "").split()[:5])  # as a query
        said = form.format(n=one.number, next=one.next, text=one.text, words=words)
        return one.text if form == "{text}" else said
    if isinstance(form, Mapping):
        return {key: _of(value, one) for key, value in form.items()}
    if isinstance(form, list):
        return [_of(value, one) for value in form]
    return form(one) if callable(form) else form


def write_set(kind: str, home: Path, pairs: _Pairs) -> None:
    """Write a set of a kind into a folder, under the names of its documented command."""
    for name, content in _of_each(LAYOUTS[kind], pairs).items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".tar":
            with tarfile.open(path, "w") as tar:
                for member, data in content.items():
                    add_member(tar, member, data if isinstance(data, bytes) else data.encode())
        elif path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(content), path)
        elif not path.suffix:
            from datasets import Dataset, DatasetDict, Features, Image, Value

            features = Features({"text": Value("string"), "image": Image()})
            DatasetDict(train=Dataset.from_list(content, features)).save_to_disk(str(path))
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")


def read_pairs(root: Path, most: int) -> list[Captioned]:
    """Pictures of queries with the texts of their positives.

    Raises:
        DataError: if the root has none.
    """
    data, pool = DataRoot(root), RootItems(root, "corpus")
    files = [file for split in ("test", "train") for file in data.query_files(split)]

    def found() -> Iterator[tuple[str, str]]:
        for query in (one for file in files for one in open_queries(file.path)):
            target = next(map(pool.find, query.positives), None)
            if query.item.image and target is not None and target.text:
                yield query.item.image, target.text.replace('"', "'")  # as it is in a table

    texts = dict(islice(dict(found()).items(), most))
    if not texts:
        raise DataError("has no query with a picture whose positive has a text", str(root))
    return [Captioned(n, text, read_picture(root, image), n % len(texts) + 1)
            for n, (image, text) in zip(count(1), texts.items(), strict=False)]  # fmt: skip


def steps(kind: str, home: Path, model: str = "flagland-vlm") -> dict[str, str]:
    """What a user types in a folder after the import into ``r/KIND``: name of a step -> command.

    Pictures of candidates are described, else those of queries; a set without any is searched as
    it is.
    """
    root, about = f"r/{kind}", f"--root r/{kind} --store s/{kind}"
    if RootItems(home / root, "corpus").with_picture():
        return {"enrich": f"augment.corpus {about} --model {model}",
                "search": f"retrievers search {about} --checkpoint bm25 'red field'"}  # fmt: skip
    if RootItems(home / root, "query").with_picture():
        words = f"--query.view=replace --query.store=s/{kind}"
        return {"enrich": f"augment.queries {about} --model {model}",
                "search": f"retrievers bm25 --config=bm25 --root={root} --out=b/{kind} {words}"
                }  # fmt: skip
    return {"search": f"retrievers search --root {root} --checkpoint bm25 'red field'"}


def _run(home: Path, line: str) -> None:
    command = [sys.executable, "-m", *shlex.split(line)]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise DataError(f"exit status {done.returncode}: {done.stderr[-500:]}", line)


def _measured(kind: str, pairs: _Pairs) -> dict[str, dict[str, float]]:
    """Step -> seconds on the clock and of processors."""
    with tempfile.TemporaryDirectory(prefix="doors-") as folder:
        home = Path(folder)
        write_set(kind, home, pairs)
        done = {"import": cost(partial(_run, home, documented()[kind]))}
        for name, line in steps(kind, home).items():
            done[name] = cost(partial(_run, home, line))
    return {name: {"seconds": one.seconds, "cpu": one.cpu} for name, one in done.items()}


def measure(
    source: Path,
    items: int = 200,
    kinds: Sequence[str] = (),
    numbers: Path = RESULTS / "doors.json",
) -> Page:
    """Write, import, describe and search a set of each kind.

    Args:
        source: A data root: pictures of queries with the texts of their positives are taken.
        items: So many of them.
        kinds: Only these; none takes all that are not measured yet.
        numbers: JSON file that keeps what was measured; of other items, it is begun anew.
    """
    pairs = read_pairs(source, items)
    kept = read_json(numbers) if numbers.is_file() else {}
    if kept.get("items") != len(pairs):
        kept = {"items": len(pairs), "kinds": {}}
    for kind in kinds or [kind for kind in LAYOUTS if kind not in kept["kinds"]]:
        kept["kinds"][kind] = _measured(kind, pairs)
        write_json(numbers, kept)
        say(f"{kind}: {kept['kinds'][kind]}", sys.stderr)
    rows: list[Row] = [
        {"kind": kind, **{f"{name}, CPU s": own[name]["cpu"] if name in own else "-"
                          for name in ("import", "enrich", "search")},
         "CPU min": sum(one["cpu"] for one in own.values()) / 60,
         "min": sum(one["seconds"] for one in own.values()) / 60}
        for kind, own in kept["kinds"].items()
    ]  # fmt: skip
    return Page(
        "From other people's files to enriched search",
        f"{len(pairs)} pictures with their texts, written as a set of each kind; the documented "
        "commands, each a program of its own, the packaged models. Seconds of processors, which "
        "hardly depend on what else the machine does; on the clock (*min*) they do.",
        {"": rows},
    )
