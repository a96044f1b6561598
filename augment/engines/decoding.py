"""Decoding of batches by models of the Qwen-VL family: the tokens of ``generate``, in less time.

Enrichment asks one long instruction about many pictures and wants short answers of unequal length.
Four things follow that ``generate`` (transformers 5.23) does not do:

- What all prompts of a batch begin with is read once, alone; its keys and values are kept for the
  next batch and shown to every row (prefix caching, as in SGLang, 2312.07104, section 3).
- Rows that are finished leave the batch, rather than being decoded until the longest is.
- Keys and values are written into memory with room to spare, rather than copied whole at every
  token.
- Patches of pictures, which do not overlap, are embedded by one matrix product, not a convolution
  (a third of the time on a CPU).

Greedy tokens equal those of ``generate`` but for rounding. All state that depends on rows is the
cache, the mask and the positions, which is true of the families in :data:`FAMILIES`; other models
go through ``generate``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from os.path import commonprefix
from types import MappingProxyType
from typing import Any, NamedTuple, cast, final

import torch
from torch import nn
from transformers import GenerationConfig, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import Cache, DynamicLayer

from augment.records import Sampling

#: Configurations (``model_type``) of models that :class:`Decoder` decodes.
FAMILIES = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"})

#: Shortest common beginning, in tokens, that is read apart: below, another call costs more.
SHARED = 16

#: Tokens by which the room for keys and values grows.
ROOM = 64

#: Finished rows leave when at most this share of the batch is left. Leaving copies the cache, and
#: with this share all copies together write less than eight caches.
LEFT = 7 / 8

Row = list[int]

#: From a processor's output, padded on the left and on the model's device, to each row's new
#: tokens; what follows the first end token means nothing.
Decode = Callable[[Any, Sampling], list[Row]]


def decode_with(model: Any, stops: Sequence[int], pad: int) -> Decode:
    """The fastest way to decode batches of a model."""
    decode = Decoder(model, stops) if fits(model) else _through_generate(model, stops, pad)

    def seeded(inputs: Any, sampling: Sampling) -> list[Row]:
        sampled = sampling.temperature > 0
        with torch.inference_mode(), torch.random.fork_rng(enabled=sampled):
            if sampled:
                torch.manual_seed(sampling.seed)
            return decode(inputs, sampling)

    return seeded


def fits(model: Any) -> bool:
    """Whether a model can be decoded here: family, and attention over all that was read."""
    kind = model.config.model_type
    text = getattr(model.config, "text_config", None)
    layers = getattr(text, "layer_types", None) or ()
    return kind in FAMILIES and all(layer == "full_attention" for layer in layers)


def _through_generate(model: Any, stops: Sequence[int], pad: int) -> Decode:
    ends = {"eos_token_id": list(stops), "pad_token_id": pad}
    # What a model's own defaults hold (a penalty, a temperature) no key of a text names, and
    # ``generate`` takes it up wherever a call says nothing else.
    model.generation_config = GenerationConfig(**ends)  # type: ignore[no-untyped-call]

    def decode(inputs: Any, sampling: Sampling) -> list[Row]:
        sampled: dict[str, Any] = {}
        if sampling.temperature > 0:
            sampled = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=sampling.max_new_tokens, do_sample=bool(sampled), **ends, **sampled
        )
        output = model.generate(**inputs, generation_config=config)
        return cast("list[Row]", output[:, inputs["input_ids"].shape[1] :].tolist())

    return decode


class _Prefix(NamedTuple):
    """Tokens that were read, and their keys and values by layer: each (1, heads, tokens, size)."""

    tokens: Row
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]


@final
class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of a layer in memory with room to grow; ``keys`` and ``values`` are views.

    Args:
        prefix: keys and values that were read before, of one row, which all rows share.
    """

    def __init__(self, prefix: Sequence[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory: list[torch.Tensor] = []
        self._shown: Sequence[torch.Tensor] = ()
        self._length = 0
        if prefix:
            self.lazy_initialization(prefix[0], prefix[1])
            self._show(prefix)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append; all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old, new = self._length, self._length + key_states.shape[-2]
        if not self._memory or new > self._memory[0].shape[-2]:
            wider = [one.new_empty(*one.shape[:2], new + ROOM, one.shape[-1])
                     for one in (key_states, value_states)]  # fmt: skip
            for memory, present in zip(wider, self._shown, strict=False):
                memory[:, :, :old] = present
            self._memory = wider
        for memory, states in zip(self._memory, (key_states, value_states), strict=True):
            memory[:, :, old:new] = states
        return self._show([memory[:, :, :new] for memory in self._memory])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        self._memory = [memory[indices.to(memory.device)] for memory in self._memory]
        self._show([memory[:, :, : self._length] for memory in self._memory])

    def crop(self, max_length: int) -> None:
        """Keep the first ones."""
        self._show([memory[:, :, :max_length] for memory in self._memory])

    def _show(self, shown: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = keys, values = shown
        self._shown, self._length = shown, keys.shape[-2]
        return keys, values


@final
class _Patches(nn.Module):
    """A convolution whose stride is its kernel, on input of the kernel's size: one product."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """From (patches, channels, time, height, width) to (patches, features)."""
        return nn.functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


def embed_patches_at_once(model: Any) -> None:
    """Embed a model's patches by one product, in place; its parameters keep their names."""
    embedding = getattr(getattr(model.model, "visual", None), "patch_embed", None)
    convolution = getattr(embedding, "proj", None)
    # A module with hooks of accelerate is left alone.
    if embedding and type(convolution) is nn.Conv3d and not hasattr(convolution, "_hf_hook"):
        embedding.proj = _Patches(convolution)


@final
class Reading:
    """A batch in the middle of being read.

    Args:
        model: on its device.
        tokens: what is read first, (rows, new).
        positions: of these, (3, rows, new).
        mask: (rows, all so far), 0 for padding; None where there is none.
        cache: of what was read before.
        pictures: what the model takes of the pictures.

    Attributes:
        states: after the final norm, of the last token of every row, (rows, width).
        logits: of the next token of every row, (rows, vocabulary) in fp32.
        cache: of all that was read.
    """

    def __init__(
        self,
        model: Any,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache,
        pictures: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> None:
        self.states: torch.Tensor
        self.logits: torch.Tensor
        self._last: torch.Tensor
        self.cache = cache
        self._model, self._mask = model, mask
        self._read(tokens, positions, pictures)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all other rows."""
        self.states, self.logits = self.states[rows], self.logits[rows]
        self._last = self._last[:, rows]
        self._mask = None if self._mask is None else self._mask[rows]
        self.cache.batch_select_indices(rows)

    def read(self, tokens: torch.Tensor) -> None:
        """One more token of every row, (rows,)."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._read(tokens[:, None], self._last + 1, {})

    def glance(self, tokens: Sequence[int]) -> torch.Tensor:
        """States behind more tokens, the same of every row, which are then forgotten again."""
        kept = self.states, self.logits, self._mask, self._last
        layers: list[Any] = self.cache.layers
        length = layers[0].get_seq_length()
        for token in tokens:
            self.read(torch.full_like(kept[3][0, :, 0], token))
        found = self.states
        for layer in layers if tokens else ():
            layer.crop(length)
        self.states, self.logits, self._mask, self._last = kept
        return found

    def _read(
        self, tokens: torch.Tensor, positions: torch.Tensor, pictures: Mapping[str, torch.Tensor]
    ) -> None:
        output = self._model.model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=self._mask,
            use_cache=True,
            **cache_argument(self._model.model, self.cache),
            **pictures,
        )
        last = output.last_hidden_state[:, -1:]
        self.states = last[:, 0]
        self.logits = self._model.lm_head(last)[:, 0].float()
        self._last = positions[..., -1:]


@final
class Decoder:
    """Decodes batches of one model."""

    def __init__(self, model: Any, stops: Sequence[int]) -> None:
        self._model = model
        self._stops = frozenset(stops)
        self._prefix = _Prefix([], ())
        embed_patches_at_once(model)

    def __call__(self, inputs: Any, sampling: Sampling) -> list[Row]:
        """The new tokens of each row, end token included.

        Args:
            inputs: of the processor, on the model's device, padded on the left.
            sampling: temperature 0 is greedy; else the caller seeds the generator.
        """
        reading = self.begin(inputs)
        rows: list[Row] = [[] for _ in reading.logits]
        places = list(range(len(rows)))
        while True:
            chosen = _choose(reading.logits, sampling)
            going = []
            for number, token in enumerate(chosen.tolist()):
                row = rows[places[number]]
                if not row or row[-1] not in self._stops:
                    row.append(token)
                    if token not in self._stops and len(row) < sampling.max_new_tokens:
                        going.append(number)
            if not going:
                return rows
            if len(going) <= LEFT * len(places):
                left = torch.tensor(going, device=chosen.device)
                reading.keep(left)
                chosen, places = chosen[left], [places[number] for number in going]
            reading.read(chosen)

    def begin(self, inputs: Any) -> Reading:
        """The batch, read to the end of its prompts.

        Args:
            inputs: ``input_ids``, ``attention_mask``, ``mm_token_type_ids`` where there are
                pictures, ``pixel_values``, ``image_grid_thw``; on the model's device, padded on the
                left.
        """
        tokens, mask, kinds = (
            inputs.get(name) for name in ("input_ids", "attention_mask", "mm_token_type_ids")
        )
        kinds = torch.zeros_like(tokens) if kinds is None else kinds
        shown = {"pixel_values", "image_grid_thw"} & set(inputs)
        prefix = self._shared(tokens, mask, kinds)
        if skip := len(prefix.tokens):
            # The padding moves from before the beginning to behind it.
            tokens, mask, kinds = _behind(tokens, mask, kinds, skip=skip)
        positions, _ = self._model.model.get_rope_index(
            tokens,
            mm_token_type_ids=kinds,
            image_grid_thw=inputs.get("image_grid_thw"),
            attention_mask=mask,
        )
        cache = Cache(layer_class_to_replicate=_Layer)
        if skip:
            cache = Cache(layers=[_Layer(layer) for layer in prefix.layers])
        padded = mask if bool((mask == 0).any()) else None
        pictures = {name: inputs[name] for name in shown}
        return Reading(
            self._model, tokens[:, skip:], positions[..., skip:], padded, cache, pictures
        )

    def _shared(self, tokens: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor) -> _Prefix:
        """What all rows begin with, if it is text and worth it; else nothing."""
        common = _common(tokens, mask, kinds)
        known = len(commonprefix([common, self._prefix.tokens]))  # noqa: RUF071 - of tokens
        if known < SHARED or known < 0.75 * len(common):
            if len(common) < SHARED or len(tokens) == 1:
                return _Prefix([], ())
            self._prefix, known = self._read_alone(common), len(common)
        kept = [(keys[:, :, :known], values[:, :, :known]) for keys, values in self._prefix.layers]
        return _Prefix(self._prefix.tokens[:known], kept)

    def _read_alone(self, tokens: Row) -> _Prefix:
        cache = Cache(layer_class_to_replicate=DynamicLayer)
        read = torch.tensor([tokens], device=self._model.device)
        positions = torch.arange(len(tokens), device=read.device).expand(3, 1, -1)
        layers: list[Any] = Reading(self._model, read, positions, None, cache).cache.layers
        return _Prefix(tokens, [(layer.keys, layer.values) for layer in layers])


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """The keyword under which a model takes its cache.

    ``past_key_values`` became ``cache`` in transformers 5.24.
    """
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {name: cache}


def _choose(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The next token of every row."""
    if sampling.temperature <= 0:
        return logits.argmax(dim=-1)
    none = torch.empty(0, dtype=torch.long)
    logits = TemperatureLogitsWarper(sampling.temperature)(none, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(none, logits)
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1).squeeze(1)


def _common(tokens: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor) -> Row:
    """The text that all rows begin with, leaving every row at least one token."""
    width = tokens.shape[1]
    pads = width - mask.sum(dim=1)
    at = torch.arange(width, device=tokens.device) + pads[:, None]
    inside = at < width - 1
    at = at.clamp(max=width - 1)
    left, kind = tokens.gather(1, at), kinds.gather(1, at)
    same = ((left == left[:1]) & (kind == 0) & inside).all(dim=0)
    length = int(same.long().cumprod(dim=0).sum())
    return [int(token) for token in left[0, :length]]


def _behind(
    tokens: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor, *, skip: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same rows with their padding behind their first ``skip`` tokens."""
    rows, width = tokens.shape
    pads = width - mask.sum(dim=1, keepdim=True)
    at = torch.arange(width, device=tokens.device).expand(rows, -1)
    # The first tokens come from behind the padding, padding from before them, the rest stays.
    source = torch.where(at < skip, at + pads, torch.where(at < skip + pads, at - skip, at))
    return tokens.gather(1, source), mask.gather(1, source), kinds.gather(1, source)
