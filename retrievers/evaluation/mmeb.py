"""MMEB's 36 image data sets (VLM2Vec, 2410.05160): files, candidate lists, hit@1, category means.

A data set is a folder of parquet files, or a ``.jsonl`` file, with a row for each query::

    qry_text, qry_img_path       the query; "" is absent. Version 2 has its instruction in qry_inst
    tgt_text[], tgt_img_path[]   its own candidates, parallel lists; the first one is right.
                                 Version 2 has an instruction in tgt_inst

Every query is ranked against its own list. A candidate is its text and its picture together, so
that a list naming the right one twice does not punish finding the second; ties go by id, as
everywhere in this package (the authors' code takes whatever sorts first).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augment.errors import DataError
from augment.files import text_lines
from retrievers.evaluation.metrics import score_run
from retrievers.evaluation.run import RunTable
from retrievers.training.provenance import source_commit, versions

#: Category -> data sets, as published folders are called (2410.05160, Table 1).
CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "classification": (
        "ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397", "Place365", "ImageNet-A",
        "ImageNet-R", "ObjectNet", "Country211",
    ),
    "vqa": (
        "OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W", "ScienceQA",
        "VizWiz", "GQA", "TextVQA",
    ),
    "retrieval": (
        "VisDial", "CIRR", "VisualNews_t2i", "VisualNews_i2t", "MSCOCO_t2i", "MSCOCO_i2t",
        "NIGHTS", "WebQA", "FashionIQ", "Wiki-SS-NQ", "OVEN", "EDIS",
    ),
    "grounding": ("MSCOCO", "RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing"),
}  # fmt: skip

#: Those with a training subset; the other 16 are out of distribution.
IN_DISTRIBUTION = frozenset(
    (
        "ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397", "OK-VQA", "A-OKVQA",
        "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W", "VisDial", "CIRR", "VisualNews_t2i",
        "VisualNews_i2t", "MSCOCO_t2i", "MSCOCO_i2t", "NIGHTS", "WebQA", "MSCOCO",
    )
)  # fmt: skip

#: Phi-3's mark of a picture, which the published texts carry.
_IMAGE_MARK = "<|image_1|>"
_KNOWN = frozenset(name for names in CATEGORIES.values() for name in names)
#: Scores are rounded so, as those of the indexes, before ties are settled by id.
_DECIMALS = 6


class Target(NamedTuple):
    """A query or candidate: text and picture path, either may be None."""

    text: str | None
    image: str | None


@dataclass(frozen=True)
class Subset:
    """One data set.

    Attributes:
        name: as its folder.
        queries: in file order.
        candidates: each once, in order of first appearance.
        lists: for each query the places of its candidates, the right one first.
    """

    name: str
    queries: list[Target] = field(default_factory=list)
    candidates: list[Target] = field(default_factory=list)
    lists: list[tuple[int, ...]] = field(default_factory=list)

    def qid(self, row: int) -> str:
        """Id of a query, by its row from 0."""
        return f"{self.name}:q{row + 1}"

    def did(self, row: int) -> str:
        """Id of a candidate, by its place from 0."""
        return f"{self.name}:c{row + 1}"

    @property
    def grades(self) -> dict[str, dict[str, int]]:
        """The right candidate of each query."""
        return {self.qid(row): {self.did(own[0]): 1} for row, own in enumerate(self.lists)}


def subset_names(root: Path) -> list[str]:
    """Data sets of a folder, those of MMEB in its order, then others by name.

    Raises:
        DataError: if there are none.
    """
    if not root.is_dir():
        raise DataError("no such folder", str(root))
    found = {path.stem for path in root.glob("*.jsonl")}
    found |= {path.name for path in root.iterdir() if path.is_dir() and _parquet(path)}
    if not found:
        raise DataError("holds no data set; expected NAME/test-*.parquet or NAME.jsonl", str(root))
    known = [name for names in CATEGORIES.values() for name in names if name in found]
    return [*known, *sorted(found - _KNOWN)]


def read_subset(root: Path, name: str, limit: int | None = None) -> Subset:
    """Read one data set.

    Args:
        root: folder of the data sets.
        name: one of :func:`subset_names`.
        limit: only so many queries.

    Raises:
        DataError: with file and row, if there is none, a column is missing, the lists of a row are
            empty or not parallel, or a query or candidate has neither text nor picture.
    """
    subset = Subset(name)
    places: dict[Target, int] = {}
    for where, row in _rows(root, name):
        if limit is not None and len(subset.queries) >= limit:
            break
        query = _target(row, "qry", row.get("qry_text"), row.get("qry_img_path"), where)
        texts, images = row.get("tgt_text"), row.get("tgt_img_path")
        if not isinstance(texts, list) or not isinstance(images, list):
            raise DataError("tgt_text and tgt_img_path must be lists", where)
        if len(texts) != len(images) or not texts:
            raise DataError(
                f"{len(texts)} texts and {len(images)} pictures; a query needs parallel lists of "
                "at least one candidate, the right one first",
                where,
            )
        targets = [
            _target(row, "tgt", *both, f"{where}: candidate {n}")
            for n, both in enumerate(zip(texts, images, strict=True), start=1)
        ]
        own = dict.fromkeys(places.setdefault(target, len(places)) for target in targets)
        subset.queries.append(query)
        subset.lists.append(tuple(own))
    if not subset.queries:
        raise DataError("holds no query", str(root / name))
    subset.candidates.extend(places)
    return subset


def _rows(root: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    file = root / f"{name}.jsonl"
    if file.is_file():
        for number, line in text_lines(file):
            where = f"{file}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"is not a line of JSON: {error}", where) from error
            if not isinstance(row, dict):
                raise DataError("expected a JSON object", where)
            yield where, row
        return
    for path in _parquet(root / name):
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"is no parquet file: {error}", str(path)) from error
        lacking = {"qry_text", "qry_img_path", "tgt_text", "tgt_img_path"} - set(table.column_names)
        if lacking:
            raise DataError(f"lacks the columns {', '.join(sorted(lacking))}", str(path))
        for batch in table.to_batches(max_chunksize=64):
            for number, row in enumerate(batch.to_pylist(), start=1):
                yield f"{path}: row {number}", row


def _parquet(folder: Path) -> list[Path]:
    """Files as published (``test-00000-of-00001.parquet``) or as converted (``test/0000``)."""
    return sorted({*folder.glob("test*.parquet"), *folder.glob("test/*.parquet")})


def _target(row: Mapping[str, Any], side: str, text: object, image: object, where: str) -> Target:
    if not isinstance(text, str | None) or not isinstance(image, str | None):
        raise DataError(f"{side}_text and {side}_img_path must be strings", where)
    instruction = row.get(f"{side}_inst") or ""
    # The published text, with the mark of another model's picture taken out.
    parts = [str(part).replace(_IMAGE_MARK, "").strip() for part in (instruction, text or "")]
    joined = " ".join(part for part in parts if part)
    if not joined and not image:
        raise DataError("has neither text nor picture", where)
    return Target(joined or None, image or None)


def rank_lists(subset: Subset, queries: np.ndarray, candidates: np.ndarray) -> RunTable:
    """Rank every query's own list by inner product.

    Args:
        subset: the data set.
        queries: unit vectors, one row a query.
        candidates: unit vectors, one row a candidate.

    Raises:
        DataError: if a vector is not finite.
    """
    sizes = [len(own) for own in subset.lists]
    query = np.repeat(np.arange(len(subset.lists)), sizes)
    rows = np.array([place for own in subset.lists for place in own], dtype=np.int64)
    scores = [candidates[list(own)] @ queries[n] for n, own in enumerate(subset.lists)]
    return RunTable(
        [subset.qid(row) for row in range(len(subset.queries))],
        [subset.did(row) for row in range(len(subset.candidates))],
        query,
        rows,
        np.round(np.concatenate(scores).astype(np.float64), _DECIMALS),
    )


@dataclass(frozen=True)
class Score:
    """Scores of one data set.

    Attributes:
        subset: its name.
        category: one of :data:`CATEGORIES`, or "other".
        queries: how many.
        candidates: distinct ones.
        metrics: success@1 (MMEB's Precision@1, hit@1), success@5, mrr, ndcg@5; shares of 1.
    """

    subset: str
    category: str
    queries: int
    candidates: int
    metrics: Mapping[str, float]


def score_subset(subset: Subset, run: RunTable) -> Score:
    """Score a run of one data set; a query that the run lacks counts 0."""
    metrics = score_run(run, subset.grades, ("success@1", "success@5", "mrr", "ndcg@5")).means()
    category = next((c for c, names in CATEGORIES.items() if subset.name in names), "other")
    return Score(subset.name, category, len(subset.queries), len(subset.candidates), metrics)


def summary(scores: Iterable[Score], metric: str = "success@1") -> dict[str, float]:
    """Plain means over data sets: of each category, in and out of distribution, of all.

    Data sets that are not MMEB's count in none but their own ("other").
    """
    found = list(scores)
    known = [score for score in found if score.subset in _KNOWN]
    groups = {category: [s for s in found if s.category == category] for category in CATEGORIES}
    groups["other"] = [score for score in found if score.category == "other"]
    groups["in distribution"] = [s for s in known if s.subset in IN_DISTRIBUTION]
    groups["out of distribution"] = [s for s in known if s.subset not in IN_DISTRIBUTION]
    groups["all"] = known
    return {
        name: sum(score.metrics[metric] for score in group) / len(group)
        for name, group in groups.items()
        if group
    }


def table(scores: Sequence[Score]) -> str:
    """Markdown: a row a data set, then the means; hit@1 in per cent."""
    lines = ["| data set | category | queries | hit@1 | hit@5 |", "|---|---|--:|--:|--:|"]
    for score in scores:
        hit = [f"{100 * score.metrics[name]:.1f}" for name in ("success@1", "success@5")]
        lines.append(
            f"| {score.subset} | {score.category} | {score.queries} | {hit[0]} | {hit[1]} |"
        )
    for name, value in summary(scores).items():
        lines.append(f"| mean: {name} | | | {100 * value:.1f} | |")
    known = sum(score.subset in _KNOWN for score in scores)
    if 0 < known < len(_KNOWN):
        lines += ["", f"{known} of MMEB's {len(_KNOWN)} image data sets."]
    return "\n".join(lines)


def record(scores: Sequence[Score], settings: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Everything as JSON: scores, means, settings, commit, versions, cost."""
    items = sum(score.queries + score.candidates for score in scores)
    return {
        "rows": [asdict(score) for score in scores],
        "mean": summary(scores),
        "settings": dict(settings),
        "commit": source_commit(),
        "versions": versions(),
        "cost": {
            "seconds": round(seconds, 3),
            "items": items,
            "items_per_second": round(items / max(seconds, 1e-9), 1),
        },
    }
