"""Runs experiments: plan, steps, results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from augment.errors import DataError
from augment.files import write_text
from benchmarks.experiments import graph, plots, results, tables
from benchmarks.experiments.build import Builder, Setup
from benchmarks.experiments.results import Reader
from benchmarks.experiments.spec import Experiment


def readers(
    experiments: Sequence[Experiment], setup: Setup, out: Path, metric: str, pool: str
) -> list[Reader]:
    """One for each experiment that has an arm to run here.

    Raises:
        DataError: if none has.
    """
    made = [Reader(Builder(one, setup), out, metric, pool) for one in experiments]
    found = [reader for reader in made if reader.arms]
    if not found:
        raise DataError("no arm of these experiments can be run on this data", str(setup.root))
    return found


def run(found: Sequence[Reader]) -> list[dict[str, Any]]:
    """Do what is not done and write ``OUT/results/NAME.json``, ``.md`` and figures.

    The folder is ``results-ROOT`` where other data is asked about. Results of an experiment are
    written as soon as its own steps are done.
    """
    values = []
    for reader in found:
        graph.run(reader.steps(), reader.out)
        value = results.collect(reader)
        write(value, folder(reader))
        values.append(value)
    return values


def folder(reader: Reader) -> Path:
    """Where results go."""
    setup = reader.builder.setup
    return reader.out / ("results" if setup.asked is None else f"results-{setup.root.name}")


def write(value: dict[str, Any], folder: Path) -> None:
    """Write the results of one experiment."""
    results.save(value, folder / f"{value['experiment']}.json")
    write_text(folder / f"{value['experiment']}.md", tables.report(value))
    plots.save(value, folder)


def plan(found: Sequence[Reader]) -> str:
    """What :func:`run` would do."""
    steps = [step for reader in found for step in reader.steps()]
    lines = [graph.told(graph.plan(steps, found[0].out))]
    for reader in found:
        arms = reader.builder.experiment.arms
        absent = [name for name in arms if name not in reader.arms]
        if absent:
            lines.append(f"{reader.builder.experiment.name}: cannot be run here: "
                         f"{', '.join(absent)}")  # fmt: skip
    return "\n".join(lines)
