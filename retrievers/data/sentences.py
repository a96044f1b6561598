"""Sentence sampling: in training, a text may lose its summary and some of its other sentences.

Long captions begin with a summary, and a text encoder that is trained on them whole learns to read
little else. DeBias-CLIP (2602.22419) drops the first sentence and keeps some of the others;
DreamLIP (2403.17007) keeps one sentence at a time, FLAIR (2412.03561) up to three. Where text is
cut at the encoder's context, sampling also brings sentences in front of the cut that would never be
read.

Not taken over from DeBias-CLIP: the caption beside its sample in one loss (here one of the two is
drawn), and the padding in front of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from augment.checks.lengths import split_sentences
from augment.errors import DataError


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

    Args:
        published: the first part of the text as shown, or None.
        generated: the part behind it, or None.
        sampling: how.
        random: is asked once if the text stays whole.

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
