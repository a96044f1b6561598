"""The results of an experiment as Markdown: what people read first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from augment.files import markdown
from benchmarks.experiments.writing import routes_table, writing_table
from retrievers.evaluation.compare import Interval, shown_p


def report(value: Mapping[str, Any]) -> str:
    """All tables of one experiment."""
    parts = [
        f"# {value['experiment']}",
        f"**Question.** {value['question'].strip()}",
        f"**Prediction**, written before the run. {value['prediction'].strip()}",
        arms_table(value),
        union_table(value["arms"]),
        against_table(value),
        *(comparison_table(one) for one in value["comparisons"]),
        writing_table(value["arms"]),
        *map(routes_table, value.get("routes", ())),
        effects_table(value["effects"]),
        *(curve_lines(curve) for curve in value["curves"]),
        texts_table(value["texts"]),
        cost_table(value),
        notes(value),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _score(value: Mapping[str, Any]) -> str:
    spread = "" if value["sd"] is None else f" ± {100 * value['sd']:.1f}"
    return f"{100 * value['score']:.1f}{spread}"


def interval(value: Mapping[str, float]) -> str:
    """A difference in points with its interval."""
    return str(Interval(**value))


def arms_table(value: Mapping[str, Any]) -> str:
    """A row an arm, a column a task."""
    arms = value["arms"]
    tasks = list(next(iter(arms.values()))["tasks"])
    short = [task.partition(":")[0] for task in tasks]
    rows = [
        [name, *(f"{100 * arm['tasks'][task]['score']:.1f}" for task in tasks),
         _score(arm["mean"])]
        for name, arm in arms.items()
    ]  # fmt: skip
    head = [f"arm ({value['pool']} pool, {value['metric']}, %)", *(f"task {t}" for t in short)]
    return markdown([*head, "mean ± sd over seeds"], rows)


#: Key of :func:`benchmarks.experiments.results.union_json` -> column.
_UNION = {
    "local": "local", "success": "union", "filtered": "asked modality only", "at_1": "asked@1",
    "at_5": "asked@5", "own_picture": "own picture", "wrong_modality": "wrong modality",
    "wrong_item": "wrong item",
}  # fmt: skip


def union_table(arms: Mapping[str, Any]) -> str:
    """A row an arm: success@1 of local pools and union, what is lost to what, steps and seconds."""
    rows = [
        [name, one["steps"] or "-", *(f"{100 * one[key]:.1f}" for key in _UNION),
         f"{sum(arm['cost'].get(f'{kind} cpu_seconds', 0) for kind in ('train', 'mine')):.0f}"]
        for name, arm in arms.items() if (one := arm.get("union"))
    ]  # fmt: skip
    head = ["success@1, mean of the tasks, %", "steps", *_UNION.values(), "training, CPU s"]
    return markdown(head, rows) if rows else ""


def confusion_table(found: Mapping[str, Mapping[str, int]]) -> str:
    """Queries by the modality that they ask for (rows) and that of the first result."""
    kinds = sorted({*found, *(kind for row in found.values() for kind in row)})
    rows = [[asked, *(found[asked].get(kind, 0) for kind in kinds)] for asked in sorted(found)]
    return markdown(["asked, then found first in the union", *kinds], rows)


def compared_cells(row: Mapping[str, Any]) -> list[str]:
    """Difference, its spread over seeds, p, wins and losses of a row of a comparison."""
    spread = "-" if row["sd"] is None else f"{100 * row['sd']:.1f}"
    return [interval(row["difference"]), spread, shown_p(row["holm"]), str(row["wins"]),
            str(row["losses"])]  # fmt: skip


_COMPARED = ("difference, 95 % interval", "sd over seeds", "p (Holm)", "wins", "losses")


def comparison_table(value: Mapping[str, Any]) -> str:
    """A row a task: both arms, the difference, its interval and its spread over seeds."""
    rows = [
        [row["name"], str(row["queries"]), f"{100 * row['first']:.1f}",
         f"{100 * row['second']:.1f}", *compared_cells(row)]
        for row in value["rows"]
    ]  # fmt: skip
    head = [f"task ({value['pool']} pool, {value['metric']})", "queries", *value["names"]]
    return markdown([*head, *_COMPARED], rows)


def against_table(value: Mapping[str, Any]) -> str:
    """A row an arm: the mean of its tasks, and what it gains over one arm."""
    if not value.get("against"):
        return ""
    first, rows = value["against"]["arm"], value["against"]["rows"]
    arms = value["arms"]
    cut = any(arm["not_read"] for arm in arms.values())
    lines = []
    for name, row in [(first, None), *((row["name"], row) for row in rows)]:
        not_read = arms[name]["not_read"]
        lost = [f"{100 * not_read:.0f}" if not_read is not None else "-"] if cut else []
        cells = compared_cells(row) if row else [""] * len(_COMPARED)
        lines.append([name, *lost, _score(arms[name]["mean"]), *cells])
    lost = ["candidates' tokens not read, %"] if cut else []
    head = [f"against {first} ({value['metric']})", *lost, "mean ± sd over seeds", *_COMPARED]
    return markdown(head, lines)


def effects_table(effects: Sequence[Mapping[str, Any]]) -> str:
    """The contrasts of the grid, a column a task."""
    if not effects:
        return ""
    tasks = [task for task in effects[0]["rows"] if task != "mean"]
    rows = [
        [f"{one['name']}: {one['formula']}", interval(one["rows"]["mean"]),
         *(f"{100 * one['rows'][task]['mean']:+.1f}" for task in tasks)]
        for one in effects
    ]  # fmt: skip
    head = ["effect, in points", "mean of tasks, 95 % interval"]
    return markdown([*head, *(f"task {task.partition(':')[0]}" for task in tasks)], rows)


def curve_lines(curve: Mapping[str, Any]) -> str:
    """The points of a curve and where it crosses."""
    rows = [[f"{p['x']:g}", p["arm"], interval(p["gain"])] for p in curve["points"]]
    what = {
        "break_even": "The gain is gone at",
        "keep_95": f"95 % of the gain of {curve['full']} is reached at",
    }[curve["find"]]
    at, low, high = (
        "beyond the range" if curve["at"][key] is None else f"{curve['at'][key]:.2f}"
        for key in ("at", "low", "high")
    )
    table = markdown([curve["name"], "arm", f"gain over {curve['base']}, 95 % interval"], rows)
    return f"{table}\n\n{what} {at} (95 % interval {low} to {high})."


def texts_table(texts: Mapping[str, Any]) -> str:
    """A row a text and side: how many, how long, how true."""
    rows = []
    for name, text in texts.items():
        for side, about in text["sides"].items():
            facts = about.get("facts", {}).get("all")
            keys = ("precision", "recall") if facts and facts["stated"] else ()
            truth = [f"{100 * facts[key]:.1f}" for key in keys] or ["-"]
            rows.append(
                [name, side, f"{about['items']:,}", f"{about['generations']:,}",
                 f"{about['output_tokens']:,}", f"{about['mean_words']:.1f}",
                 *(truth * (2 // len(truth)))]
            )  # fmt: skip
    head = ["text", "side", "items", "generated", "tokens written", "words", "facts that are true",
            "facts that are stated"]  # fmt: skip
    return markdown(head, rows, 2) if rows else ""


def cost_table(value: Mapping[str, Any]) -> str:
    """CPU and GPU seconds of each arm by kind of step."""
    kinds = list(dict.fromkeys(key for arm in value["arms"].values() for key in arm["cost"]))
    paced = any(arm.get("queries_per_second") for arm in value["arms"].values())
    rows = [
        [name, *(f"{arm['cost'].get(kind, 0):.0f}" for kind in kinds),
         *([f"{pace:.0f}" if (pace := arm.get("queries_per_second")) else "-"] if paced else [])]
        for name, arm in value["arms"].items()
    ]  # fmt: skip
    head = [f"{kind.partition(' ')[0]}, {'GPU' if 'gpu' in kind else 'CPU'} s" for kind in kinds]
    head += ["queries embedded in a second"] if paced else []
    return markdown(["cost of an arm with one seed", *head], rows) if kinds else ""


def notes(value: Mapping[str, Any]) -> str:
    """How the numbers were made."""
    setup, seeds = value["setup"], value["seeds"]
    versions = ", ".join(f"{name} {version}" for name, version in value["versions"].items())
    return "\n".join([
        "Intervals: paired bootstrap over queries, 10,000 resamples, of scores that are means over "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} of training; the mean weighs each task "
        "the same. sd: over seeds. Holm: corrected for the rows of a table.",
        *(f"Left out: {name}, because {why}." for name, why in value["left_out"].items()),
        "",
        f"Data: {setup['root']} ({setup['root_digest']}), split {setup['split']}; texts of "
        f"{setup['model']}; config {setup['config']}, {setup['steps']} steps; seeds "
        f"{', '.join(map(str, seeds))}; commit {value['commit'] or 'unknown'}; {versions}.",
    ])  # fmt: skip
