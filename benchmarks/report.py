"""The demo's report: one static page with the table, a chart and pictures with their texts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

from augment.columnar import open_candidates, open_queries
from augment.html import environment, save_page
from augment.mbeir import DataRoot
from augment.records import Item, Side
from augment.reporting.collect import Card, Cards
from augment.reporting.items import Items
from augment.reporting.tally import Sample
from augment.store import Store
from retrievers.compare import Comparison

mpl.use("Agg")
from matplotlib import pyplot as plt

_TEMPLATE = Path(__file__).with_name("comparison.html")


def chart(comparison: Comparison) -> bytes:
    """A bar chart of the comparison, PNG."""
    figure, axes = plt.subplots(figsize=(8.5, 3.8), dpi=110)
    places = range(len(comparison.rows))
    for i, name in enumerate(comparison.names):
        heights = [100 * (row.second if i else row.first) for row in comparison.rows]
        offset = (i - 0.5) * 0.38
        bars = axes.bar([p + offset for p in places], heights, 0.36, label=name,
                        color=("#9aa5b1", "#1f6feb")[i])  # fmt: skip
        axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
    labels = [row.name.replace(": ", "\n").replace(" → ", "\n→ ") for row in comparison.rows]
    axes.set_xticks(list(places), labels, fontsize=8)
    axes.set_ylabel(f"{comparison.metric}, %")
    axes.set_ylim(0, 105)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", ncols=2, bbox_to_anchor=(0, 1.12))
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


def _samples(store: Store, items: Sequence[Item], side: Side) -> list[Sample]:
    texts = store.texts(side)
    found = ((item.id, texts.get(item.id)) for item in items if item.image is not None)
    return [Sample(name, text) for name, text in found if text is not None and not text.rejected]


def examples(root: Path, store: Path, each: int = 2) -> list[Card]:
    """A few items with pictures of every query file and pool, evenly spread."""
    data, opened = DataRoot(root), Store(store)
    queries, candidates = (
        Cards(Items(root, "query"), root, {}),
        Cards(Items(root, "corpus"), root, {}),
    )
    cards: list[Card] = []
    for file in data.query_files("test"):
        items = [query.item for query in open_queries(file.path)]
        chosen = items[:: max(1, len(items) // each)][:each]
        cards += queries.cards(_samples(opened, chosen, "query"))
    for file in data.pools():
        if file.task in (0, 2):
            pool = list(open_candidates(file.path))
            chosen = pool[:: max(1, len(pool) // each)][:each]
            cards += candidates.cards(_samples(opened, chosen, "corpus"))
    return cards


def write_report(
    out: Path,
    comparison: Comparison,
    root: Path,
    store: Path,
    notes: Sequence[str],
    times: Mapping[str, float],
) -> None:
    """Write ``report.html``, ``table.md`` and ``chart.png`` to ``out``.

    Everything shown is escaped; the page needs no network and works from ``file://``.
    """
    (out / "chart.png").write_bytes(chart(comparison))
    (out / "table.md").write_text(comparison.table() + "\n", encoding="utf-8")
    template = environment().from_string(_TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        comparison=comparison,
        notes=notes,
        cards=examples(root, store),
        times=times,
    )
    save_page(out / "report.html", page)
