"""Batches of conversations, and how items become them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from augment.errors import DataError
from augment.records import Side
from retrievers.data.examples import Example
from retrievers.models.mllm.layout import Layout, Said, cut

#: Stands where no token is to be predicted, as in ``cross_entropy``.
IGNORED = -100


class Conversations(NamedTuple):
    """One side of a batch, padded on the left, so that every row ends in the last column.

    Attributes:
        tokens: ids; a picture has as many places as its merged patches.
        mask: 1 where there is a token.
        kinds: 1 where a place is a picture's, else 0 (``mm_token_type_ids``).
        patches: of all pictures, one behind the other.
        grids: time, height and width in patches of each picture.
        shown: pictures of each row.
        targets: tokens that the model is to write, at their own places, :data:`IGNORED`
            elsewhere; of no columns where nothing is known of what it is to write. Where there are
            targets, every row ends in the mark, or in the end of its turn.
    """

    tokens: Int[Tensor, "batch length"]
    mask: Int[Tensor, "batch length"]
    kinds: Int[Tensor, "batch length"]
    patches: Float[Tensor, "patches numbers"]
    grids: Int[Tensor, "pictures 3"]
    shown: Int[Tensor, " batch"]
    targets: Int[Tensor, "batch written"]

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.tokens)

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Tokens of each row."""
        return self.mask.sum(1)

    def rows(self, start: int, stop: int) -> Conversations:
        """Rows ``start`` to ``stop``, fewer at the end, with their own pictures and padding."""
        return self.pick(range(*slice(start, stop).indices(self.size)))

    def pick(self, rows: Sequence[int]) -> Conversations:
        """Some rows in a given order, with their own pictures and padding."""
        shown = self.shown.tolist()
        ends = np.cumsum(shown)
        pictures = [place for row in rows for place in range(ends[row] - shown[row], ends[row])]
        patches = torch.split(self.patches, self.grids.prod(-1).tolist()) if pictures else ()
        mask = self.mask[rows]
        pads = int((mask.amax(0) == 0).sum())
        targets = self.targets[rows]
        return Conversations(
            self.tokens[rows, pads:],
            mask[:, pads:],
            self.kinds[rows, pads:],
            torch.cat([patches[place] for place in pictures]) if pictures else self.patches[:0],
            self.grids[pictures],
            self.shown[rows],
            targets[:, pads:] if targets.shape[1] else targets,
        )

    def without_end(self, most: int = 1) -> Conversations:
        """The same without its last columns."""
        length = self.tokens.shape[1] - most
        return self._replace(
            tokens=self.tokens[:, :length],
            mask=self.mask[:, :length],
            kinds=self.kinds[:, :length],
            targets=self.targets[:, :0],
        )

    def answered(
        self, ends: Sequence[Sequence[int]], mark: int, rows: Sequence[int] | None = None
    ) -> Conversations:
        """Prompts with other tokens behind them, which are the targets.

        Args:
            ends: tokens of each row, the mark included.
            mark: ends a row that has no targets, where it is pooled.
            rows: only these; None takes all.
        """
        own = [self.rows(row, row + 1) for row in (range(self.size) if rows is None else rows)]
        made: list[tuple[Tensor, ...]] = []
        for row, end in zip(own, ends, strict=True):
            tokens, new = row.tokens[0], row.tokens.new_tensor(list(end))
            behind = (row.targets != IGNORED).sum() if row.targets.shape[1] else tokens[-1] == mark
            prompt = tokens[: len(tokens) - int(behind)]
            tokens = torch.cat([prompt, new])
            kinds = torch.cat([row.kinds[0, : len(prompt)], torch.zeros_like(new)])
            targets = torch.cat([torch.full_like(prompt, IGNORED), new])
            made.append((tokens, torch.ones_like(tokens), kinds, targets))
        tokens, mask, kinds, targets = (
            torch.nn.utils.rnn.pad_sequence(
                list(part), batch_first=True, padding_value=fill, padding_side="left"
            )
            for part, fill in zip(zip(*made, strict=True), (0, 0, 0, IGNORED), strict=True)
        )
        patches, grids, shown = (
            torch.cat(part) for part in zip(*(row[3:6] for row in own), strict=True)
        )
        return Conversations(tokens, mask, kinds, patches, grids, shown, targets)

    def to(self, device: Any, **options: Any) -> Conversations:
        """The same on another device; ``options`` as :meth:`torch.Tensor.to` has them."""
        return Conversations(*(part.to(device, **options) for part in self))

    def pictures(self) -> dict[str, Tensor]:
        """What a model takes of the pictures; nothing where there are none."""
        if not len(self.grids):
            return {}
        return {"pixel_values": self.patches, "image_grid_thw": self.grids}


@final
@dataclass(frozen=True)
class ConversationCollator:
    """The :class:`~retrievers.data.examples.Collator` of conversations.

    Attributes:
        processor: of transformers; its pixel limits are the layout's, its tokenizer has the mark.
        layout: the words around an item.
    """

    processor: Any
    layout: Layout

    #: Whether an item may have several pictures.
    several: ClassVar[bool] = True

    @property
    def reads_pictures(self) -> bool:
        """Whether any picture is shown; a reranker may read texts alone."""
        return self.layout.cross is None or self.layout.cross.pictures

    def image(self, picture: Image.Image) -> UInt8[Tensor, "3 height width"]:
        """The picture at the size that the model reads.

        Raises:
            DataError: if its sides differ more than the family allows.
        """
        from augment.engines.inputs import resized

        try:
            done = resized(self.processor, picture)
        except ValueError as error:  # an aspect ratio above 200
            raise DataError(f"a picture of {picture.size} cannot be shown: {error}") from error
        return torch.from_numpy(np.array(done.convert("RGB"))).permute(2, 0, 1).contiguous()

    def __call__(
        self, examples: Sequence[Example], side: Side = "query", training: bool = False
    ) -> Conversations:
        """Render, tokenise and pad.

        Args:
            examples: one side of a batch. ``image`` may be one picture, several, or none.
            side: which one; prompts differ.
            training: show what is to be written (``Example.written``), where all rows have it.

        Raises:
            DataError: if pictures and their places differ in number.
        """
        if not examples:
            return _empty()
        if self.layout.cross is not None:
            raise DataError(
                "this model is a reranker: it scores a query and a candidate together and has no "
                "vector of either; take it to `python -m retrievers rerank`"
            )
        pictures = [_listed(example.image) for example in examples]
        prompts = [
            self.layout.render(self.processor, side, self._text(example), len(shown))
            for example, shown in zip(examples, pictures, strict=True)
        ]
        written = [example.written for example in examples] if training else [None]
        ends = [self._end(None) for _ in examples]
        taught = self.layout.pooling != "last" and None not in written
        if taught:
            ends = [self._end(text) for text in written]
        return self._read([example.id for example in examples], prompts, pictures, ends, taught)

    @property
    def pairs(self) -> Callable[[Sequence[Example], Sequence[Example]], Conversations] | None:
        """A batch of queries, each with a candidate; None of an encoder."""
        if self.layout.cross is None:
            return None
        return lambda queries, candidates: self.together(queries, [[one] for one in candidates])

    def together(
        self, queries: Sequence[Example], candidates: Sequence[Sequence[Example]]
    ) -> Conversations:
        """One conversation for each query, with its candidates in it; see :class:`CrossLayout`.

        Args:
            queries: one for each conversation.
            candidates: of each, at least one.

        Raises:
            DataError: if pictures and their places differ in number, or the layout has no words
                for them.
        """
        if not queries:
            return _empty()
        cross = self.layout.cross
        if cross is None:
            raise DataError(
                "this model's layout is that of an encoder, which reads each item alone; name a "
                "reranker's with preset, such as qwen3-vl-reranker, or layout.cross"
            )
        prompts, pictures = [], []
        for query, own in zip(queries, candidates, strict=True):
            if not cross.pictures:
                query, *own = [each._replace(image=None) for each in (query, *own)]
            asked, *given = [
                Said(self._text(each), len(_listed(each.image))) for each in (query, *own)
            ]
            prompts.append(self.layout.together(self.processor, asked, given))
            order = [*own, query] if cross.corpus_first else [query, *own]
            pictures.append([one for each in order for one in _listed(each.image)])
        names = [
            f"{query.id} with {own[0].id}" for query, own in zip(queries, candidates, strict=True)
        ]
        ends = [list(cross.end) for _ in prompts]
        return self._read(names, prompts, pictures, ends)

    def rehearsed(self, rows: Sequence[tuple[list[int], list[int]]]) -> Conversations:
        """Prompts of texts and the answers behind them, which are the targets; as tokens."""
        prompts = {"input_ids": [prompt for prompt, _ in rows]}
        tokens, mask, kinds, targets = self._padded(prompts, [end for _, end in rows], True)
        grids, patches = torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 1)
        shown = torch.zeros(len(rows), dtype=torch.int64)
        return Conversations(tokens, mask, kinds, patches, grids, shown, targets)

    def _read(
        self,
        names: Sequence[str],
        prompts: list[str],
        pictures: Sequence[list[Any]],
        ends: Sequence[list[int]],
        taught: bool = False,
    ) -> Conversations:
        every = [picture for shown in pictures for picture in shown]
        try:
            places = sum(prompt.count(self.processor.image_token) for prompt in prompts)
            if places != len(every):  # not every version of transformers says so
                raise ValueError(f"{places} places, {len(every)} pictures")
            read = self.processor(text=prompts, images=every or None, padding=False)
        except ValueError as error:
            raise DataError(
                f"{', '.join(names[:8])}: pictures and their places in the prompts differ "
                f"({str(error)[:200]}); the chat template must show every picture once"
            ) from error
        grids = torch.as_tensor(read.get("image_grid_thw", torch.zeros(0, 3)))
        patches = torch.as_tensor(read.get("pixel_values", torch.zeros(0, 1)))
        # The end of a turn behind the mark is read and not written.
        unasked = len(self.layout.behind(self.processor.tokenizer)[1:])
        tokens, mask, kinds, targets = self._padded(read, ends, taught, unasked)
        shown = torch.tensor([len(row) for row in pictures], dtype=torch.int64)
        return Conversations(tokens, mask, kinds, patches, grids.long(), shown, targets)

    def _text(self, example: Example) -> str:
        from augment.engines.inputs import disarmed

        text = disarmed(self.processor, example.text or "")
        return cut(self.processor.tokenizer, text, self.layout.max_text)

    def _end(self, written: str | None) -> list[int]:
        """What follows the prompt: what is written, in tokens of its own, and the mark."""
        from augment.engines.inputs import disarmed

        tokenizer = self.processor.tokenizer
        behind = self.layout.behind(tokenizer)
        if written is None:
            return behind
        text = disarmed(self.processor, written)
        chain: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return chain + (behind or [tokenizer.convert_tokens_to_ids(self.layout.mark)])

    def _padded(
        self, read: Any, ends: Sequence[list[int]], taught: bool, unasked: int = 0
    ) -> list[Tensor]:
        """Tokens, mask, kinds and targets; the last tokens of an end that are unasked are none."""
        pad, place = self.processor.tokenizer.pad_token_id or 0, self.processor.image_token_id
        rows: list[tuple[list[int], ...]] = []
        for prompt, end in zip(read["input_ids"], ends, strict=True):
            tokens = [*prompt, *end]
            kinds = [int(token == place) for token in tokens]
            asked = [*[IGNORED] * len(prompt), *end[: len(end) - unasked], *[IGNORED] * unasked]
            rows.append((tokens, [1] * len(tokens), kinds, asked))
        most = max(len(row[0]) for row in rows)
        padded = [
            torch.tensor([[fill] * (most - len(row[part])) + row[part] for row in rows])
            for part, fill in enumerate((pad, 0, 0, IGNORED))
        ]
        return padded if taught else [*padded[:3], padded[3][:, :0]]


def _listed(image: Any) -> list[Any]:
    if image is None:
        return []
    return list(image) if isinstance(image, list | tuple) else [image]


def _empty() -> Conversations:
    none = torch.zeros(0, 0, dtype=torch.int64)
    grids = torch.zeros(0, 3, dtype=torch.int64)
    return Conversations(none, none, none, torch.zeros(0, 1), grids, none.flatten(), none)
