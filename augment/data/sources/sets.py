"""Readers of published sets, by the files that their authors hand out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from augment.data.mmeb import read_subset, subset_names
from augment.data.sources.entries import Entries, LeftOut, SourceEntry, listed, objects, text_of
from augment.errors import DataError
from augment.files import packed, read_json, text_lines

#: BEIR's names of splits -> ours.
_SPLITS = {"train": "train", "dev": "val", "val": "val", "test": "test"}


def beir(source: Path) -> Entries:
    """BEIR (2104.08663): ``corpus.jsonl``, ``queries.jsonl``, ``qrels/{train,dev,test}.tsv``.

    Ids stay as they are. A candidate's text is its title, a blank, and its text, as in BEIR's own
    code. Queries that no file judges are left out; without any judgements all are kept.

    Args:
        source: The folder.
    """
    for _, row in objects(packed(source / "corpus.jsonl")):
        yield SourceEntry(str(row.get("_id", "")), text_of(row.get("title"), row.get("text")))
    judged = {
        ours: _beir_grades(source / "qrels" / f"{name}.tsv")
        for name, ours in _SPLITS.items()
        if (source / "qrels" / f"{name}.tsv").is_file()
    }
    path = packed(source / "queries.jsonl")
    for where, row in objects(path) if path.is_file() else ():
        name, text = str(row.get("_id", "")), text_of(row.get("text"))
        splits = [split for split, grades in judged.items() if name in grades]
        if judged and not splits:
            yield LeftOut("queries that no file of judgements has", where)
        for split in splits or ["test"] * (not judged):
            grades = judged[split][name] if judged else {}
            yield SourceEntry(name, text, None, "query", grades, split=split)


def _beir_grades(path: Path) -> dict[str, dict[str, int]]:
    grades: dict[str, dict[str, int]] = {}
    for number, line in text_lines(path):
        fields = line.split("\t")
        try:
            grade = int(fields[2])
        except (ValueError, IndexError) as error:
            if number == 1:  # the header
                continue
            raise DataError("expected query-id, corpus-id, score", f"{path}:{number}") from error
        grades.setdefault(fields[0], {})[fields[1]] = grade
    return grades


def coco(source: Path, split: str = "test") -> Entries:
    """COCO captions (1504.00325): pictures and captions are candidates, and queries of each other.

    Args:
        source: ``captions_*.json``; the pictures are below the folder of pictures.
        split: Of the queries: train, val or test.
    """
    told = read_json(source)
    files = {image["id"]: image["file_name"] for image in told["images"]}
    own: dict[int, list[tuple[str, str]]] = {image: [] for image in files}
    for row in told["annotations"]:
        own[row["image_id"]].append((f"c{row['id']}", str(row["caption"])))
    for image, captions in own.items():
        yield from captioned(f"i{image}", files[image], captions, split)


def captioned(name: str, image: str, captions: list[tuple[str, str]], split: str) -> Entries:
    """A picture with its captions: all are candidates, and queries of each other.

    Args:
        name: id of the picture.
        image: its path.
        captions: id and text of each.
        split: of the queries.
    """
    yield SourceEntry(name, None, image)
    yield SourceEntry(name, None, image, "query", {did: 1 for did, _ in captions}, split=split)
    for did, text in captions:
        yield SourceEntry(did, text)
        yield SourceEntry(did, text, None, "query", {name: 1}, split=split)


def flickr30k(source: Path) -> Entries:
    """Karpathy's splits (1412.2306) of Flickr30k, Flickr8k or COCO: ``dataset_*.json``.

    Pictures and captions are candidates, and queries of each other; ``restval`` counts as train.

    Args:
        source: The JSON file; the pictures are below the folder of pictures.
    """
    for image in read_json(source)["images"]:
        path = str(Path(image.get("filepath", ""), image["filename"]))
        captions = [(f"c{one['sentid']}", str(one["raw"])) for one in image["sentences"]]
        split = {"restval": "train"}.get(image["split"], image["split"])
        yield from captioned(f"i{image['imgid']}", path, captions, split)


def urban1k(source: Path) -> Entries:
    """Urban-1k (2403.15378): ``image/N.jpg`` and its long caption ``caption/N.txt``.

    Args:
        source: The folder that holds both; it is the folder of pictures, too.
    """
    for path in sorted((source / "caption").glob("*.txt")):
        found = [one for one in (source / "image").glob(f"{path.stem}.*") if one.is_file()]
        if not found:
            yield LeftOut("captions without a picture", str(path))
            continue
        captions = [(f"c{path.stem}", path.read_text("utf-8", "replace").strip())]
        yield from captioned(f"i{path.stem}", f"image/{found[0].name}", captions, "test")


def sugarcrepe(source: Path) -> Entries:
    """SugarCrepe (2306.14610): a picture is asked for the true one of two captions, all in a pool.

    Its accuracy is the success@1 among each query's own two (``evaluate --subsets``).

    Args:
        source: The folder of ``add_obj.json`` and the others; each becomes a data set.
    """
    for path in sorted(source.glob("*.json")):
        pool = f"sugarcrepe-{path.stem.replace('_', '-')}"
        for number, row in read_json(path).items():
            names = [f"{pool}-{number}-{which}" for which in ("true", "false")]
            texts = (row["caption"], row["negative_caption"])
            yield from (
                SourceEntry(did, str(text), pool=pool)
                for did, text in zip(names, texts, strict=True)
            )
            yield SourceEntry(f"{pool}-{number}", None, row["filename"], "query", {names[0]: 1},
                        subset=names, pool=pool)  # fmt: skip


def cirr(source: Path, split: str = "val") -> Entries:
    """CIRR (2108.04024): the picture that is changed is left out of its ranking, as its code does.

    ``R_subset@k`` is ``evaluate --subsets``; the labels of test1 are on the authors' server.

    Args:
        source: The folder that holds ``captions`` and ``image_splits``.
        split: train, val or test1.
    """
    paths = _one(source, f"image_splits/split.*.{split}.json")
    yield from (SourceEntry(name, None, path) for name, path in paths.items())
    for row in _one(source, f"captions/cap.*.{split}.json"):
        target, own = row.get("target_hard"), row["reference"]
        members = [name for name in row["img_set"]["members"] if name != own]
        yield SourceEntry(
            str(row["pairid"]), str(row["caption"]), paths[own], "query",
            {target: 1} if target else {}, (own,), members, split=split.removesuffix("1"),
            source=row,
        )  # fmt: skip


def _one(source: Path, pattern: str) -> Any:
    found = sorted(path for path in source.glob(pattern) if "_ext" not in path.name)
    if len(found) != 1:
        raise DataError(f"{len(found)} files are called {pattern}; expected one", str(source))
    return read_json(found[0])


def fashioniq(source: Path, split: str = "val", join: str = " and ") -> Entries:
    """FashionIQ (1905.12794): a data set for dresses, shirts and tops each; R@10 is success@10.

    The changed picture stays in the pool, as in its code; ``--own_picture`` leaves it out.

    Args:
        source: The folder that holds ``captions`` and ``image_splits``.
        split: train, val or test.
        join: Stands between the two captions of a query.
    """
    for kind in ("dress", "shirt", "toptee"):
        pool, seen = f"fashioniq-{kind}", Counter[str]()
        for name in read_json(source / f"image_splits/split.{kind}.{split}.json"):
            yield SourceEntry(f"{kind}-{name}", None, name, pool=pool)
        for _, row in listed(source / f"captions/cap.{kind}.{split}.json"):
            own, target = row["candidate"], row.get("target")
            seen[own] += 1
            yield SourceEntry(
                f"{kind}-{own}-{seen[own]}", join.join(map(str, row["captions"])), own, "query",
                {f"{kind}-{target}": 1} if target else {}, pool=pool, split=split,
            )  # fmt: skip


def circo(source: Path, split: str = "val") -> Entries:
    """CIRCO (2303.15247) over COCO's unlabeled pictures: several are right; its own is left out.

    Its mAP@k is MAP at that depth; the labels of test are on the authors' server.

    Args:
        source: The folder that holds ``annotations`` and ``image_info_unlabeled2017.json``.
        split: val or test.
    """
    files = {
        str(one["id"]): one["file_name"]
        for one in _one(source, "**/image_info_unlabeled2017.json")["images"]
    }
    yield from (SourceEntry(name, None, path) for name, path in files.items())
    for _, row in listed(source / "annotations" / f"{split}.json"):
        own = str(row["reference_img_id"])
        grades = {str(one): 1 for one in row.get("gt_img_ids", ())}
        text = text_of(row["relative_caption"])
        yield SourceEntry(f"q{row['id']}", text, files.get(own, own), "query", grades, (own,),
                    split=split, source=row)  # fmt: skip


def mmeb(source: Path) -> Entries:
    """MMEB (2410.05160), versions 1 and 2: a data set each, and each query's own list as a subset.

    Its hit@1 is the success@1 among the own list (``evaluate --subsets``, or ``retrievers mmeb``).

    Args:
        source: The folder of its data sets.
    """
    for name in subset_names(source):
        subset, pool = read_subset(source, name), f"mmeb-{name.lower().replace('_', '-')}"
        for row, target in enumerate(subset.candidates):
            yield SourceEntry(subset.did(row), target.text, target.image, pool=pool)
        for row, (query, own) in enumerate(zip(subset.queries, subset.lists, strict=True)):
            dids = [subset.did(place) for place in own]
            yield SourceEntry(subset.qid(row), query.text, query.image, "query", {dids[0]: 1},
                              subset=dids, pool=pool)  # fmt: skip


def bright(source: Path, domain: str | None = None) -> Entries:
    """BRIGHT (2407.12883), a folder of its Parquet files; what ``excluded_ids`` name is left out.

    Args:
        source: The folder that holds ``documents`` and ``examples``.
        domain: One of its domains, such as biology; null takes all, a data set each.
    """
    for name in sorted({path.name.partition("-")[0] for path in source.glob("examples/*.parquet")}):
        if domain in (None, name):
            pool = f"bright-{name.replace('_', '-')}"
            for row in _parquet(source / "documents", name):
                yield SourceEntry(f"{name}:{row['id']}", text_of(row["content"]), pool=pool)
            for row in _parquet(source / "examples", name):
                gold, out = (_named(name, row.get(key)) for key in ("gold_ids", "excluded_ids"))
                yield SourceEntry(f"{name}:q{row['id']}", text_of(row["query"]), None, "query",
                            dict.fromkeys(gold, 1), out, pool=pool)  # fmt: skip


def _named(domain: str, ids: Any) -> list[str]:
    """Ids with their domain; "N/A" stands for none in the published files."""
    return [f"{domain}:{one}" for one in ids or () if one != "N/A"]


def _parquet(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for path in sorted(folder.glob(f"{name}-*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(256):
            yield from batch.to_pylist()
