"""What an experiment is: its question and prediction, texts, arms, comparisons; read from YAML.

::

    name: filler
    question: Is it the content of the text or its length?
    prediction: Filler gains less than a third of what the enrichment gains.
    texts:                                  # beside vlm and oracle, which are always there
      filler: {kind: filler, of: vlm}
    shown:                                  # beside raw, enriched, query, corpus and oracle
      filler: {query: filler append, corpus: filler append}
    arms:
      raw: {train: raw, show: raw}
      filler: {train: filler, show: filler}
    compare: [[raw, filler]]

A view is ``raw``, or a text's name and a view of :mod:`augment.views`, and further fields of
:class:`retrievers.data.texts.ViewConfig`: ``vlm append length=short``.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, final, get_args

import yaml

from augment.errors import DataError
from augment.records import Side
from retrievers.data.texts import ViewConfig

FOLDER = Path(__file__).parent.parent / "rar"

TextKind = Literal["vlm", "oracle", "clauses", "filler", "permuted", "noise", "select"]
#: Settings of each kind of text, beside ``of`` for those made from another text.
TEXT_SETTINGS: Mapping[str, Collection[str]] = {
    "vlm": ("modification_prompt",),
    "oracle": (),
    "clauses": (),
    "filler": (),
    "permuted": ("seed",),
    "noise": ("hallucination", "omission", "seed"),
    "select": ("share", "router", "seed", "contested_by"),
}
_OPTIONS = {one.name for one in fields(ViewConfig)} - {"view", "store", "recipe"}
_SIDES: tuple[Side, Side] = ("query", "corpus")


@final
@dataclass(frozen=True)
class View:
    """Which text of one side is shown: ``raw``, or a named text in a view."""

    text: str = ""
    view: str = "raw"
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        words = [self.text, self.view, *(f"{key}={value}" for key, value in self.options)]
        return " ".join(word for word in words if word)


@final
@dataclass(frozen=True)
class Shown:
    """The views of both sides."""

    query: View
    corpus: View

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the texts in use."""
        return tuple(dict.fromkeys(v.text for v in (self.query, self.corpus) if v.text))


@final
@dataclass(frozen=True)
class Text:
    """A set of generated texts.

    Attributes:
        name: in this experiment.
        kind: how it is made, see :mod:`benchmarks.experiments.texts`.
        of: name of the text that it is made from; empty for vlm and oracle.
        settings: of its kind.
    """

    name: str
    kind: TextKind
    of: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)


@final
@dataclass(frozen=True)
class Arm:
    """A retriever and what it is shown in the test.

    Attributes:
        name: in this experiment.
        kind: ``dense``; ``bm25``; or ``fusion`` of two other arms.
        train: text that it is trained on; None takes the weights as they are packaged.
        show: text in the test; None for a fusion.
        effort: optimiser steps in units of the ordinary training.
        of: the fused arms.
        test: further arguments of the test alone, such as ``model.text.windows=3``.
    """

    name: str
    kind: Literal["dense", "bm25", "fusion"] = "dense"
    train: Shown | None = None
    show: Shown | None = None
    effort: float = 1.0
    of: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Curve:
    """Arms along an axis, between an arm without text and one with all of it.

    Attributes:
        name: what the axis is.
        x: places on the axis.
        arms: one for each place.
        base: the arm whose score is no gain.
        full: the arm whose score is the whole gain.
        find: ``break_even``, where the gain is gone; ``keep_95``, where 95 % of it is reached.
    """

    name: str
    x: tuple[float, ...]
    arms: tuple[str, ...]
    base: str
    full: str
    find: Literal["break_even", "keep_95"]


@final
@dataclass(frozen=True)
class Experiment:
    """One question with all that answers it."""

    name: str
    question: str
    prediction: str
    texts: Mapping[str, Text]
    arms: Mapping[str, Arm]
    compare: Sequence[tuple[str, str]]
    curves: Sequence[Curve] = ()
    grid: bool = False
    union: bool = False


def grid_name(train: str, query: str, corpus: str) -> str:
    """Name of a cell of the 2 x 2 x 2, such as ``raw: raw, enriched``."""
    return f"trained {train}; query {query}, corpus {corpus}"


def names() -> list[str]:
    """The packaged experiments, in their order."""
    return [path.stem.partition("-")[2] for path in sorted(FOLDER.glob("*.yaml"))]


def load(name: str) -> Experiment:
    """A packaged experiment by its name, or one in a file.

    Raises:
        DataError: if there is none, or it cannot be used; says where and why.
    """
    path = Path(name)
    if not path.suffix:
        found = list(FOLDER.glob(f"*-{name}.yaml"))
        if not found:
            near = difflib.get_close_matches(name, names(), 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise DataError(f"no experiment {name!r}{meant} There are {', '.join(names())}")
        path = found[0]
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
    known = {one.name for one in fields(Experiment)} | {"shown"}
    _check(value, known, {"name", "question", "prediction"}, where)
    texts = {"vlm": Text("vlm", "vlm"), "oracle": Text("oracle", "oracle")}
    for name, given in (value.get("texts") or {}).items():
        texts[name] = _text(name, given, texts, where)
    shown = _presets()
    for name, given in (value.get("shown") or {}).items():
        shown[name] = _shown(given, shown, texts, f"{where}: shown.{name}")
    arms: dict[str, Arm] = {}
    for name, given in (value.get("arms") or {}).items():
        arms[name] = _arm(name, given, shown, texts, arms, where)
    if value.get("grid"):
        arms |= _grid(shown)
    compare = [tuple(pair) for pair in value.get("compare") or ()]
    curves = [_curve(name, given, where) for name, given in (value.get("curves") or {}).items()]
    used = [name for pair in compare for name in pair]
    used += [name for curve in curves for name in (*curve.arms, curve.base, curve.full)]
    for name in used:
        if name not in arms:
            raise DataError(f"names the arm {name!r}; there are {', '.join(arms)}", where)
    return Experiment(
        value["name"], value["question"], value["prediction"], texts, arms, compare, curves,
        bool(value.get("grid")), bool(value.get("union")),
    )  # fmt: skip


def _presets() -> dict[str, Shown]:
    query, corpus, raw = View("vlm", "replace"), View("vlm", "append"), View()
    return {
        "raw": Shown(raw, raw),
        "enriched": Shown(query, corpus),
        "query": Shown(query, raw),
        "corpus": Shown(raw, corpus),
        "oracle": Shown(View("oracle", "replace"), View("oracle", "append")),
    }


def _grid(shown: Mapping[str, Shown]) -> dict[str, Arm]:
    raw, enriched = shown["raw"], shown["enriched"]
    views = {"raw": raw, "enriched": enriched}
    cells = {}
    for train in views:
        for query in views:
            for corpus in views:
                name = grid_name(train, query, corpus)
                seen = Shown(views[query].query, views[corpus].corpus)
                cells[name] = Arm(name, train=views[train], show=seen)
    return cells


def view(value: Any, texts: Collection[str], where: str) -> View:
    """A view from its words.

    Raises:
        DataError: if a word is unknown.
    """
    words = str(value).split()
    if words == ["raw"]:
        return View()
    if len(words) < 2 or words[0] not in texts:
        raise DataError(
            f"the view {value!r} is neither raw nor a text and a view; texts are "
            f"{', '.join(texts)}",
            where,
        )
    options = [tuple(word.split("=", 1)) for word in words[2:]]
    for option in options:
        if len(option) != 2 or option[0].partition(".")[0] not in _OPTIONS:
            raise DataError(
                f"the view {value!r} has {option[0]!r}; write OPTION=VALUE with one of "
                f"{', '.join(sorted(_OPTIONS))}",
                where,
            )
    return View(words[0], words[1], tuple((key, text) for key, text in options))


def _shown(value: Any, presets: Mapping[str, Shown], texts: Collection[str], where: str) -> Shown:
    if isinstance(value, str):
        if value not in presets:
            raise DataError(f"shows {value!r}; there are {', '.join(presets)}", where)
        return presets[value]
    _check(value, _SIDES, _SIDES, where)
    return Shown(*(view(value[side], texts, where) for side in _SIDES))


def _text(name: str, value: Any, texts: Mapping[str, Text], where: str) -> Text:
    where = f"{where}: texts.{name}"
    _check(value, None, {"kind"}, where)
    kind = value["kind"]
    if kind not in get_args(TextKind):
        raise DataError(f"kind {kind!r}; there are {', '.join(get_args(TextKind))}", where)
    made_anew = kind in ("vlm", "oracle")
    needed = {"kind"} if made_anew else {"kind", "of"}
    _check(value, {*needed, *TEXT_SETTINGS[kind]}, needed, where)
    if not made_anew and value["of"] not in texts:
        raise DataError(f"is of {value['of']!r}; texts before it are {', '.join(texts)}", where)
    settings = {key: value[key] for key in TEXT_SETTINGS[kind] if key in value}
    return Text(name, kind, value.get("of", ""), settings)


def _arm(
    name: str,
    value: Any,
    shown: Mapping[str, Shown],
    texts: Collection[str],
    arms: Mapping[str, Arm],
    where: str,
) -> Arm:
    where = f"{where}: arms.{name}"
    _check(value, {"kind", "train", "show", "effort", "of", "test"}, (), where)
    kind = value.get("kind", "dense")
    if kind == "fusion":
        of = tuple(value.get("of", ()))
        if len(of) < 2 or any(one not in arms for one in of):
            raise DataError(f"fuses {list(of)}; name two or more arms before it", where)
        return Arm(name, "fusion", of=of)
    if kind not in ("dense", "bm25"):
        raise DataError(f"kind {kind!r}; there are dense, bm25, fusion", where)
    if "show" not in value:
        raise DataError("says not what it is shown: add show", where)
    show = _shown(value["show"], shown, texts, where)
    trained = value.get("train")
    train = None if trained is None else _shown(trained, shown, texts, where)
    test = tuple(value.get("test", ()))
    return Arm(name, kind, train, show, float(value.get("effort", 1)), (), test)


def _curve(name: str, value: Any, where: str) -> Curve:
    where = f"{where}: curves.{name}"
    needed = {"x", "arms", "base", "full", "find"}
    _check(value, needed, needed, where)
    if len(value["x"]) != len(value["arms"]) or len(value["x"]) < 2:
        raise DataError("needs as many arms as places x, at least two", where)
    if value["find"] not in ("break_even", "keep_95"):
        raise DataError(f"finds {value['find']!r}; there are break_even, keep_95", where)
    return Curve(
        name, tuple(map(float, value["x"])), tuple(value["arms"]), value["base"], value["full"],
        value["find"],
    )  # fmt: skip


def _check(value: Any, known: Collection[str] | None, needed: Collection[str], where: str) -> None:
    if not isinstance(value, dict):
        raise DataError(f"is {value!r}; expected names and values", where)
    unknown = sorted(set(value) - set(known)) if known is not None else []
    lacking = sorted(set(needed) - set(value))
    if unknown or lacking:
        told = [f"does not know {', '.join(unknown)}"] if unknown else []
        told += [f"lacks {', '.join(lacking)}"] if lacking else []
        raise DataError("; ".join(told), where)


def with_union(experiment: Experiment, union: bool) -> Experiment:
    """The same experiment, searching the union of all pools as well if that is wanted."""
    return replace(experiment, union=experiment.union or union)
