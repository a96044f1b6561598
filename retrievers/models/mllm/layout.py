"""How an item becomes a conversation and where its vector stands; layouts of published models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from augment.engines.inputs import chat
from augment.errors import DataError
from augment.records import Side

#: Which state is the vector. ``last``: of the prompt's last token. ``before``: the one that
#: predicts the mark, which is the same where nothing is written. ``at``: of the mark itself.
Pooling = Literal["last", "before", "at"]


@dataclass(frozen=True)
class Layout:
    """The words around an item and the state that is pooled.

    Args:
        chat: through the model's chat template, the answer begun; else the bare text.
        query: system prompt of queries; empty leaves the turn to the template.
        corpus: the same of candidates.
        ask: behind the content of an item with a text alone, a picture alone, and both.
        suffix: behind the begun answer.
        pictures_first: whether pictures stand before the text.
        pooling: the state that is the vector.
        mark: special token that ends what the model writes; added to the vocabulary if absent.
            Needed unless ``pooling`` is ``last``.
        min_pixels: smaller pictures are enlarged; null takes the processor's own limit.
        max_pixels: larger pictures are shrunk; likewise.
        max_text: tokens of an item's own text; the rest is cut before the template is applied.
    """

    chat: bool = True
    query: str = ""
    corpus: str = ""
    ask: tuple[str, str, str] = ("", "", "")
    suffix: str = ""
    pictures_first: bool = True
    pooling: Pooling = "last"
    mark: str = ""
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_text: int = 512

    def __post_init__(self) -> None:
        object.__setattr__(self, "ask", tuple(self.ask))  # a list, where it comes from a file
        if len(self.ask) != 3:
            raise DataError(f"layout.ask is three texts (text, picture, both), got {self.ask}")
        if self.pooling not in ("last", "before", "at"):
            raise DataError(f"layout.pooling must be last, before or at, got {self.pooling!r}")
        if self.pooling != "last" and not self.mark:
            raise DataError(f"layout.pooling={self.pooling} needs layout.mark, such as <|emb|>")
        if self.pooling != "last" and self.suffix:
            raise DataError("layout.suffix stands where the mark would; leave one of them out")
        if self.max_text < 1:
            raise DataError(f"layout.max_text must be positive, got {self.max_text}")

    def render(self, processor: Any, side: Side, text: str, pictures: int) -> str:
        """The prompt of one item, a place for every picture in it, without the mark.

        Args:
            processor: of the model; its template is applied.
            side: query or corpus.
            text: of the item, cut and without control tokens; may be empty.
            pictures: how many it has.
        """
        kind = 2 if text and pictures else int(pictures > 0)
        if not self.chat:
            shown = [processor.image_token] * pictures
            return " ".join([*shown, text + self.ask[kind]]).strip() + self.suffix
        content = [{"type": "image"}] * pictures
        words = [{"type": "text", "text": text + self.ask[kind]}] if text + self.ask[kind] else []
        user = [*content, *words] if self.pictures_first else [*words, *content]
        messages: list[dict[str, Any]] = [{"role": "user", "content": user}]
        if system := (self.query if side == "query" else self.corpus):
            told = [{"type": "text", "text": system}]
            messages.insert(0, {"role": "system", "content": told})
        return chat(processor, messages) + self.suffix


#: Layouts by name. What is not said is the model's own. Each is tested on an untrained model of its
#: layout; ``docs/mllm.md`` says how far each goes and how to compare it with its publisher's code.
LAYOUTS: dict[str, Layout] = {
    # The packaged small VLM: system prompts that it was trained with, the picture behind the text.
    "flagland": Layout(
        query="You refine search queries.",
        corpus="You write search entries for pictures.",
        pictures_first=False,
        pooling="before",
        mark="<|emb|>",
    ),
    # TRACE's form: the mark behind the answer, the state that predicts it.
    "trace": Layout(pooling="before", mark="<|emb|>"),
    # Code at QwenLM/Qwen3-VL-Embedding@8ce3aab: instruction as the system turn, 4 to 1,800 tokens
    # of 32 x 32 pixels, 8,192 tokens, last token. An instruction of M-BEIR stands before the text
    # here.
    "qwen3-vl-embedding": Layout(
        query="Represent the user's input.",
        corpus="Represent the user's input.",
        min_pixels=4 * 32 * 32,
        max_pixels=1800 * 32 * 32,
        max_text=8192,
    ),
    # Code at TIGER-AI-Lab/VLM2Vec@6e1e1d4 (the second version): no template, the picture's bare
    # token, then a blank and the text; 4 to 1,280 tokens of 28 x 28 pixels; last token.
    "vlm2vec-v2": Layout(
        chat=False, min_pixels=4 * 28 * 28, max_pixels=1280 * 28 * 28, max_text=4096
    ),
    # gme_inference.py of Alibaba-NLP/gme-Qwen2-VL: end of text behind the begun answer and its
    # state; 256 to 1,280 tokens of 28 x 28 pixels; 1,800 tokens.
    "gme": Layout(
        query="You are a helpful assistant.",
        corpus="You are a helpful assistant.",
        suffix="<|endoftext|>",
        min_pixels=256 * 28 * 28,
        max_pixels=1280 * 28 * 28,
        max_text=1800,
    ),
    # Code at Code-kunkun/LamRA@7286399: the state before <emb>, which is that of the prompt's last
    # token, so <emb> is not read; 4 to 300 tokens of 28 x 28 pixels. Its text model got positions
    # in one row; ours has three.
    "lamra": Layout(
        ask=(
            "\nSummarize above sentence in one word: ",
            "\nSummarize above image in one word: ",
            "\nSummarize above image and sentence in one word: ",
        ),
        min_pixels=4 * 28 * 28,
        max_pixels=300 * 28 * 28,
        max_text=480,
    ),
}


def layout_named(name: str) -> Layout:
    """A layout of :data:`LAYOUTS`.

    Raises:
        DataError: lists those that there are.
    """
    if name not in LAYOUTS:
        raise DataError(f"no layout {name!r}; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def cut(tokenizer: Any, text: str, most: int) -> str:
    """The beginning of a text that has at most so many tokens; never part of a character.

    Args:
        tokenizer: a fast one, which knows where its tokens stand.
        text: as shown.
        most: tokens.
    """
    if len(text) <= most:  # no token is shorter than a character, but in bytes of one
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(found) <= most:
            return text
    read = tokenizer(
        text, add_special_tokens=False, truncation=True, max_length=most,
        return_offsets_mapping=True,
    )  # fmt: skip
    offsets: Sequence[tuple[int, int]] = read["offset_mapping"]
    kept = text[: offsets[-1][1]] if offsets else ""
    while kept and len(tokenizer(kept, add_special_tokens=False)["input_ids"]) > most:
        kept = kept[:-1]
    return kept
