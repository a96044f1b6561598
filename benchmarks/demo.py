"""A system end to end on a small Flagland; RAR in at most ten minutes on two CPU cores.

``python -m benchmarks.demo`` (or ``make demo``, ``make demo SYSTEM=...``): the arms of a system's
experiment, RAR's in ``demo.yaml``, run by :mod:`benchmarks.experiments`. ``--root`` takes any other
M-BEIR root instead; published data has items that cannot be used: ``--tolerate`` goes on without
them. The packaged model knows flags only: on other pictures its texts are out of their depth, and
what is shown is that the path holds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from augment.enrichment.command import entry
from augment.files import say
from benchmarks.experiments import __main__ as experiments
from benchmarks.experiments.spec import FOLDER

if TYPE_CHECKING:
    from benchmarks.experiments.results import ArmReader

#: Its arms.
DEMO = Path(__file__).with_suffix(".yaml")


def parser() -> argparse.ArgumentParser:
    """The command's arguments: those of :mod:`benchmarks.experiments`, and one seed for all."""
    made = experiments.parser()
    made.prog, made.description, made.epilog = "python -m benchmarks.demo", __doc__, None
    made.add_argument("--seed", type=int, default=1, help="of the world and all trainings")
    made.add_argument("--system", default="rar", choices=tuple(SYSTEMS), help="what is shown")
    made.set_defaults(out=None)
    return made


def run(reader: ArmReader) -> str:
    """Do what is not done, write ``demo.json``, ``table.md``, ``chart.png`` and ``report.html``.

    Returns:
        The table, with notes.

    Raises:
        ToolkitError: if a step fails.
        SystemExit: likewise, where an enrichment has printed why.
    """
    from augment.files import write_json, write_text
    from benchmarks.experiments import graph, plots, results
    from benchmarks.experiments import tables as drawn
    from benchmarks.report.page import write_report

    out = reader.out
    graph.run(reader.steps(), out)
    value = results.collect(reader)
    write_json(out / "demo.json", value)
    tables = {pool: replace(reader, pool=pool).compare("raw", "enriched")
              for pool in ("local", "union")}  # fmt: skip
    union = tables["union"].rows[-1]
    shift = value["arms"]["shift"]["mean"]["score"]
    notes = [
        f"In the union of all pools the means are {100 * union.first:.1f} (raw) and "
        f"{100 * union.second:.1f} (enriched).",
        "Trained on raw text and shown enriched text, the same retriever scores "
        f"{100 * shift:.1f} on average (local pools, {reader.metric}).",
    ]
    arms = {name: value["arms"][name] for name in ("raw", "enriched")}
    seen = [drawn.union_table(arms)]
    seen += [
        f"{name}\n{drawn.confusion_table(arm['union']['found'])}" for name, arm in arms.items()
    ]
    table = tables["local"].table()
    write_text(out / "table.md", table + "\n")
    plots.write(plots.tasks(value, ("raw", "enriched")), out / "chart.png")
    folders = [reader.folders(name)[0] for name in ("raw", "enriched")]
    write_report(
        folders[0], folders[1], out / "report.html", names=("raw", "enriched"),
        metric=reader.metric, notes=tuple(notes), seed=reader.seeds[0],
    )  # fmt: skip
    return "\n".join([table, *notes, *(f"\n{part}" for part in seen)])


def run_rge(reader: ArmReader) -> str:
    """Do what is not done, write results, figures, ``leaks.json`` and ``report.html``.

    Returns:
        The tables, and the audit of what is taught against what states only what can be seen.

    Raises:
        ToolkitError: if a step fails.
    """
    from benchmarks.experiments import tables
    from benchmarks.experiments.texts import read_source
    from benchmarks.report.page import write_report
    from retrievers.commands.leaks import audit_leaks

    out, value = reader.out, experiments.run(reader)
    told, seen = (read_source(reader.builder.text(n).folder(out)) for n in ("leaky", "oracle"))
    audit = audit_leaks(
        reader.builder.setup.root, told.store, told.recipes["query"], seen.recipes["query"],
        seen.store, tasks=[6, 8], out=out / "leaks.json",
    )  # fmt: skip
    names = ("direct", "self, own words")
    first, second = (reader.folders(name)[0] for name in names)
    write_report(first, second, out / "report.html", names=names, metric=reader.metric)
    return f"{tables.report(value)}\n\nWhat the taught rationales tell of the targets:\n{audit}"


def stages(reader: ArmReader) -> str:
    """TTE-v2's cascade and one round of its feedback: a table of stages, tokens, and the page.

    Returns:
        The tables.
    """
    from augment.files import write_json, write_text
    from benchmarks.experiments import graph, results
    from benchmarks.experiments import tables as drawn
    from benchmarks.report.page import write_report
    from retrievers.search.budget import budget

    out = reader.out
    graph.run(reader.steps(), out)
    value = results.collect(reader)
    write_json(out / "demo.json", value)
    names = ("first stage", "reranker alone", "cascade")
    first, reranked, fused = (reader.folders(name)[0] for name in names)
    spent = budget(first, [reranked], out, depths=(0, 2, 5, 10), weights=[fused / "fusion.json"],
                   names=["reranker, fused"], metric=reader.metric)  # fmt: skip
    table = f"{drawn.report(value)}\n\nTokens of the reranker, fused at each depth\n\n{spent}"
    write_text(out / "table.md", table + "\n")
    write_report(
        reader.folders("retriever")[0], fused, out / "report.html", names=("retriever", "cascade"),
        metric=reader.metric, seed=reader.seeds[0], root=reader.builder.setup.root,
    )  # fmt: skip
    return table


class System(NamedTuple):
    """What is shown of a system.

    Attributes:
        experiment: its arms.
        run: does what is not done, writes ``report.html`` and returns what is printed.
        defaults: arguments of :mod:`benchmarks.experiments` where none are given.
    """

    experiment: Path
    run: Callable[[ArmReader], str]
    defaults: Mapping[str, Any]


def run_trace(reader: ArmReader) -> str:
    """Do what is not done, write ``demo.json``, ``table.md`` and ``report.html``.

    Returns:
        One model that never, always and adaptively writes, and its twin that never learnt to, task
        by task; and who wrote how much.
    """
    from augment.files import write_json, write_text
    from benchmarks.experiments import graph, results, tables
    from benchmarks.experiments.writing import writing_table
    from benchmarks.report.page import write_report

    graph.run(reader.steps(), reader.out)
    value = results.collect(reader)
    write_json(reader.out / "demo.json", value)
    compared = [tables.comparison_table(one) for one in value["comparisons"]]
    parts = [tables.arms_table(value), writing_table(value["arms"]), *compared]
    table = "\n\n".join(parts)
    write_text(reader.out / "table.md", table + "\n")
    folders = [reader.folders(name)[0] for name in ("twin", "adaptive")]
    write_report(folders[0], folders[1], reader.out / "report.html", names=("twin", "adaptive"),
                 metric=reader.metric, seed=reader.seeds[0])  # fmt: skip
    return table


_TRACE = {"config": "flagland_trace", "steps": 120, "batch_size": 80, "tasks": [0, 3, 6, 7, 8]}

#: A row a system.
SYSTEMS: Mapping[str, System] = {
    "rar": System(DEMO, run, {"steps": 60, "batch_size": 128}),
    "trace": System(FOLDER / "trace" / "1-adaptive.yaml", run_trace, _TRACE),
    "rge": System(FOLDER / "rge" / "1-leak.yaml", run_rge, {"config": "flagland_rge"}),
    "tte": System(FOLDER / "tte" / "cascade.yaml", stages, {"steps": 60, "batch_size": 128}),
}


@entry
def main(arguments: Sequence[str]) -> int:
    """Parse and run; the exit status."""
    made, started = parser(), time.monotonic()
    name = made.parse_known_args(arguments)[0].system
    system = SYSTEMS[name]
    made.set_defaults(files=[str(system.experiment)], **system.defaults)
    args = made.parse_args(arguments)
    args.world_seed, args.seeds = args.seed, [args.seed]
    args.out = args.out or (Path("demo") if name == "rar" else Path("demo", name))
    reader = experiments.readers(args)[0]
    say(experiments.plan([reader]) if args.dry_run else system.run(reader))
    report = args.out / "report.html"
    say(f"{time.monotonic() - started:.0f} s in all; report: {report}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
