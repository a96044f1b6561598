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


class System(NamedTuple):
    """What is shown of a system.

    Attributes:
        experiment: its arms.
        told: what is printed of the results; may write more beside them.
        pair: the arms that ``report.html`` shows beside each other.
        defaults: arguments of :mod:`benchmarks.experiments` where none are given.
    """

    experiment: Path
    told: Callable[[ArmReader, Mapping[str, Any]], str]
    pair: tuple[str, str]
    defaults: Mapping[str, Any]


def run(system: System, reader: ArmReader) -> str:
    """Do what is not done, write ``demo.json``, ``table.md`` and ``report.html``.

    Returns:
        What is told of the system.

    Raises:
        ToolkitError: if a step fails.
        SystemExit: likewise, where an enrichment has printed why.
    """
    from augment.files import write_json, write_text
    from benchmarks.experiments import graph, results
    from benchmarks.report.page import write_report

    out = reader.out
    graph.run(reader.steps(), out)
    value = results.collect(reader)
    write_json(out / "demo.json", value)
    told = system.told(reader, value)
    write_text(out / "table.md", told + "\n")
    first, second = (reader.folders(name)[0] for name in system.pair)
    write_report(
        first, second, out / "report.html", names=system.pair, metric=reader.metric,
        seed=reader.seeds[0], root=reader.builder.setup.root,
    )  # fmt: skip
    return told


def rar(reader: ArmReader, value: Mapping[str, Any]) -> str:
    """Raw, shown and retrained in both pools, and how first results fail; writes ``chart.png``."""
    from benchmarks.experiments import plots, tables

    arms = {name: value["arms"][name] for name in ("raw", "shown", "retrained")}
    plots.write(plots.tasks(value, ("raw", "retrained")), reader.out / "chart.png")
    compared = [replace(reader, pool=pool).compare("raw", "retrained").table()
                for pool in ("local", "union")]  # fmt: skip
    parts = [tables.union_table(arms), *compared]
    parts += [f"{name}\n{tables.confusion_table(arm['union']['found'])}"
              for name, arm in arms.items()]  # fmt: skip
    return "\n\n".join(part.rstrip() for part in parts)


def trace(reader: ArmReader, value: Mapping[str, Any]) -> str:
    """One model that never, always and adaptively writes, and its twin; who wrote how much.

    Writes the model with its card, for sentence-transformers, which embeds directly, to ``model``.
    """
    from benchmarks.experiments import tables
    from benchmarks.experiments.graph import in_order
    from benchmarks.experiments.writing import writing_table
    from retrievers.export.folder import export

    step, folder = reader.builder.arm("direct", reader.seeds[0]), reader.out / "model"
    (trained,) = (one.folder(reader.out) for one in in_order([step]) if one.kind == "train")
    if not folder.exists():
        export(str(folder), trained / "checkpoints" / "last.ckpt", "sentence_transformers",
               metrics=step.folder(reader.out) / "metrics.json", name="flagland-trace")  # fmt: skip
    compared = [tables.comparison_table(one) for one in value["comparisons"]]
    parts = [tables.arms_table(value), writing_table(value["arms"]), *compared,
             tables.cost_table(value)]  # fmt: skip
    return "\n\n".join(parts)


def rge(reader: ArmReader, value: Mapping[str, Any]) -> str:
    """All tables, and what the taught rationales tell of the targets; writes ``leaks.json``."""
    from benchmarks.experiments import tables
    from benchmarks.experiments.texts import read_source
    from retrievers.commands.leaks import audit_leaks

    told, seen = (
        read_source(reader.builder.text(name).folder(reader.out)) for name in ("leaky", "oracle")
    )
    audit = audit_leaks(
        reader.builder.setup.root, told.store, told.recipes["query"], seen.recipes["query"],
        seen.store, tasks=[6, 8], out=reader.out / "leaks.json",
    )  # fmt: skip
    return f"{tables.report(value)}\n\nWhat the taught rationales tell of the targets:\n{audit}"


def tte(reader: ArmReader, value: Mapping[str, Any]) -> str:
    """TTE-v2's cascade and one round of its feedback, stage by stage, and the reranker's tokens."""
    from benchmarks.experiments import tables
    from retrievers.search.budget import budget

    names = ("first stage", "reranker alone", "cascade")
    first, reranked, fused = (reader.folders(name)[0] for name in names)
    spent = budget(first, [reranked], reader.out, depths=(0, 2, 5, 10),
                   weights=[fused / "fusion.json"], names=["reranker, fused"],
                   metric=reader.metric)  # fmt: skip
    return f"{tables.report(value)}\n\nTokens of the reranker, fused at each depth\n\n{spent}"


#: Half of task 6's questions name the country, so that routing has something to tell apart.
_TRACE = {"config": "flagland_trace", "steps": 90, "batch_size": 64, "tasks": [0, 3, 6, 7, 8],
          "named": 0.5}  # fmt: skip
_CLIP = {"steps": 60, "batch_size": 128}

#: A row a system.
SYSTEMS: Mapping[str, System] = {
    "rar": System(DEMO, rar, ("raw", "retrained"), _CLIP),
    "trace": System(FOLDER / "trace" / "1-adaptive.yaml", trace, ("twin", "adaptive"), _TRACE),
    "rge": System(
        DEMO.with_stem("demo_rge"), rge, ("direct", "self, own words"),
        {"config": "flagland_rge", "steps": 20, "fit": ["model.optimizer.warmup_steps=5"]}),
    "tte": System(FOLDER / "tte" / "cascade.yaml", tte, ("retriever", "cascade"), _CLIP),
}  # fmt: skip


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
    say(experiments.plan([reader]) if args.dry_run else run(system, reader))
    report = args.out / "report.html"
    say(f"{time.monotonic() - started:.0f} s in all; report: {report}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
