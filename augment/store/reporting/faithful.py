"""Scores of faithfulness beside a store, as ``python -m augment scores --clip`` leaves them."""

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
from augment.records import Enrichment, Side
from augment.store.charts import Histogram, histogram
from augment.store.reporting.tally import Sample

#: Column -> what it is called, and how a low score is put.
_COLUMNS: Mapping[str, tuple[str, str]] = {
    "clip_cosine": (
        "CLIP cosine of the worst sentence",
        "CLIP finds a sentence unlike the picture",
    ),
    "clip_rank": ("CLIP rank of the worst sentence", "CLIP finds it fits other pictures better"),
    "clip_word": ("CLIP probability of the worst word", "CLIP doubts a word"),
}

#: Column of the word that fits worst; older tables have none.
_WORD = "clip_doubted"

#: Texts with a score below are doubted. A word's is less than chance among 16 rivals: of 40 true
#: texts of flags that flagland-clip was shown, it doubts 2 so, of 40 with one wrong fact 27, and of
#: 40 that belong to another flag 33 (``benchmarks.speed.checks``, seed 90210). By rank: 0, 0 and 12.
DOUBTFUL: Mapping[str, float] = {"clip_rank": 0.5, "clip_word": 0.05}


@final
@dataclass(frozen=True)
class Faithful:
    """What a CLIP model found of a recipe's texts.

    Attributes:
        model: that judged.
        scored: texts.
        plots: distributions.
        doubtful: texts with a sentence that fits the picture worse than half of the other texts'
            sentences do, or a word that fits worse than its rivals; see :data:`DOUBTFUL`.
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
        word = [_WORD] if _WORD in file.schema_arrow.names else []
        table = file.read(["item", *names, *word])
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
        doubt = pc.or_(doubt, pc.less(table[name], DOUBTFUL[name]))
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
    for name in reversed(names):  # of the reasons of a text, a word says most
        order = pc.select_k_unstable(table, samples, [(name, "ascending")])
        for row in table.take(order).to_pylist():
            text = texts.get(row["item"])
            if row[name] < DOUBTFUL[name] and text is not None and not text.rejected:
                why = _COLUMNS[name][1]
                if name == "clip_word" and row.get(_WORD):
                    why = f"CLIP doubts “{row[_WORD]}”"
                why = f"{why} ({row[name]:.2g})"
                found.setdefault(row["item"], Sample(row["item"], text, why))
    return list(found.values())
