"""Readers of published sets, by the files that their authors hand out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from augment.data.mmeb import PAGE, read_subset, reworded, subset_names
from augment.data.mmeb.videos import CLIP, SOUGHT
from augment.data.root import open_instructions
from augment.data.sources.entries import (
    Entries,
    LeftOut,
    SourceEntry,
    extras,
    listed,
    text_of,
)
from augment.data.sources.parquet import SPLITS
from augment.errors import DataError
from augment.files import objects, packed, read_json, text_lines


def beir(source: Path) -> Entries:
    """BEIR (2104.08663): ``corpus.jsonl``, ``queries.jsonl``, ``qrels/{train,dev,test}.tsv``.

    Ids stay as they are. A candidate's text is its title, a blank, and its text, as in BEIR's own
    code. Queries that no file judges are left out; without any judgements all are kept. Our own
    exports name pictures, and the splits of queries without judgements, under ``metadata``.

    Args:
        source: The folder.
    """
    for _, row in objects(packed(source / "corpus.jsonl")):
        text, about = text_of(row.get("title"), row.get("text")), row.get("metadata") or {}
        name = str(row.get("_id", ""))
        yield SourceEntry(name, text, about.get("image"), source=about.get("src_content"))
    judged = {
        ours: _beir_grades(source / "qrels" / f"{name}.tsv")
        for name, ours in SPLITS.items()
        if (source / "qrels" / f"{name}.tsv").is_file()
    }
    path = packed(source / "queries.jsonl")
    for where, row in objects(path) if path.is_file() else ():
        name, text = str(row.get("_id", "")), text_of(row.get("text"))
        about = row.get("metadata") or {}
        splits = [split for split, grades in judged.items() if name in grades]
        splits = splits or [one for one in [about.get("split")] if one]
        if judged and not splits:
            yield LeftOut("queries that no file of judgements has", where)
        for split in splits or ["test"] * (not judged):
            grades = judged.get(split, {}).get(name, {})
            yield SourceEntry(name, text, about.get("image"), "query", grades, split=split,
                              **extras(about))  # fmt: skip


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


def visdial(source: Path, corpus: Path | None = None, rounds: int = 10) -> Entries:
    """VisDial (1611.08669) as retrieval: a caption, questions and answers ask for the picture.

    Reads ``visdial_1.0_*.json`` (``data`` with questions, answers, dialogs) and the dialogues of
    ChatIR (2305.20062; levymsn/ChatIR: ``img``, ``dialog``), whose rounds stand in one text with
    ``, `` between them. Its Hits@10 after n rounds is the success@10 of ``--rounds n``.

    Args:
        source: The JSON file.
        corpus: ChatIR's list of paths that are searched; null: the pictures of the dialogues.
        rounds: Questions with answers behind the caption, 0 to 10.
    """
    told, split = read_json(source), next((s for s in ("train", "val") if s in source.name), "test")
    if isinstance(told, dict):
        words = {name: told["data"][name] for name in ("questions", "answers")}
        told = [
            {"img": f"VisualDialog_{split}2018_{row['image_id']:012}.jpg",
             "dialog": [row["caption"], *(
                 f"{words['questions'][turn['question']]}? {words['answers'][turn['answer']]}"
                 for turn in row["dialog"] if "answer" in turn)]}
            for row in told["data"]["dialogs"]
        ]  # fmt: skip
    paths = read_json(corpus) if corpus else (row["img"] for row in told)
    yield from (SourceEntry(path, None, path) for path in dict.fromkeys(paths))
    for number, row in enumerate(told):
        text = ", ".join(row["dialog"][: rounds + 1])
        yield SourceEntry(f"d{number}", text, None, "query", {row["img"]: 1}, split=split)


def vist(source: Path, split: str = "test") -> Entries:
    """VIST (1604.03968): ``SPLIT.story-in-sequence.json``; a story asks for each of its pictures.

    Annotations are lists of one (tkim-snu/GLACNet, vist.py). A query is the story up to and with
    the sentence of its picture, in the order of ``worker_arranged_photo_order``.

    Args:
        source: The file; a picture is ``ID.jpg`` (any ending) below the folder of pictures.
        split: Of the queries: train, val or test.
    """
    told, stories = read_json(source), dict[str, list[dict[str, Any]]]()
    yield from (SourceEntry(str(one["id"]), None, str(one["id"])) for one in told["images"])
    for (row,) in told["annotations"]:
        stories.setdefault(str(row["story_id"]), []).append(row)
    for name, rows in stories.items():
        rows.sort(key=lambda row: int(row["worker_arranged_photo_order"]))
        for number, row in enumerate(rows, start=1):
            text = text_of(*(one["text"] for one in rows[:number]))
            yield SourceEntry(f"{name}-{number}", text, None, "query",
                              {str(row["photo_flickr_id"]): 1}, split=split)  # fmt: skip


def sharegpt4v(source: Path, split: str = "test", first: int | None = 1000) -> Entries:
    """ShareGPT4V (2311.12793): a picture and its long caption, the answer of its conversation.

    Long-CLIP (2403.15378; beichenzbc/Long-CLIP) tests on the first 1000 records.

    Args:
        source: ``share-captioner_coco_lcs_sam_1246k_1107.json`` or another of its files.
        split: Of the queries: train, val or test.
        first: So many records; null takes all.
    """
    for number, (_, row) in enumerate(listed(source)):
        if number == first:
            break
        captions = [(f"c{number}", str(row["conversations"][1]["value"]).strip())]
        yield from captioned(f"i{number}", row["image"], captions, split)


def genecis(source: Path) -> Entries:
    """GeneCIS (2306.07969): a picture and a word ask for the one of 15 that is alike in that.

    A data set for each of its four files (facebookresearch/genecis, README and datasets/). Objects
    are ``val_image_id`` of COCO 2017; attributes are ``instance_bbox`` in ``image_id`` of Visual
    Genome, cut out, wider by 0.7 on each side, and made square, as its code does. Recall@k is the
    success@k among each query's own list (``evaluate --subsets``).

    Args:
        source: The folder of the JSON files; pictures of both sets lie in the one of ``--images``.
    """
    for path in sorted(source.glob("*.json")):
        pool, known = f"genecis-{path.stem.replace('_', '-')}", set[str]()
        for number, (_, row) in enumerate(listed(path)):
            own = [_genecis(one, pool) for one in (row["target"], *row["gallery"])]
            yield from (one for one in own if one.id not in known)
            known |= {one.id for one in own}
            dids = [one.id for one in own]
            yield replace(
                _genecis(row["reference"], pool), id=f"{path.stem}-{number}", text=row["condition"],
                side="query", grades={dids[0]: 1}, subset=dids,
            )  # fmt: skip


def _genecis(row: dict[str, Any], pool: str) -> SourceEntry:
    if "val_image_id" in row:
        name = f"{row['val_image_id']:012}"
        return SourceEntry(name, None, f"{name}.jpg", pool=pool)
    x, y, width, height = row["instance_bbox"]
    left, top = max(0, x - 0.7 * width), max(0, y - 0.7 * height)
    name = "-".join(map(str, (row["image_id"], x, y, width, height)))
    box = (left, top, left + 1.7 * width, top + 1.7 * height)
    return SourceEntry(name, None, f"{row['image_id']}.jpg", pool=pool, box=box)


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


def mmeb(
    source: Path, train: Path | None = None, files: str = "original", instructions: str = "",
    clips: Path | None = None,
) -> Entries:  # fmt: skip
    """MMEB (2410.05160), versions 1 and 2: a data set each, and each query's own list as a subset.

    Its hit@1 is the success@1 among the own list (``evaluate --subsets``, or ``retrievers mmeb``).
    A video is its first frame, or 8 frames beside one another with ``--several beside``; what the
    authors say of every video and page stands in no candidate's text.

    Args:
        source: The folder of its data sets.
        train: The folder of MMEB-train's, which become data sets of their own (``-train``).
        files: Which of them: original or diverse_instruction.
        instructions: A table in place of what the queries of a data set begin with, as for
            ``retrievers mmeb``: a file, or ``rge``.
        clips: The folder of videos' frames, whose folders are the clips of QVHighlight and
            Charades-STA; null: the source.
    """
    table = open_instructions(instructions) if instructions else None
    parts = [(source, "test", "test"), *([(train, files, "train")] if train else [])]
    for folder, begun, split in parts:
        for name in subset_names(folder, begun):
            subset = read_subset(folder, name, files=begun, images=clips)
            subset = subset if table is None else reworded(subset, table)
            mark, more = ("train-", "-train") if split == "train" else ("", "")
            pool = f"mmeb-{name}{more}"
            for row, target in enumerate(subset.candidates):
                text = None if target.text in (PAGE, CLIP, SOUGHT) else target.text
                yield SourceEntry(mark + subset.did(row), text, target.image, pool=pool)
            for row, (query, own) in enumerate(zip(subset.queries, subset.lists, strict=True)):
                places = () if isinstance(own, range) else own
                dids = [mark + subset.did(place) for place in places]
                right = {mark + subset.did(place): to for place, to in subset.right[row].items()}
                grades = {**dict.fromkeys(dids if mark else (), 0), **right}
                yield SourceEntry(mark + subset.qid(row), query.text, query.image, "query", grades,
                                  subset=() if mark else dids, pool=pool, split=split)  # fmt: skip
