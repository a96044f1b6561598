"""Scores of faithfulness beside a store, as ``python -m augment.scores --clip`` leaves them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from augment.errors import StoreError
from augment.plots import Histogram, histogram
from augment.records import Enrichment, Side
from augment.reporting.tally import Sample

#: Column -> what it is called, and how a low score is put.
_COLUMNS: Mapping[str, tuple[str, str]] = {
    "clip_cosine": (
        "CLIP cosine of the worst sentence",
        "CLIP finds a sentence unlike the picture",
    ),
    "clip_rank": ("CLIP rank of the worst sentence", "CLIP finds it fits other pictures better"),
    "clip_word": ("CLIP probability of the worst word", "CLIP doubts a word"),
}

#: Texts with a rank or a probability below this are shown among the worst.
DOUBTFUL = 0.5


@final
@dataclass(frozen=True)
class Faithful:
    """What a CLIP model found of a recipe's texts.

    Attributes:
        model: that judged.
        scored: texts.
        plots: distributions.
        doubtful: texts that fit fewer than half of the other pictures' rivals; see
            :data:`DOUBTFUL`.
        worst: a few of them, the worst first.
    """

    model: str
    scored: int
    plots: Sequence[Histogram]
    doubtful: int
    worst: Sequence[Sample]


def place(store: Path, side: Side, recipe: str) -> Path:
    """Where the scores of a recipe lie."""
    return store / "scores" / f"{side}-{recipe}.parquet"


def load_faithful(
    store: Path, side: Side, recipe: str, texts: Mapping[str, Enrichment], samples: int
) -> Faithful | None:
    """Read the scores of a recipe; None if there are none.

    Args:
        store: folder of the store.
        side: query or corpus.
        recipe: id.
        texts: item id -> text, for the samples.
        samples: how many of the worst to keep.

    Raises:
        StoreError: if the table cannot be read.
    """
    path = place(store, side, recipe)
    if not path.is_file():
        return None
    try:
        file = pq.ParquetFile(path)
        names = [name for name in _COLUMNS if name in file.schema_arrow.names]
        table = file.read(["item", *names])
        model = (file.schema_arrow.metadata or {}).get(b"clip", b"unknown").decode()
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot read the scores: {error}; delete the file") from error
    if not names:
        return None
    table = table.filter(pc.is_valid(table[names[0]]))
    plots = [
        histogram(_COLUMNS[name][0], counts, whole=False)
        for name in names
        if len(counts := _rounded(table[name])) > 2
    ]
    judged = [name for name in names if name != "clip_cosine"]
    doubt = pa.array([False] * len(table))
    for name in judged:
        doubt = pc.or_(doubt, pc.less(table[name], DOUBTFUL))
    return Faithful(
        model, len(table), plots, pc.sum(doubt).as_py() or 0, _worst(table, judged, texts, samples)
    )


def _rounded(column: Any) -> Counter[float]:
    values = pc.value_counts(pc.round(column.combine_chunks(), 2)).to_pylist()
    return Counter({one["values"]: one["counts"] for one in values})


def _worst(
    table: Any, names: Sequence[str], texts: Mapping[str, Enrichment], samples: int
) -> list[Sample]:
    found: dict[str, Sample] = {}
    for name in names:
        order = pc.select_k_unstable(table, samples, [(name, "ascending")])
        for row in table.take(order).select(["item", name]).to_pylist():
            text = texts.get(row["item"])
            if row[name] < DOUBTFUL and text is not None and not text.rejected:
                why = f"{_COLUMNS[name][1]} ({row[name]:.2g})"
                found.setdefault(row["item"], Sample(row["item"], text, why))
    return list(found.values())
