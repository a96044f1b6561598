"""Does a text say what its picture shows? A CLIP model judges its sentences and its words.

A cosine alone says little: it is high for every plausible text. Two contrasts say more. A sentence
is compared with the sentences of other pictures (``rank``), which finds texts that belong to
another picture. A word that names a colour, number, size or place is exchanged for its rivals
(``words``), which finds single wrong facts, as far as the model knows them: of numbers and places
most CLIP models know little. ``benchmarks/results/checks.md`` has what the packaged model finds.

Needs torch and open_clip, which the rest of the text side does without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, final

from PIL import Image

from augment.checks.lengths import split_sentences
from augment.checks.text import WORDS
from augment.errors import EngineError

#: Words of which a picture shows one and not the others.
RIVALS: tuple[tuple[str, ...], ...] = tuple(tuple(group.split()) for group in WORDS["rivals"])

_GROUP = {word: group for group in RIVALS for word in group}
_RIVAL = re.compile(rf"\b({'|'.join(sorted(_GROUP, key=len, reverse=True))})\b", re.IGNORECASE)


@final
@dataclass(frozen=True)
class TextFit:
    """How well one text fits its picture.

    Attributes:
        cosine: of the sentence that fits worst, -1 to 1.
        rank: of the sentence that fits worst: share of the other texts' sentences that fit the
            picture worse, 0 to 1; 1 where there is no other text.
        words: for every word with rivals, in order, its softmax probability against the same
            sentence with each rival in its place.
    """

    cosine: float
    rank: float
    words: tuple[tuple[str, float], ...]

    @property
    def word(self) -> float:
        """The probability of the word that fits worst; 1 where no word has rivals."""
        return self.doubted[1]

    @property
    def doubted(self) -> tuple[str, float]:
        """The word that fits worst and its probability; empty and 1 where no word has rivals."""
        return min(self.words, key=itemgetter(1), default=("", 1.0))


@final
class Faithfulness:
    """Scores texts against pictures.

    Args:
        model: an open_clip model: a folder, ``local-dir:``, ``hf-hub:`` or a name.
        pretrained: tag of the weights, where ``model`` is a name.

    Raises:
        EngineError: if open_clip is not installed or there is no such model.
    """

    def __init__(self, model: str, pretrained: str | None = None) -> None:
        try:
            import open_clip
        except ImportError as error:
            raise EngineError(
                "faithfulness needs open_clip: pip install open_clip_torch"
            ) from error
        name = f"local-dir:{model}" if Path(model).is_dir() else model
        try:
            loaded = open_clip.create_model_and_transforms(name, pretrained=pretrained)
            self._tokenizer: Any = open_clip.get_tokenizer(name)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            raise EngineError(f"cannot load the CLIP model {model!r}: {error}") from error
        self._model: Any = loaded[0].eval()
        self._transform: Any = loaded[2]

    def score(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[TextFit]:
        """Score one text per picture; each text is also the contrast of the others.

        Some dozens of pictures make ``rank`` meaningful.
        """
        import torch

        split = [split_sentences(text) or [text] for text in texts]
        plain = [sentence for sentences in split for sentence in sentences]
        owner = [n for n, sentences in enumerate(split) for _ in sentences]
        with torch.inference_mode():
            images = self._images(pictures)
            cosines = (images @ self._texts(plain).T).cpu().tolist()
            scale = float(self._model.logit_scale.exp())
            words = [
                tuple(self._words(image, sentences, scale))
                for image, sentences in zip(images, split, strict=True)
            ]
        found = []
        for n in range(len(texts)):
            cosine = min(value for value, of in zip(cosines[n], owner, strict=True) if of == n)
            others = [value for value, of in zip(cosines[n], owner, strict=True) if of != n]
            rank = sum(value < cosine for value in others) / len(others) if others else 1.0
            found.append(TextFit(cosine, rank, words[n]))
        return found

    def _words(
        self, image: Any, sentences: Sequence[str], scale: float
    ) -> Iterator[tuple[str, float]]:
        """Every word with rivals, and its probability against them."""
        for sentence in sentences:
            for match in _RIVAL.finditer(sentence):
                own = match[0].lower()
                rivals = [word for word in _GROUP[own] if word != own]
                variants = [own, *rivals]
                texts = [
                    sentence[: match.start()] + word + sentence[match.end() :] for word in variants
                ]
                logits = scale * (self._texts(texts) @ image)
                yield own, float(logits.softmax(0)[0])

    def _images(self, pictures: Sequence[Image.Image]) -> Any:
        import torch

        pixels = torch.stack([self._transform(picture) for picture in pictures])
        return self._model.encode_image(pixels, normalize=True)

    def _texts(self, texts: Sequence[str]) -> Any:
        return self._model.encode_text(self._tokenizer(list(texts)), normalize=True)


def columns(found: TextFit) -> Mapping[str, float | str]:
    """Scores as columns, beside those of :mod:`augment.checks`."""
    return {
        "clip_cosine": round(found.cosine, 4),
        "clip_rank": round(found.rank, 4),
        "clip_word": round(found.word, 4),
        "clip_doubted": found.doubted[0],
    }
