"""From an experiment to its steps: texts, trainings, tests, and what they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from augment.data import DataRoot
from augment.errors import DataError
from augment.files import sha256, write_json
from augment.records import Side
from benchmarks.experiments import texts
from benchmarks.experiments.graph import CachedStep
from benchmarks.experiments.noise import ROUTERS
from benchmarks.experiments.spec import SIDES, Arm, Experiment, TextSpec, Views, worded
from benchmarks.experiments.texts import Enriching, read_source
from benchmarks.flagland.oracle import has_truth
from retrievers.data.named import expand
from retrievers.data.plan import PositiveConfig
from retrievers.data.texts import ViewConfig
from retrievers.data.writings import WRITTEN, read_writings, threshold
from retrievers.evaluation.evaluate import evaluate
from retrievers.evaluation.fusion import fuse
from retrievers.vectors.bm25 import bm25

if TYPE_CHECKING:
    from retrievers.training.parts import Parts


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
        fit: further arguments of trainings and tests, without their dashes.
        asked: other data that the trained retrievers are tested on; None: the same.
    """

    enriching: Enriching
    config: str = "flagland"
    steps: int | None = None
    batch_size: int | None = None
    seeds: tuple[int, ...] = (0,)
    split: str = "test"
    tasks: tuple[int, ...] = ()
    fit: tuple[str, ...] = ()
    asked: Enriching | None = None

    @property
    def tested(self) -> Enriching:
        """The data that retrievers are tested on, and its describing model."""
        return self.asked or self.enriching

    @property
    def root(self) -> Path:
        """The data that retrievers are tested on."""
        return self.tested.root

    def describe(self) -> dict[str, Any]:
        """For the record, without paths of this machine."""
        value = asdict(self)
        enriching, asked = value.pop("enriching"), value.pop("asked")
        value["root"] = self.enriching.root.resolve().name
        if asked is not None:
            digest = self.tested.root_digest[:16]
            value["asked"] = {"root": self.root.resolve().name, "digest": digest}
        value["config"] = Path(self.config).name
        value["root_digest"] = self.enriching.root_digest[:16]
        value["model"] = enriching["model"] if enriching["store"] is None else "given store"
        return value


def config_digest(config: str) -> str:
    """Of a config's contents, so that an edited file makes new trainings.

    Raises:
        DataError: if there is none.
    """
    path = Path(expand([f"--config={config}"])[0].partition("=")[2])
    if not path.is_file():
        raise DataError("no such config, neither packaged nor a file", config)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def unavailable(name: str, experiment: Experiment, setup: Setup) -> str:
    """Why an arm cannot be run on this data; empty if it can."""
    arm = experiment.arms[name]
    for views, root in ((arm.train, setup.enriching.root), (arm.show, setup.root)):
        for text in texts.names_of(views.texts if views else (), experiment.texts):
            if experiment.texts[text].kind == "oracle" and not has_truth(root):
                return "the truth of the pictures is not known here"
    val = DataRoot(setup.enriching.root).query_files("val")
    if arm.budget and (setup.split == "val" or not val):
        return "its threshold is chosen on queries of val, which are asked or are not there"
    return next((why for one in arm.of if (why := unavailable(one, experiment, setup))), "")


@final
class Builder:
    """Steps of an experiment's arms."""

    def __init__(self, experiment: Experiment, setup: Setup) -> None:
        self.experiment = experiment
        self.setup = setup
        self._texts: dict[tuple[str, str], CachedStep] = {}

    @cached_property
    def names(self) -> list[str]:
        """Arms that can be run on this data."""
        return [name for name in self.experiment.arms
                if not unavailable(name, self.experiment, self.setup)]  # fmt: skip

    def text(self, name: str, where: Enriching | None = None) -> CachedStep:
        """The step of a text."""
        using = where or self.setup.tested
        key = name, using.root_digest
        if key not in self._texts:
            text = self.experiment.texts[name]
            if text.of:
                other = self.text(text.then, using) if text.then else None
                other = other or self._ranked(name, text, using)
                self._texts[key] = texts.derived(text, self.text(text.of, using), using, other)
            else:
                self._texts[key] = texts.made_anew(text, using)
        return self._texts[key]

    def _ranked(self, name: str, text: TextSpec, using: Enriching) -> CachedStep | None:
        if text.kind != "select" or not ROUTERS.get(text.router):
            return None
        if text.contested_by not in self.experiment.arms:
            raise DataError(f"contested_by names no arm: {text.contested_by!r}", f"texts.{name}")
        return self.arm(text.contested_by, self.setup.seeds[0], where=using)

    def arm(
        self, name: str, seed: int, split: str = "", where: Enriching | None = None
    ) -> CachedStep:
        """The step that tests an arm with one seed."""
        split, where = split or self.setup.split, where or self.setup.tested
        arm = self.experiment.arms[name]
        if arm.kind == "fusion":
            return self._fusion(arm, seed, split, where)
        views = arm.show or Views()
        if arm.kind == "bm25":
            return self._bm25(views, split, where)
        return self._test(arm, views, seed, split, where)

    def _fusion(self, arm: Arm, seed: int, split: str, where: Enriching) -> CachedStep:
        runs = [self.arm(name, seed, split, where) for name in arm.of]
        home, dev = self.setup.enriching, self._dev_split(arm) if arm.tuned else ""
        own = bool(dev) and split == dev and where == home
        if own:  # asked about the dev queries, for another fusion: the weights are those of before
            tuning = [self._fusion(arm, seed, self.setup.split, self.setup.tested)]
        else:
            tuning = [self.arm(name, seed, dev, home) for name in arm.of] if dev else []
        title = f"fuse {' and '.join(arm.of)} (seed {seed})"
        settings: dict[str, Any] = {"arms": len(runs), "tuned": bool(dev)}
        settings |= {"kept": True} if own else {}

        def work(folder: Path, needs: Sequence[Path]) -> None:
            told = needs[len(runs) :]
            if own:
                fuse(needs[: len(runs)], folder, weights_from=told[0] / "fusion.json")
            else:
                fuse(needs[: len(runs)], folder, dev=told)
            found = evaluate(folder, root=where.root.resolve(), split=split)
            write_json(folder / "metrics.json", asdict(found))

        return CachedStep("fused", title, settings, (*runs, *tuning), work)

    def _dev_split(self, arm: Arm) -> str:
        """Queries of the data that was trained on, seen by no training, for weights of a fusion."""
        trained = any(self.experiment.arms[name].train for name in arm.of)
        splits = ["val"] if trained else ["val", "train"]
        data = DataRoot(self.setup.enriching.root)
        known = [split for split in splits if data.query_files(split)]
        return next((split for split in known if split != self.setup.split), "")

    def _shown(
        self, views: Views, where: Enriching
    ) -> tuple[tuple[CachedStep, ...], dict[str, Any]]:
        """Steps of the texts, and what stands for the views in a fingerprint."""
        steps = tuple(self.text(name, where) for name in views.texts)
        places = {name: place for place, name in enumerate(views.texts)}
        settings: dict[str, Any] = {
            side: [places.get(view.text), view.view, *view.options]
            for side, view in zip(SIDES, (views.query, views.corpus), strict=True)
        }
        return steps, settings

    def _bm25(self, views: Views, split: str, where: Enriching) -> CachedStep:
        setup, (needs, shown) = self.setup, self._shown(views, where)
        settings = {"root": where.root_digest, "views": shown, "split": split,
                    "tasks": setup.tasks, "union": self.experiment.union}  # fmt: skip

        def work(folder: Path, made: Sequence[Path]) -> None:
            configs = view_configs(views, made)
            bm25(
                where.root.resolve(), folder, configs["query"], configs["corpus"], split=split,
                union=self.experiment.union, tasks=list(setup.tasks) or None,
                positives=PositiveConfig(),
            )  # fmt: skip

        return CachedStep("lexical", f"BM25, {views}, {split}", settings, needs, work)

    def _model(self, arm: Arm) -> dict[str, Any]:
        """What stands for the retriever in a fingerprint."""
        return {
            "config": config_digest(arm.config or self.setup.config), "model": arm.model,
            "fit": (*self.setup.fit, *self.experiment.fit),
        }  # fmt: skip

    def _train(self, arm: Arm, views: Views, seed: int) -> CachedStep:
        setup, (needs, shown) = self.setup, self._shown(views, self.setup.enriching)
        steps = None if setup.steps is None else round(setup.steps * arm.effort)
        if steps is None and arm.effort != 1:
            raise DataError("an arm wants more steps than the config's: say how many with --steps")
        mined = (self._mine(arm, seed),) if arm.mined_by else ()
        both = [name for name in (arm.taught, arm.taught_candidates) if name]
        taught = tuple(self.text(name, setup.enriching) for name in both)
        settings = {
            "root": setup.enriching.root_digest, "views": shown, "seed": seed, "steps": steps,
            "batch_size": setup.batch_size, "tasks": setup.tasks, "arm": arm.fit,
            **_files(arm.fit, setup.enriching.root),
            **self._model(arm), **({"taught": True} if taught else {}),
            **({"candidates": True} if arm.taught_candidates else {}),
        }  # fmt: skip
        told = f", taught {' and '.join(both)}" if taught else ""
        title = f"train on {views}{told}{_extras(arm)} (seed {seed}"
        title += ")" if arm.effort == 1 else f", x{arm.effort:g})"

        def work(folder: Path, made: Sequence[Path]) -> None:
            from retrievers import fit

            length = [] if steps is None else [f"trainer.max_steps={steps}"]
            negatives = [f"data.negatives.path={made[-1]}"] if mined else []
            texts = made[len(needs) : len(needs) + len(taught)]
            written = _written(*texts) if taught else []
            training, data, trainer, _ = self._parts(
                arm, seed, setup.enriching, views, made, *written, *arm.fit, *negatives, *length
            )
            fit(training, data, folder, resume=True, **trainer)
            # Only a run that was cut short needs it.
            (folder / "checkpoints" / "latest.ckpt").unlink(missing_ok=True)

        return CachedStep("train", title, settings, (*needs, *taught, *mined), work)

    def _mine(self, of: Arm, seed: int) -> CachedStep:
        """Negatives that another arm finds, for the training of an arm."""
        name, options = of.mined_by, of.mining
        arm, home = self.experiment.arms[name], self.setup.enriching
        views = arm.train or arm.show or Views()
        train = () if arm.train is None else (self._train(arm, views, seed),)
        needs, shown = self._shown(views, home)
        judged: tuple[CachedStep, ...] = ()
        if of.judged_by:
            found = self.experiment.arms[of.judged_by].of[0]
            judged = tuple(self.arm(one, seed, "train", home) for one in (found, of.judged_by))

        def work(folder: Path, made: Sequence[Path]) -> None:
            from retrievers import load
            from retrievers.search.mining import MiningConfig, mine_negatives
            from retrievers.training.module import trained

            training, data, *_ = self._parts(arm, seed, home, views, made)
            mining = worded(MiningConfig, options)
            if judged:
                mine_negatives(made[-2], data, folder, mining, judge=made[-1])
            else:  # nothing to load where the packaged weights mine
                encoder = load(_weights(made[-1])) if train else trained(training)
                mine_negatives(encoder, data, folder, mining)

        by = f"{name}, judged by {of.judged_by}" if judged else name
        title = f"mine negatives by {by}{''.join(f', {o}' for o in options)} (seed {seed})"
        settings = {**self._model(arm), **({"mining": options} if options else {})}
        if not train:  # whose settings say the rest
            settings |= {"root": home.root_digest, "views": shown, "tasks": self.setup.tasks}
        return CachedStep("mine", title, settings, (*needs, *(judged or train)), work)

    def _test(self, arm: Arm, views: Views, seed: int, split: str, where: Enriching) -> CachedStep:
        """Searches with an arm's weights, or reranks with them what another arm found."""
        setup, (needs, shown) = self.setup, self._shown(views, where)
        train = None if arm.train is None else self._train(arm, arm.train, seed)
        settings: dict[str, Any] = {
            "views": shown, "test": arm.test,
            # Packaged weights: no seed moves them.
            **(self._model(arm) if train is None else {}),
        }  # fmt: skip
        if arm.kind == "rerank":
            settings["depth"] = arm.depth
            needs = (*needs, self.arm(arm.of[0], seed, split, where))
            title = f"rerank the best {arm.depth} of {arm.of[0]}{_extras(arm)}, {split}"
        else:
            settings |= {"root": where.root_digest, "split": split, "tasks": setup.tasks,
                         "union": self.experiment.union,
                         **({"given": True} if arm.given else {})}  # fmt: skip
            start = "packaged weights" if arm.train is None else f"trained on {arm.train}"
            told = f", given {arm.given}" if arm.given else ""
            title = f"test: {start}{_extras(arm)}, shown {views}{told}, {split}"
            needs = (*needs, self.text(arm.given, where)) if arm.given else needs
        if arm.budget:  # chosen where all write, on queries that no training saw
            settings["budget"] = arm.budget
            everyone = replace(arm, budget=0.0, test=(*arm.test, _ALWAYS))
            needs = (*needs, self._test(everyone, views, seed, "val", where))
            title += f", at most {arm.budget:g} tokens a query"
        title += f" (seed {seed})"
        if arm.kind != "rerank" and where.root_digest != setup.enriching.root_digest:
            title += f", asked about {where.root.name}"

        def work(folder: Path, made: Sequence[Path]) -> None:
            from retrievers import test
            from retrievers.models.load import load_weights
            from retrievers.models.reranker import scorer
            from retrievers.search.cascade import rerank
            from retrievers.training.module import trained

            place = len(views.texts)
            words = [*_written(made[place]), "data.written.given=true"] if arm.given else []
            if arm.budget:
                at = threshold(read_writings(made[place] / WRITTEN).values(), arm.budget)
                words = [f"model.encoder.reasoning.threshold={at!r}"]
            training, data, trainer, _ = self._parts(
                arm, seed, where, views, made, *words, *arm.test
            )
            data.test = replace(data.test, split=split, union=self.experiment.union)
            encoder = trained(training)
            if train is not None:
                load_weights(encoder, _weights(made[-1]))
            device = "cpu" if trainer["device"] == "cpu" else "auto"
            if arm.kind == "rerank":
                found = rerank(scorer(encoder), data, made[place], folder, arm.depth, batch=64,
                               device=device, allow_mismatch=True)  # fmt: skip
                write_json(folder / "metrics.json", asdict(found))
                return
            precision = str(trainer.get("precision", "32-true"))
            test(encoder, data, folder, device=device, precision=precision, allow_mismatch=True)

        needs = needs if train is None else (*needs, train)
        kind = "rerank" if arm.kind == "rerank" else "test"
        return CachedStep(kind, title, settings, needs, work)

    def _parts(
        self, arm: Arm, seed: int, where: Enriching, views: Views, made: Sequence[Path],
        *settings: str,
    ) -> Parts:  # fmt: skip
        """What the config describes, with the settings of setup, experiment and arm."""
        setup = self.setup
        from retrievers.training.parts import read_parts

        told = [
            f"data.root={where.root.resolve()}", f"data.seed={seed}",
            *([] if setup.batch_size is None else [f"data.batch_size={setup.batch_size}"]),
            *([f"data.tasks={list(setup.tasks)}"] if setup.tasks else []),
            *setup.fit, *self.experiment.fit, *arm.model,
            *(f"data.{side}={json.dumps(asdict(config))}"
              for side, config in view_configs(views, made).items()),
            *settings,
        ]  # fmt: skip
        config = arm.config or setup.config
        return read_parts([f"--config={config}", *(f"--{one}" for one in told)], seed)


def _written(folder: Path, candidates: Path | None = None) -> list[str]:
    """Settings of words that stand before the vectors of queries, and of candidates."""
    source = read_source(folder)
    words = [f"data.written.store={source.store.resolve()}",
             f"data.written.recipe={source.recipes['query']}"]  # fmt: skip
    if candidates is not None:
        source = read_source(candidates)
        words += [f"data.written.candidates={source.store.resolve()}",
                  f"data.written.candidates_recipe={source.recipes['corpus']}"]  # fmt: skip
    return words


def _files(words: Sequence[str], root: Path) -> dict[str, str]:
    """Contents of files that arguments name and no digest of the root holds."""
    told = (word.partition("=") for word in words)
    named = [path for name, _, path in told if name in _READ and path != _TRUTH]
    return {name: sha256(Path(name.replace("${data.root}", str(root)))) for name in named}


#: Name files that a training reads.
_READ = ("model.rehearsal.path", "data.written.only")
#: Is what it is in every world of one digest.
_TRUTH = "${data.root}/truth/reasoning.txt"
#: Has every query write.
_ALWAYS = "model.encoder.reasoning.when=always"


def _weights(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def _extras(arm: Arm) -> str:
    words = [arm.config, *arm.model, *arm.fit, *arm.test]
    return "".join(f", {word}" for word in words if word)


def view_configs(views: Views, made: Sequence[Path]) -> dict[Side, ViewConfig]:
    """What a retriever is shown of each side; ``made`` begins with folders of ``views.texts``."""
    sources = {name: read_source(path) for name, path in zip(views.texts, made, strict=False)}
    configs: dict[Side, ViewConfig] = {}
    for side, view in zip(SIDES, (views.query, views.corpus), strict=True):
        source = sources.get(view.text)
        configs[side] = view.config() if source is None else view.config(
            str(source.store.resolve()), source.recipes[side]
        )  # fmt: skip
    return configs
