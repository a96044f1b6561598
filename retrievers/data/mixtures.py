"""Mixtures: in training, the text of an item is drawn from several views.

A retriever that has met every text in one form only is lost when the form changes or the text is
missing. LaCLIP (2305.20088) draws among an original and its rewrites, Recap-DataComp (2406.08478)
between original and generated captions at a fixed rate; lengths and missing text are ours.

A text may also lose its summary and some of its other sentences. Long captions begin with a
summary, and a text encoder that is trained on them whole learns to read little else. DeBias-CLIP
(2602.22419) drops the first sentence and keeps some of the others; DreamLIP (2403.17007) keeps one
at a time, FLAIR (2412.03561) up to three. Where text is cut at the encoder's context, sampling
also brings sentences in front of the cut that would never be read. Not taken over from DeBias-
CLIP: the caption beside its sample in one loss (here one of the two is drawn), and the padding in
front of the text.

A draw depends on what the caller seeds the generator with and on nothing else, so that a resumed
run draws what it would have drawn. Tests draw nothing: they show the named view.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import final

from augment.checks.lengths import LENGTHS, Length, split_sentences
from augment.errors import DataError
from augment.records import Item, Side
from augment.views import VIEWS, TextView

_NAMED = re.compile(rf"\b(?:{'|'.join(VIEWS)}):[0-9a-f]{{12}}")


@dataclass(frozen=True)
class SentenceSampling:
    """How texts are thinned out in training; tests show them whole.

    Args:
        share: chance that a text is thinned out; 0 never, 1 always.
        most: sentences kept at most, the number being drawn evenly from 1; null stands for all of
            them, 1 is DreamLIP's, 3 FLAIR's.
        summary_drop: chance that a thinned text loses its summary first: the first sentence of the
            generated text, or of the published one where there is none. DeBias-CLIP's is 1.
        shuffle: draw the order of the sentences, too, as DeBias-CLIP's project page has it.
    """

    share: float = 0.0
    most: int | None = None
    summary_drop: float = 1.0
    shuffle: bool = False

    def __post_init__(self) -> None:
        for name in ("share", "summary_drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"sentences.{name} must be from 0 to 1, is {getattr(self, name)}")
        if self.most is not None and self.most < 1:
            raise DataError(f"sentences.most must be at least 1, is {self.most}")

    @property
    def name(self) -> str:
        """What a checkpoint remembers; empty if nothing is sampled."""
        if not self.share:
            return ""
        told = f"{self.share:g},{self.most or 'all'},{self.summary_drop:g}"
        return f"~sentences({told}{',shuffled' if self.shuffle else ''})"


def sample_sentences(
    published: str | None, generated: str | None, sampling: SentenceSampling, random: Random
) -> str | None:
    """A text thinned out, or whole.

    ``random`` is asked once if the text stays whole.

    Returns:
        The parts on lines of their own, as a view shows them; None if there is no text.
    """
    if random.random() >= sampling.share:
        return _joined([published, generated])
    parts = [split_sentences(part or "") for part in (published, generated)]
    sentences = [(place, text) for place, part in enumerate(parts) for text in part]
    if not sentences:
        return _joined([published, generated])
    summary = len(parts[0]) if parts[1] else 0
    if random.random() < sampling.summary_drop and len(sentences) > 1:
        del sentences[summary]
    most = min(sampling.most or len(sentences), len(sentences))
    chosen = random.sample(range(len(sentences)), random.randint(1, most))
    if sampling.shuffle:
        return " ".join(sentences[number][1] for number in chosen)
    kept = [sentences[number] for number in sorted(chosen)]
    return _joined([" ".join(text for place, text in kept if place == part) for part in (0, 1)])


def _joined(parts: Sequence[str | None]) -> str | None:
    return "\n".join(part for part in parts if part and part.strip()) or None


@final
class Mixture:
    """Views of one side with their shares. Made by :func:`make_mixture`.

    Attributes:
        named: the view that tests show.
        shares: view -> probability, the named view first; they sum to 1.
        sentences: how drawn texts are thinned out.
    """

    def __init__(
        self, named: TextView, shares: Mapping[TextView, float], sentences: SentenceSampling
    ) -> None:
        self.named = named
        self.sentences = sentences
        # In an order of their own: that of a settings file must not change a draw.
        self.shares = dict(
            sorted(shares.items(), key=lambda pair: (pair[0] != named, pair[0].name))
        )
        self._views, self._weights = list(self.shares), list(self.shares.values())

    @property
    def side(self) -> Side:
        """Query or corpus."""
        return self.named.side

    @property
    def name(self) -> str:
        """What a checkpoint remembers: every view's name with its share, the named view first."""
        told = "+".join(f"{view.name}={share:.6g}" for view, share in self.shares.items())
        return f"mix({told}){self.sentences.name}"

    def draw(self, item: Item, random: Random) -> str | None:
        """A text of the item.

        Args:
            item: where a drawn view leaves an item without text or picture, the named one is
                shown.
            random: seeded for this item; is asked at least twice.
        """
        (view,) = random.choices(self._views, self._weights)
        generated = None if view.view == "raw" else view.generated(item.id)
        # Of the two parts that the view shows, one may be missing.
        published = item.text if view.view != "replace" or not generated else None
        text = sample_sentences(published, generated, self.sentences, random)
        if not text and item.image is None:
            return self.named.text(item)
        return self.named.marked(item, text)


def make_mixture(
    named: TextView,
    mix: Mapping[str, float] | None,
    dropout: float = 0.0,
    sentences: SentenceSampling = SentenceSampling(),
    generated: TextView | None = None,
) -> Mixture | None:
    """A mixture, or None if the settings ask for the named view alone.

    Args:
        named: the view that tests show; it must have a share.
        mix: name -> weight; weights are divided by their sum. A name is ``raw``, a length
            (``dense``, ``short``, ``sentences``) shown as the named view does, or both with a colon
            (``append:short``). None gives the named view everything.
        dropout: chance that the generated text is left out, whatever the mixture; a share of raw.
        sentences: how drawn texts are thinned out.
        generated: a view that has the generated texts; None takes the named one.

    Raises:
        DataError: if a name or number cannot be used.
    """
    if mix is None and not dropout and not sentences.share:
        return None
    where = f"data.{named.side}"
    if not 0 <= dropout < 1:
        raise DataError(f"must be from 0 to below 1, is {dropout}", f"{where}.dropout")
    source = generated or named
    weights = {named.name: 1.0} if mix is None else {}
    views = {named.name: named}
    for name, weight in (mix or {}).items():
        if not weight >= 0:
            raise DataError(f"weight of {name!r} is {weight}; 0 or more", f"{where}.mix")
        view = source.other(*_parse(name, named, f"{where}.mix"))
        if view.view != "raw" and not source.recipe:
            raise DataError(f"{name!r} shows generated text: name the store", f"{where}.mix")
        views.setdefault(view.name, view)
        weights[view.name] = weights.get(view.name, 0.0) + weight
    total = sum(weights.values())
    if not 0 < total < float("inf"):
        raise DataError(f"the weights sum to {total}; give one more than 0", f"{where}.mix")
    raw = source.other("raw")
    views.setdefault(raw.name, raw)
    shares = {name: (1 - dropout) * weight / total for name, weight in weights.items()}
    shares[raw.name] = shares.get(raw.name, 0.0) + dropout
    if not shares.get(named.name):
        raise DataError(
            f"the view that tests show ({named.view}, {named.length}) has no share; give it one, "
            f"or name another with {where}.view and {where}.length",
            f"{where}.mix",
        )
    return Mixture(
        named, {views[name]: share for name, share in shares.items() if share}, sentences
    )


def _parse(name: str, named: TextView, where: str) -> tuple[str, Length]:
    if name == "raw":
        return "raw", "dense"
    view, colon, length = name.rpartition(":")
    view = view if colon else named.view
    if length not in LENGTHS or view not in ("append", "replace"):
        hint = "; with view raw, write append:dense or replace:dense" if length in LENGTHS else ""
        raise DataError(
            f"unknown text {name!r}; choose raw, {', '.join(LENGTHS)}, or VIEW:LENGTH such as "
            f"append:short{hint}",
            where,
        )
    return view, length


def named_views(remembered: str) -> tuple[str, ...]:
    """Names of the views in what a checkpoint remembers of one side, the named view first."""
    return tuple(_NAMED.findall(remembered))
