"""What an experiment is: its question and prediction, texts, arms, comparisons; read from YAML.

::

    name: filler
    question: Is it the content of the text or its length?
    prediction: Filler gains less than a third of what the enrichment gains.
    texts:                                  # beside vlm and oracle, which are always there
      filler: {kind: filler, of: vlm}
    shown:                                  # beside raw, enriched, query, corpus and texts' names
      filler: {query: filler append, corpus: filler append}
    arms:
      raw: {train: raw, show: raw}
      filler: {train: filler, show: filler}
    compare: [[raw, filler]]

A view is ``raw``, or a text's name and a view of :mod:`augment.views`, and further fields of
:class:`retrievers.data.texts.ViewConfig`: ``vlm append length=short``. A text's name alone stands
for queries replaced by it and candidates with it behind them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from augment.errors import DataError
from augment.records import Side

if TYPE_CHECKING:
    from retrievers.data.texts import ViewConfig

#: A folder a paper or topic, a YAML an experiment.
FOLDER = Path(__file__).parent.parent
SIDES: tuple[Side, Side] = ("query", "corpus")

Settings = TypeVar("Settings")
TextKind = Literal[
    "vlm", "oracle", "chains", "leaky", "clauses", "filler", "permuted", "prefixed", "noise",
    "reasoned", "select", "joined", "kept", "voiced", "replaced", "confirmed",
]  # fmt: skip
#: Kinds that read a second text.
_TWO: Collection[TextKind] = ("joined", "kept", "confirmed")
#: Settings of each kind of text, beside ``of`` for those made from another text; not named: none.
SETTINGS: Mapping[TextKind, Collection[str]] = {
    "vlm": ("modification_prompt", "text_prompt", "model"),
    "oracle": ("text_prompt",),
    "chains": ("question_prompt", "modification_prompt", "text_prompt"),
    "permuted": ("seed",),
    "prefixed": ("prefix",),
    "noise": ("hallucination", "omission", "seed"),
    "voiced": ("omission", "misspelt", "seed"),
    "reasoned": ("omission", "seed"),
    "select": ("share", "router", "seed", "contested_by"),
    "joined": ("then",),
    "kept": ("then",),
    "replaced": ("pattern", "words"),
    "confirmed": ("then",),
}


def worded(kind: Callable[..., Settings], words: Sequence[str]) -> Settings:
    """Settings of a kind from words such as ``length=short``.

    Raises:
        ArgumentError: if there is no such setting.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "it")
    made: Settings = parser.instantiate(parser.parse_args([f"--it.{word}" for word in words])).it
    return made


@final
@dataclass(frozen=True)
class SideView:
    """Which text of one side is shown: ``raw``, or a named text in a view with options."""

    text: str = ""
    view: str = "raw"
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(word for word in (self.text, self.view, *self.options) if word)

    def config(self, store: str | None = None, recipe: str | None = None) -> ViewConfig:
        """The same for a retriever, of the texts of a store.

        Raises:
            ArgumentError: if there is no such view or option.
        """
        from retrievers.data.texts import ViewConfig

        config = worded(ViewConfig, (f"view={self.view}", *self.options))
        return replace(config, store=store, recipe=recipe)


@final
@dataclass(frozen=True)
class Views:
    """The views of both sides."""

    query: SideView = SideView()
    corpus: SideView = SideView()

    @classmethod
    def of(cls, text: str) -> Views:
        """A text in its usual views: it replaces queries and stands behind candidates."""
        return cls(SideView(text, "replace"), SideView(text, "append"))

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the texts in use."""
        return tuple(dict.fromkeys(v.text for v in (self.query, self.corpus) if v.text))

    def __str__(self) -> str:
        return "raw text" if self == Views() else f"queries {self.query}, corpus {self.corpus}"


@final
@dataclass(frozen=True)
class TextSpec:
    """A set of generated texts; which setting is of which kind, see :data:`SETTINGS`.

    Attributes:
        kind: how it is made, see :mod:`benchmarks.experiments.texts`.
        of: name of the text that it is made from; empty for vlm, oracle and chains.
        then: name of the text that stands behind it, or says what is right or seen.
        question_prompt: of questions about a picture; empty: the usual one.
        modification_prompt: of requests to change a picture; empty: the usual one.
        text_prompt: of queries without a picture; empty: they are left as they are.
        prefix: words in front of each text.
        pattern: regular expression of what is replaced.
        words: in its place; may name the expression's groups.
        hallucination: chance that a fact is exchanged for a rival.
        omission: chance that a fact is left out.
        misspelt: chance that two letters of a long word change places.
        share: of the items that keep their text.
        router: puts items in order, see :mod:`benchmarks.experiments.noise`.
        contested_by: arm that the router asks.
        model: whose texts of the given store these are, in place of those that are meant; ``A+B``
            those of two, together.
        seed: of what is drawn.
    """

    kind: TextKind
    of: str = ""
    then: str = ""
    question_prompt: str = ""
    modification_prompt: str = ""
    text_prompt: str = ""
    prefix: str = ""
    pattern: str = ""
    words: str = ""
    hallucination: float = 0.0
    omission: float = 0.0
    misspelt: float = 0.0
    share: float = 0.0
    router: str = "random"
    contested_by: str = ""
    model: str = ""
    seed: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the defaults, without kind and ``of``."""
        defaults = asdict(TextSpec(self.kind, self.of))
        return {key: value for key, value in asdict(self).items() if value != defaults[key]}


@final
@dataclass(frozen=True)
class Arm:
    """A retriever and what it is shown in the test.

    Arguments of ``python -m retrievers`` are written without their dashes: ``model.chunk=16``.

    Attributes:
        kind: ``dense``; ``bm25``; ``fusion`` of two other arms; or ``rerank``, which scores what
            another arm finds.
        train: text that it is trained on; None takes the weights as they are packaged.
        show: text in the test; None for a fusion.
        taught: text that it learns to write before the vectors of queries; empty: none.
        taught_candidates: text that it learns to write before those of candidates; empty: none.
        given: text that stands there in the test, in place of what it would write; empty: none.
        effort: optimiser steps in units of the ordinary training.
        of: the fused arms; the one whose best candidates a rerank arm scores.
        depth: so many of each query.
        tuned: whether the weights of a fusion are tuned, on the val split or, where there is none
            and no fused arm is trained, on train; otherwise reciprocal ranks are added.
        config: of the retriever; empty takes the setup's.
        model: arguments of training and test.
        fit: arguments of the training alone.
        test: arguments of the test alone.
        budget: tokens a query that it may write in the test, on average; from which probability of
            the mark on it writes nothing is chosen for that on the val split. 0: no threshold.
        mined_by: arm whose checkpoint of the same seed, or packaged weights, find negatives for it.
        judged_by: rerank arm whose scores judge what is found, in place of the retriever's own.
        mining: settings of :class:`retrievers.search.mining.MiningConfig`: ``other_modality=0.5``.
    """

    kind: Literal["dense", "bm25", "fusion", "rerank"] = "dense"
    train: Views | None = None
    show: Views | None = None
    effort: float = 1.0
    of: tuple[str, ...] = ()
    depth: int = 10
    tuned: bool = True
    config: str = ""
    model: tuple[str, ...] = ()
    fit: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    taught: str = ""
    taught_candidates: str = ""
    given: str = ""
    budget: float = 0.0
    mined_by: str = ""
    judged_by: str = ""
    mining: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Curve:
    """Arms along an axis, between an arm without text and one with all of it.

    Attributes:
        x: places on the axis.
        arms: one for each place.
        base: the arm whose score is no gain.
        full: the arm whose score is the whole gain.
        find: ``break_even``, where the gain is gone; ``keep_95``, where 95 % of it is reached.
    """

    x: tuple[float, ...]
    arms: tuple[str, ...]
    base: str
    full: str
    find: Literal["break_even", "keep_95"]


@final
@dataclass(frozen=True)
class Experiment:
    """One question with all that answers it.

    Attributes:
        name: of its results.
        question: that it answers.
        prediction: written before the run.
        texts: by name.
        arms: by name.
        compare: pairs of arms, compared task by task.
        against: arm that all others are compared with in one table; empty: none.
        curves: by the name of their axis.
        routes: pairs of arms of one model that never writes and always writes, between which other
            rules than its own are asked who should write.
        union: whether the union of all pools is searched as well.
        fit: further arguments of all trainings and tests.
    """

    name: str
    question: str
    prediction: str
    texts: Mapping[str, TextSpec] = field(default_factory=dict)
    arms: Mapping[str, Arm] = field(default_factory=dict)
    compare: Sequence[tuple[str, str]] = ()
    against: str = ""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    routes: Sequence[tuple[str, str]] = ()
    union: bool = False
    fit: tuple[str, ...] = ()


def packaged() -> dict[str, Path]:
    """Name -> file of the packaged experiments, in their order."""
    others = ("words.yaml", "texts.yaml", "shapes.yaml")  # tables of words, texts and sizes
    files = [path for path in sorted(FOLDER.glob("*/*.yaml")) if path.name not in others]
    return {re.sub(r"^\d+-", "", path.stem): path for path in files}


def load_all(names: Sequence[str]) -> list[Experiment]:
    """Experiments by name, folder (``rar``) or file; ``all`` takes every packaged one.

    Raises:
        DataError: if there is none, or it cannot be used; says where and why.
    """
    return [_load(path) for name in names for path in _paths(name)]


def _paths(name: str) -> Iterator[Path]:
    known = packaged()
    several = [path for path in known.values() if name in ("all", path.parent.name)]
    if Path(name).suffix or several:
        yield from several or [Path(name)]
    elif name in known:
        yield known[name]
    else:
        near = difflib.get_close_matches(name, known, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"no experiment {name!r}{meant} There are {', '.join(known)}")


def _load(path: Path) -> Experiment:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"cannot be read: {error}", str(path)) from error
    return parse(value, str(path))


def parse(value: Any, where: str = "experiment") -> Experiment:
    """An experiment from what its YAML holds.

    Raises:
        DataError: names the part and what is wrong with it.
    """
    if not isinstance(value, dict):
        raise DataError(f"is {value!r}; expected names and values", where)
    for part in ("texts", "shown", "arms"):
        given = value.get(part) or {}
        if not isinstance(given, dict):
            raise DataError(f"{part} is {given!r}; expected names and values", where)
    texts = {"vlm": {"kind": "vlm"}, "oracle": {"kind": "oracle"}, **(value.get("texts") or {})}
    shown = {name: Views.of(name) for name in texts}
    enriched = shown["vlm"]
    shown |= {"raw": Views(), "enriched": enriched}
    shown |= {"query": Views(enriched.query), "corpus": Views(corpus=enriched.corpus)}
    for name, given in (value.get("shown") or {}).items():
        shown[name] = _views(given, shown, texts, f"{where}: shown.{name}")
    arms: dict[str, Any] = {}
    views: dict[str, dict[str, Any]] = {}
    for name, given in (value.get("arms") or {}).items():
        if not isinstance(given, dict):
            raise DataError(f"arms.{name} is {given!r}; expected names and values", where)
        at, keys = f"{where}: arms.{name}", [key for key in ("train", "show") if key in given]
        views[name] = {key: _views(given[key], shown, texts, at) for key in keys}
        arms[name] = {key: one for key, one in given.items() if key not in keys}
    plain = {key: one for key, one in value.items() if key != "shown"}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--experiment", type=Experiment)
    try:
        read = parser.parse_object({"experiment": {**plain, "texts": texts, "arms": arms}})
    except ArgumentError as error:
        raise DataError(str(error), where) from error
    found: Experiment = parser.instantiate(read).experiment
    found = replace(found, arms={n: replace(arm, **views[n]) for n, arm in found.arms.items()})
    for problem in _problems(found):
        raise DataError(problem, where)
    return found


def by_oracle(experiment: Experiment) -> Experiment:
    """The same with the oracle's texts in place of the model's."""
    return replace(experiment, texts={**experiment.texts, "vlm": TextSpec("oracle")})


_ADAPTIVE = "model.encoder.reasoning.when=adaptive"


def _misnamed(name: str, arm: Arm, before: Sequence[str]) -> Iterator[str]:
    """What an arm says of others that does not hold."""
    if arm.kind == "fusion" and (len(arm.of) < 2 or not set(arm.of) <= set(before)):
        yield f"arms.{name} fuses {list(arm.of)}; name two or more arms before it"
    if arm.kind == "rerank" and (len(arm.of) != 1 or arm.of[0] not in before):
        yield f"arms.{name} reranks {list(arm.of)}; name one arm before it"
    if arm.kind == "rerank" and arm.given:
        yield f"arms.{name} is given {arm.given!r}; a reranker writes nothing: take given away"
    if arm.judged_by and (arm.judged_by not in before or not arm.mined_by):
        yield f"arms.{name} is judged by {arm.judged_by!r}; name an arm before it, and mined_by"
    if arm.kind != "fusion" and arm.show is None:
        yield f"arms.{name} says not what it is shown: add show"
    if arm.mined_by and arm.mined_by not in before:
        yield f"arms.{name} is mined by {arm.mined_by!r}; name an arm before it"


def _untaught(name: str, arm: Arm, texts: Mapping[str, TextSpec]) -> Iterator[str]:
    """What an arm whose candidates write lacks."""
    if not arm.taught_candidates:
        return
    if not arm.taught:
        yield f"arms.{name} teaches candidates alone; say what queries are taught"
    if arm.given:
        yield f"arms.{name} is given words of queries, and those of candidates are not"
    if texts.get(arm.taught_candidates, TextSpec("vlm")).kind == "chains":
        yield f"arms.{name} is taught {arm.taught_candidates!r}, which has no candidates"


def _uncalibrated(name: str, arm: Arm) -> Iterator[str]:
    """Why no threshold can be chosen for an arm that has a budget."""
    if not arm.budget:
        return
    if arm.kind != "dense" or arm.given or not arm.taught or arm.budget < 0:
        yield f"arms.{name} has a budget of tokens; that is of an arm that is taught and not given"
    if _ADAPTIVE not in arm.test:
        yield f"arms.{name} has a budget of tokens; add test: [{_ADAPTIVE}]"


def _compiles(pattern: str) -> bool:
    try:
        return bool(pattern and re.compile(pattern))
    except re.error:
        return False


def _problems(found: Experiment) -> Iterator[str]:
    """What cannot be run as it is written."""
    before: list[str] = []
    for name, one in found.texts.items():
        if unknown := sorted(set(one.settings) - set(SETTINGS.get(one.kind, ()))):
            yield f"texts.{name}: {one.kind} does not know {', '.join(unknown)}"
        wanted = [] if one.kind in ("vlm", "oracle", "chains") else [one.of]
        for source in {*wanted, *([one.then] if one.kind in _TWO else [])} - {*before}:
            yield f"texts.{name} is of {source!r}; texts before it are {', '.join(before)}"
        if one.kind == "replaced" and not _compiles(one.pattern):
            yield f"texts.{name}: {one.pattern!r} is no pattern of what is to be replaced"
        before.append(name)
    before = list(found.arms)
    for place, (name, arm) in enumerate(found.arms.items()):
        yield from _misnamed(name, arm, before[:place])
        yield from _untaught(name, arm, found.texts)
        yield from _uncalibrated(name, arm)
        for told, text in (("taught", arm.taught), ("taught", arm.taught_candidates),
                           ("given", arm.given)):  # fmt: skip
            if text and text not in found.texts:
                yield f"arms.{name} is {told} {text!r}; texts are {', '.join(found.texts)}"
    used = [name for pair in (*found.compare, *found.routes) for name in pair]
    used += [found.against] if found.against else []
    for curve in found.curves.values():
        if len(curve.x) != len(curve.arms) or len(curve.x) < 2:
            yield "a curve needs as many arms as places x, at least two"
        used += [*curve.arms, curve.base, curve.full]
    yield from (f"names the arm {name!r}; there are {', '.join(before)}"
                for name in used if name not in before)  # fmt: skip


def _side(value: Any, texts: Collection[str], where: str) -> SideView:
    """A view from its words."""
    words = str(value).split()
    if words == ["raw"]:
        return SideView()
    if len(words) < 2 or words[0] not in texts:
        told = f"is neither raw nor a text and a view; texts are {', '.join(texts)}"
        raise DataError(f"the view {value!r} {told}", where)
    view = SideView(words[0], words[1], tuple(words[2:]))
    try:
        view.config("store")
    except (ValueError, ArgumentError) as error:
        raise DataError(f"the view {value!r}: {error}", where) from error
    return view


def _views(value: Any, known: Mapping[str, Views], texts: Collection[str], where: str) -> Views:
    if isinstance(value, str):
        if value not in known:
            raise DataError(f"shows {value!r}; there are {', '.join(known)}", where)
        return known[value]
    if not isinstance(value, dict) or set(value) != set(SIDES):
        raise DataError(f"shows {value!r}; name a preset, or a view for query and corpus", where)
    return Views(*(_side(value[side], texts, where) for side in SIDES))
