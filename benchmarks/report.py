"""The demo's report: one static page with the table, a chart and pictures with their texts."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from jinja2 import Environment, StrictUndefined
from PIL import Image

from augment.columnar import open_candidates, open_queries
from augment.images import open_image
from augment.mbeir import DataRoot
from augment.records import Item, Side
from augment.views import open_view
from benchmarks.compare import Comparison

mpl.use("Agg")
from matplotlib import pyplot as plt

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Raw against enriched text</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem;
  color: #1c1c1e; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { font-weight: 600; border-top: 2px solid #888; }
img { max-width: 100%; height: auto; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
.card { border: 1px solid #ddd; border-radius: .4rem; padding: .7rem; overflow-wrap: anywhere; }
.card img { display: block; width: 100%; height: 9rem; object-fit: contain; background: #f4f4f5; }
.card p { margin: .5rem 0 0; font-size: .9rem; } .label { color: #6b6b70; font-size: .78rem; }
.note { color: #444; }
</style></head><body>
<h1>Raw against enriched text, each trained on</h1>
<p class="note">A miniature: it supports the mechanism and says nothing about the size of the
effect on real data.</p>
<div class="wide"><table><thead><tr>
<th>task ({{ comparison.pool }} pool, {{ comparison.metric }}, %)</th><th>queries</th>
{% for name in comparison.names %}<th>{{ name }}</th>{% endfor %}
<th>difference, 95 % interval</th></tr></thead><tbody>
{% for row in comparison.rows %}<tr><td>{{ row.name }}</td><td>{{ row.queries }}</td>
<td>{{ "%.1f" % (100 * row.first) }}</td><td>{{ "%.1f" % (100 * row.second) }}</td>
<td>{{ "%+.1f" % (100 * row.difference.mean) }}
[{{ "%+.1f" % (100 * row.difference.low) }}, {{ "%+.1f" % (100 * row.difference.high) }}]</td></tr>
{% endfor %}</tbody></table></div>
<p><img alt="Scores per task, raw and enriched" src="data:image/png;base64,{{ chart }}"></p>
{% for note in notes %}<p class="note">{{ note }}</p>{% endfor %}
<h2>Pictures and what was written about them</h2>
<div class="cards">{% for card in cards %}<div class="card">
<img alt="" src="data:image/jpeg;base64,{{ card.image }}">
<p><span class="label">{{ card.id }}, as published</span><br>{{ card.raw or "no text" }}</p>
<p><span class="label">generated</span><br>{{ card.text }}</p></div>{% endfor %}</div>
<h2>Time</h2><div class="wide"><table><tbody>
{% for name, seconds in times.items() %}<tr><td>{{ name }}</td><td>{{ seconds }} s</td></tr>
{% endfor %}</tbody></table></div>
</body></html>
"""


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


def _jpeg(image: Image.Image) -> str:
    image.thumbnail((320, 320))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def _cards(root: Path, store: Path, items: Sequence[Item], side: Side) -> list[dict[str, str]]:
    view = open_view(side, "replace", store)
    cards = []
    for item in items:
        written = view.enrichment(item.id)
        if item.image is None or written is None or written.rejected:
            continue
        cards.append(
            {
                "id": f"{side} {item.id}",
                "image": _jpeg(open_image(root, item.image)),
                "raw": item.text or "",
                "text": written.text,
            }
        )
    return cards


def examples(root: Path, store: Path, each: int = 2) -> list[dict[str, str]]:
    """A few items with pictures of every query file and pool, evenly spread."""
    data = DataRoot(root)
    cards: list[dict[str, str]] = []
    for file in data.query_files("test"):
        queries = [query.item for query in open_queries(file.path)]
        cards += _cards(root, store, queries[:: max(1, len(queries) // each)][:each], "query")
    for file in data.pools():
        if file.task in (0, 2):
            pool = list(open_candidates(file.path))
            cards += _cards(root, store, pool[:: max(1, len(pool) // each)][:each], "corpus")
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
    picture = chart(comparison)
    (out / "chart.png").write_bytes(picture)
    (out / "table.md").write_text(comparison.table() + "\n", encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    page = template.render(
        comparison=comparison,
        chart=base64.b64encode(picture).decode(),
        notes=notes,
        cards=examples(root, store),
        times=times,
    )
    (out / "report.html").write_text(page, encoding="utf-8")
