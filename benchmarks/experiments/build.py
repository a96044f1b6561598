"""From an experiment to its steps: texts, trainings, tests, and what they share."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, final

from augment.data import DataRoot
from augment.errors import DataError
from augment.records import Side
from benchmarks.experiments import texts
from benchmarks.experiments.graph import Step
from benchmarks.experiments.routers import ROUTERS
from benchmarks.experiments.spec import Arm, Experiment, Shown, Text, View
from benchmarks.experiments.texts import Enriching, read_source
from benchmarks.flagland.oracle import has_truth
from benchmarks.flagland.world import WorldConfig, write_world
from retrievers.cli import expand
from retrievers.cli import main as retrievers
from retrievers.commands.fuse import main as fuse
from retrievers.data.texts import ViewConfig
from retrievers.evaluation.protocol import PositiveConfig
from retrievers.vectors.bm25 import bm25

_SIDES: tuple[Side, Side] = ("query", "corpus")


@final
@dataclass(frozen=True)
class Setup:
    """What all arms have in common.

    Attributes:
        enriching: the data and the describing model.
        config: of the retriever, packaged or a file.
        steps: optimiser steps of an ordinary training; None takes the config's own.
        batch_size: training pairs per step; None takes the config's own.
        seeds: of the trainings.
        split: of the queries that are asked.
        tasks: only queries of these M-BEIR codes; empty takes all.
        fit: further arguments of ``python -m retrievers fit`` and ``test``.
        asked: other data that the trained retrievers are tested on; None: the same.
    """

    enriching: Enriching
    config: str = "flagland"
    steps: int | None = None
    batch_size: int | None = None
    seeds: tuple[int, ...] = (0,)
    split: str = "test"
    tasks: tuple[int, ...] = ()
    fit: tuple[str, ...] = field(default_factory=tuple)
    asked: Enriching | None = None

    @property
    def tested(self) -> Enriching:
        """The data that retrievers are tested on, and its describing model."""
        return self.asked or self.enriching

    @property
    def root(self) -> Path:
        """The data that retrievers are tested on."""
        return self.tested.root

    @cached_property
    def config_digest(self) -> str:
        """Of the config's contents, so that an edited file makes new trainings."""
        path = Path(expand([f"--config={self.config}"])[0].partition("=")[2])
        if not path.is_file():
            raise DataError("no such config, neither packaged nor a file", self.config)
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def digest_root(root: Path) -> str:
    """SHA-256 over the names and contents of all lists of a root; pictures count by name only.

    Raises:
        DataError: if it is no data root.
    """
    data = DataRoot(root)
    found = hashlib.sha256()
    for folder in ("query", "cand_pool", "qrels", "instructions"):
        for path in sorted((data.path / folder).rglob("*")):
            if path.is_file() and path.suffix in (".jsonl", ".txt", ".tsv"):
                found.update(str(path.relative_to(data.path)).encode())
                with path.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        found.update(block)
    return found.hexdigest()


def make_world(root: Path, countries: int, seed: int, workers: int) -> None:
    """Write a Flagland unless it is there; one that was cut short is begun anew.

    Raises:
        DataError: if there can be no such world.
    """
    if root.exists():
        return
    try:
        config = WorldConfig(countries, seed)
    except ValueError as error:
        raise DataError(f"no Flagland: {error}") from error
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    write_world(partial, config, workers=workers)
    partial.rename(root)


def available(arm: Arm, experiment: Experiment, setup: Setup) -> str:
    """Why an arm cannot be run on this data; empty if it can."""
    for shown, root in ((arm.train, setup.enriching.root), (arm.show, setup.root)):
        for name in texts.names_of(shown.texts if shown else (), experiment.texts):
            if experiment.texts[name].kind == "oracle" and not has_truth(root):
                return "the truth of the pictures is not known here"
    lacking = [one for one in arm.of if available(experiment.arms[one], experiment, setup)]
    return available(experiment.arms[lacking[0]], experiment, setup) if lacking else ""


@final
class Builder:
    """Steps of an experiment's arms.

    Args:
        experiment: what to build.
        setup: on what.
    """

    def __init__(self, experiment: Experiment, setup: Setup) -> None:
        self.experiment = experiment
        self.setup = setup
        self._texts: dict[tuple[str, str], Step] = {}

    def text(self, name: str, where: Enriching | None = None) -> Step:
        """The step of a text.

        Args:
            name: in the experiment.
            where: the data it is about; None: that which retrievers are tested on.
        """
        using = where or self.setup.tested
        key = name, using.root_digest
        if key not in self._texts:
            text = self.experiment.texts[name]
            if text.of:
                ranked = self._ranked(text, using)
                self._texts[key] = texts.derived(text, self.text(text.of, using), using, ranked)
            else:
                self._texts[key] = texts.made_anew(text, using)
        return self._texts[key]

    def _ranked(self, text: Text, using: Enriching) -> Step | None:
        if text.kind != "select" or not ROUTERS.get(str(text.settings.get("router"))):
            return None
        name = str(text.settings.get("contested_by"))
        if name not in self.experiment.arms:
            raise DataError(f"contested_by names no arm: {name!r}", f"texts.{text.name}")
        return self.arm(self.experiment.arms[name], self.setup.seeds[0], where=using)

    def arm(self, arm: Arm, seed: int, split: str = "", where: Enriching | None = None) -> Step:
        """The step that tests an arm with one seed.

        Args:
            arm: what is trained and shown.
            seed: of the training.
            split: of the queries; empty: the setup's.
            where: the data it is tested on; None: the setup's.
        """
        split, where = split or self.setup.split, where or self.setup.tested
        if arm.kind == "fusion":
            return self._fusion(arm, seed, split, where)
        if arm.show is None:
            raise DataError("shows nothing", f"arms.{arm.name}")
        if arm.kind == "bm25":
            return self._bm25(arm.show, split, where)
        return self._test(arm, seed, split, where)

    def _fusion(self, arm: Arm, seed: int, split: str, where: Enriching) -> Step:
        arms = [self.experiment.arms[name] for name in arm.of]
        runs = tuple(self.arm(one, seed, split, where) for one in arms)
        # Weights are tuned on queries of the data that was trained on.
        home = self.setup.enriching
        has_dev = self.setup.split != "val" and bool(DataRoot(home.root).query_files("val"))
        dev = tuple(self.arm(one, seed, "val", home) for one in arms) if has_dev else ()
        title = f"fuse {' and '.join(arm.of)} (seed {seed})"
        settings = {"arms": len(arms), "tuned": bool(dev)}

        def work(folder: Path, needs: Sequence[Path]) -> None:
            given = [str(path) for path in needs]
            tuning = ["--dev", *given[len(arms) :]] if dev else []
            fuse([*given[: len(arms)], *tuning, "--out", str(folder)])

        return Step("fused", title, settings, (*runs, *dev), work)

    def _shown(self, shown: Shown, where: Enriching) -> tuple[tuple[Step, ...], dict[str, Any]]:
        """Steps of the texts, and what stands for the views in a fingerprint."""
        steps = tuple(self.text(name, where) for name in shown.texts)
        places = {name: place for place, name in enumerate(shown.texts)}
        views: dict[str, Any] = {
            side: [places.get(view.text), view.view, *view.options]
            for side, view in zip(_SIDES, (shown.query, shown.corpus), strict=True)
        }
        return steps, views

    def _bm25(self, shown: Shown, split: str, where: Enriching) -> Step:
        setup, (needs, views) = self.setup, self._shown(shown, where)
        settings = {"root": where.root_digest, "views": views, "split": split,
                    "tasks": setup.tasks, "union": self.experiment.union}  # fmt: skip

        def work(folder: Path, made: Sequence[Path]) -> None:
            configs = view_configs(shown, made)
            bm25(
                where.root.resolve(), folder, configs["query"], configs["corpus"], split=split,
                union=self.experiment.union, tasks=list(setup.tasks) or None,
                positives=PositiveConfig(),
            )  # fmt: skip

        return Step("lexical", f"BM25, {_words(shown)}, {split}", settings, needs, work)

    def _train(self, train: Shown, seed: int, effort: float) -> Step:
        setup, (needs, views) = self.setup, self._shown(train, self.setup.enriching)
        steps = None if setup.steps is None else round(setup.steps * effort)
        settings = {
            "root": setup.enriching.root_digest, "views": views, "seed": seed, "steps": steps,
            "batch_size": setup.batch_size, "config": setup.config_digest, "fit": setup.fit,
            "tasks": setup.tasks,
        }  # fmt: skip
        if steps is None and effort != 1:
            raise DataError("an arm wants more steps than the config's: say how many with --steps")
        shared = self._arguments(seed, setup.enriching)
        title = f"train on {_words(train)} (seed {seed}{'' if effort == 1 else f', x{effort:g}'})"

        def work(folder: Path, made: Sequence[Path]) -> None:
            length = [] if steps is None else [
                f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}",
                # The last checkpoint is what counts: a look at few items keeps validation cheap.
                "--data.validation.queries=8", "--data.validation.pool=64",
            ]  # fmt: skip
            latest = folder / "checkpoints" / "latest.ckpt"
            resumed = [f"--ckpt_path={latest}"] if latest.is_file() else []
            command(["fit", "--config", setup.config, f"--out={folder.resolve()}", *length,
                     *shared, *view_arguments(train, made), *resumed])  # fmt: skip
            if not (folder / "checkpoints" / "last.ckpt").is_file():
                raise DataError("the training left no checkpoints/last.ckpt", str(folder))
            latest.unlink(missing_ok=True)  # only a run that was cut short needs it

        return Step("train", title, settings, needs, work, float(steps or 1))

    def _test(self, arm: Arm, seed: int, split: str, where: Enriching) -> Step:
        setup, experiment = self.setup, self.experiment
        shown = arm.show
        if shown is None:
            raise DataError("shows nothing", f"arms.{arm.name}")
        needs, views = self._shown(shown, where)
        train = None if arm.train is None else self._train(arm.train, seed, arm.effort)
        settings: dict[str, Any] = {
            "root": where.root_digest, "views": views, "split": split,
            "tasks": setup.tasks, "union": experiment.union,
        }  # fmt: skip
        if arm.test:
            settings["test"] = arm.test
        if train is None:  # packaged weights: no seed moves them
            settings |= {"config": setup.config_digest, "fit": setup.fit}
        trained = "packaged weights" if arm.train is None else f"trained on {_words(arm.train)}"
        title = f"test: {trained}, shown {_words(shown)}, {split} (seed {seed})"
        if where.root_digest != setup.enriching.root_digest:
            title += f", asked about {where.root.name}"
        shared = self._arguments(seed, where)

        def work(folder: Path, made: Sequence[Path]) -> None:
            weights = []
            if train is not None:
                checkpoint = made[len(needs)] / "checkpoints" / "last.ckpt"
                weights = [f"--ckpt_path={checkpoint}", "--model.allow_mismatch=true"]
            command(["test", "--config", setup.config, f"--out={folder.resolve()}", *weights,
                     f"--data.test.split={split}",
                     f"--data.test.union={str(experiment.union).lower()}", *shared,
                     *view_arguments(shown, made), *(f"--{one}" for one in arm.test)])  # fmt: skip

        every = (*needs, train) if train is not None else needs
        return Step("test", title, settings, every, work)

    def _arguments(self, seed: int, where: Enriching) -> list[str]:
        setup = self.setup
        batch = [] if setup.batch_size is None else [f"--data.batch_size={setup.batch_size}"]
        tasks = [f"--data.tasks={json.dumps(list(setup.tasks))}"] if setup.tasks else []
        return [
            f"--data.root={where.root.resolve()}", f"--seed_everything={seed}",
            f"--data.seed={seed}", "--trainer.enable_progress_bar=false", *batch, *tasks,
            *setup.fit,
        ]  # fmt: skip


def _words(shown: Shown) -> str:
    if shown.query == shown.corpus == View():
        return "raw text"
    return f"queries {shown.query}, corpus {shown.corpus}"


def _views(shown: Shown, made: Sequence[Path]) -> dict[Side, tuple[View, Path | None, str | None]]:
    """Side -> view, store, recipe; ``made`` begins with the folders of ``shown.texts``."""
    sources = {name: read_source(path) for name, path in zip(shown.texts, made, strict=False)}
    found: dict[Side, tuple[View, Path | None, str | None]] = {}
    for side, view in zip(_SIDES, (shown.query, shown.corpus), strict=True):
        source = sources.get(view.text)
        store = None if source is None else source.store.resolve()
        found[side] = (view, store, None if source is None else source.recipes[side])
    return found


def view_arguments(shown: Shown, made: Sequence[Path]) -> list[str]:
    """Arguments of ``python -m retrievers`` that show these views."""
    arguments = []
    for side, (view, store, recipe) in _views(shown, made).items():
        arguments.append(f"--data.{side}.view={view.view}")
        if store is not None:
            arguments += [f"--data.{side}.store={store}", f"--data.{side}.recipe={recipe}"]
        arguments += [f"--data.{side}.{key}={value}" for key, value in view.options]
    return arguments


def view_configs(shown: Shown, made: Sequence[Path]) -> Mapping[Side, ViewConfig]:
    """The same as objects."""
    return {
        side: ViewConfig(
            view.view, None if store is None else str(store), recipe,  # type: ignore[arg-type]
            **dict(view.options),  # type: ignore[arg-type]
        )
        for side, (view, store, recipe) in _views(shown, made).items()
    }  # fmt: skip


def command(arguments: Sequence[str]) -> None:
    """``python -m retrievers`` in this process.

    Raises:
        SystemExit: if it fails; it has said why.
    """
    status = retrievers(list(arguments))
    if status:
        raise SystemExit(status)


def describe(setup: Setup) -> dict[str, Any]:
    """The setup for the record, without paths of this machine."""
    value = asdict(setup)
    enriching, asked = value.pop("enriching"), value.pop("asked")
    value["root"] = setup.enriching.root.resolve().name
    if asked is not None:
        value["asked"] = {"root": setup.root.resolve().name, "digest": asked["root_digest"][:16]}
    value["config"] = Path(setup.config).name
    value["root_digest"] = enriching["root_digest"][:16]
    value["model"] = enriching["model"] if enriching["store"] is None else "given store"
    return value
