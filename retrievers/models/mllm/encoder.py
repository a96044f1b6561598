"""A multimodal language model of the Qwen-VL family as an encoder of queries and candidates."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from augment.errors import DataError, EngineError, MismatchError
from augment.records import Side
from retrievers.data.writings import Writing
from retrievers.models.base import Encoded, Encoder, recompute_activations
from retrievers.models.mllm.conversations import IGNORED, ConversationCollator, Conversations
from retrievers.models.mllm.fast import SeenPictures
from retrievers.models.mllm.layout import LAYOUT_SET, VERSIONS, Layout, Said, layout_named
from retrievers.models.mllm.reasoning import Reasoning, reason
from retrievers.models.towers import length_groups

#: Configurations (``model_type``) of the models that can be loaded.
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@final
class Mllm(Encoder):
    """The state of a model of the Qwen-VL family at the end of a conversation, L2-normalised.

    The state is that after the final norm. Positions (three rows of them, of time, height and
    width) are computed for every batch and handed over, so that nothing that the model remembers of
    one call can reach the next.

    Args:
        model_name: folder or name on the Hub of a Qwen3-VL, Qwen2.5-VL or Qwen2-VL of transformers,
            or ``flagland-vlm``, the small one that is packaged.
        preset: the layout by name, see :data:`~retrievers.models.mllm.layout.LAYOUTS`.
        layout: another layout, in place of the preset.
        reasoning: when the model writes before a vector, outside training.
        head: behind the state, a matrix without bias that begins as the identity. It takes out the
            direction that states before the mark have in common.
        temperature: divides the cosine in training. 0.05 in LamRA, 0.02 in TTE and RGE's code.
        learn_temperature: train it, too.
        dtype: of the weights. Vectors are float32 in any case.
        checkpointing: recompute each layer's activations in the backward.
        features_mib: room for what a frozen vision tower makes of each picture, computed once and
            kept in memory; 0 keeps nothing. See :class:`~retrievers.models.mllm.fast.SeenPictures`.
        compile: compile each layer of the language model with ``torch.compile``. What is written
            before a vector is decoded without it.
        template: hash of the chat template that the weights were trained under; another one is
            refused. Null takes any.
        random_init: take the architecture and no weights.
        truncate_dim: embed with so many first numbers of a vector, normalised again.

    Raises:
        DataError: if there is no such model, or it is of another family.
        MismatchError: if the chat template is another one.
    """

    fresh: ClassVar[tuple[str, ...]] = ("head.",)
    told: ClassVar[tuple[str, ...]] = ("prompt_version",)

    def __init__(
        self,
        model_name: str = "flagland-vlm",
        preset: str = "flagland",
        layout: Layout | None = None,
        reasoning: Reasoning = Reasoning(),  # noqa: B008 - frozen
        head: bool = False,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        checkpointing: bool = False,
        features_mib: int = 0,
        compile: bool = False,  # noqa: A002 - torch's word
        template: str | None = None,
        random_init: bool = False,
        truncate_dim: int | None = None,
    ) -> None:
        if not temperature > 0:
            raise DataError(f"temperature must be positive, got {temperature}")
        named = None if layout else preset
        layout = layout or layout_named(preset)
        cross = layout.cross
        scored = cross is not None and not cross.yes and not cross.listwise
        vlm, processor = _load(model_name, dtype, random_init, scored)
        if str(processor.chat_template).startswith(LAYOUT_SET):
            why = "has a chat template that writes a layout by itself, for sentence-transformers"
            raise DataError(f"{why}; name the checkpoint it was exported from", model_name)
        layout = _limited(layout, processor)
        found = _digest(str(processor.chat_template))
        if template not in (None, found):
            raise MismatchError(
                f"the weights were trained under the chat template {template}, and {model_name} "
                f"has {found}; use the processor that they were trained with"
            )
        settings = {
            "model_name": model_name, "random_init": random_init,
            "layout": {**asdict(layout), "ask": list(layout.ask)},
            "reasoning": reasoning.settings(),
            "head": head, "temperature": temperature,
            "learn_temperature": learn_temperature, "dtype": dtype, "template": found,
            "norm": "final", "prompt_version": named and f"{named}@{VERSIONS[named]}",
            "prompt": _digest("".join(
                layout.render(processor, side, text, pictures)
                for side in _SIDES for text, pictures in _SHOWN
            ) + (layout.together(processor, _SHOWN[2], _SHOWN) if cross else "")
              + (processor.tokenizer.eos_token if layout.pooling == "after" else "")),
        }  # fmt: skip
        super().__init__(settings, truncate_dim)
        _check_reasoning(reasoning, layout, vlm)
        self.layout, self.reasoning = layout, reasoning
        #: Id of the mark; None where the layout has none.
        self.mark = _add_mark(vlm, processor, layout.mark) if layout.mark else None
        #: Ids of a reranker's yes and no; None where it has no such words.
        self.words = None if cross is None else cross.words(processor.tokenizer)
        self.vlm = vlm
        self._collator = ConversationCollator(processor, layout)
        width = int(self.vlm.config.get_text_config().hidden_size)
        self.head: nn.Module = nn.Linear(width, width, bias=False) if head else nn.Identity()
        if head:
            nn.init.eye_(cast("Tensor", self.head.weight))
        scale = torch.tensor(-math.log(temperature))
        self.logit_scale: Tensor
        if learn_temperature:
            self.logit_scale = nn.Parameter(scale)
        else:
            self.register_buffer("logit_scale", scale)
        if checkpointing:
            recompute_activations(self.vlm)
        if features_mib:
            SeenPictures(self.vlm.model.visual, features_mib)
        if compile:
            for layer in self.vlm.model.language_model.layers:
                layer.compile(dynamic=True)

    def silence(self) -> bool:
        """Write nothing before vectors from now on, and say so in settings; whether it did."""
        if self.reasoning.when == "never":
            return False
        self.reasoning = replace(self.reasoning, when="never", candidates=False)
        self.remember({**self.settings(), "reasoning": self.reasoning.settings()})
        return True

    @property
    def config(self) -> Any:
        """The model's, as transformers has it."""
        return self.vlm.config

    def collator(self) -> ConversationCollator:
        """The model's own processor within the layout's limits."""
        return self._collator

    def whole(self, batch: Conversations, side: Side) -> Encoded:
        """Unit vectors; both sides share the model and differ in their system prompts."""
        given = batch.targets.shape[1] > 0
        writes = self.reasoning.when != "never" and (side == "query" or self.reasoning.candidates)
        if writes and not (self.training or given):
            found = reason(self, batch, self.reasoning)
            decode = self._collator.processor.tokenizer.decode
            told = zip(found.tokens, found.endings, found.mark.tolist(), strict=True)
            writings = [Writing(str(decode(row)), len(row), end, mark) for row, end, mark in told]
            return Encoded(found.vectors, writings, found.direct)
        (vectors,) = _by_length(batch, lambda rows: (self._vectors(self.states(rows), given),))
        return Encoded(vectors)

    def taught(
        self, batch: Conversations
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Unit vectors, and the cross-entropy of what is to be written, from one forward.

        The head of the vocabulary is applied where a token is to be predicted and nowhere else.

        Args:
            batch: with targets.

        Returns:
            Vectors; the cross-entropy of each row's first token, which decides whether anything is
            written; and the sum over its other tokens, the mark at the end included.

        Raises:
            ValueError: if the batch has no targets.
        """
        if not batch.targets.shape[1]:
            raise ValueError(
                "what is to be written is not known of every item of the batch, and a token loss "
                "is asked for"
            )
        vectors, first, rest = _by_length(batch, self._taught)
        return vectors, first, rest

    def _taught(self, batch: Conversations) -> tuple[Tensor, ...]:
        states = self.states(batch)
        rows, places = (batch.targets != IGNORED).nonzero(as_tuple=True)
        logits = self.vlm.lm_head(states[rows, places - 1]).float()
        costs = functional.cross_entropy(logits, batch.targets[rows, places], reduction="none")
        first = torch.ones_like(rows, dtype=torch.bool)
        first[1:] = rows[1:] != rows[:-1]
        rest = costs.new_zeros(batch.size).index_add(0, rows[~first], costs[~first])
        return self._vectors(states, taught=True), costs[first], rest

    def states(self, batch: Conversations) -> Float[Tensor, "batch length dim"]:
        """States after the final norm."""
        padded = bool((batch.mask == 0).any())
        output = self.vlm.model(
            input_ids=batch.tokens,
            attention_mask=batch.mask if padded else None,
            position_ids=self.positions(batch),
            mm_token_type_ids=batch.kinds,
            use_cache=False,
            **batch.pictures(),
        )
        return cast("Tensor", output.last_hidden_state)

    def positions(self, batch: Conversations) -> Int[Tensor, "3 batch length"]:
        """Places in time, height and width of every token."""
        positions, _ = self.vlm.model.get_rope_index(
            batch.tokens,
            mm_token_type_ids=batch.kinds,
            image_grid_thw=batch.grids if len(batch.grids) else None,
            attention_mask=batch.mask,
        )
        return cast("Tensor", positions)

    def vector(self, state: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """The unit vector of a state, in float32."""
        return functional.normalize(self.head(state).float(), dim=-1)

    def _vectors(self, states: Tensor, taught: bool) -> Tensor:
        # Rows end in the last column: in the mark where something is taught or it is pooled.
        return self.vector(states[:, -2 if taught and self.layout.pooling == "before" else -1])

    def scores(self, batch: Conversations) -> Float[Tensor, " batch"]:
        """What a reranker gives to each query with its candidate, in float32.

        Log-odds of yes against no: the last state times the difference of the two rows of the head,
        which is the difference of the two logits without those of the rest of the vocabulary. In
        bfloat16 scores come in steps that tie, and a sigmoid saturates; so neither is taken.

        Args:
            batch: of :meth:`~retrievers.models.mllm.conversations.ConversationCollator.together`.
        """
        states = self.states(batch)[:, -1]
        with torch.autocast(states.device.type, enabled=False):
            if self.words is None:
                first, _, last = self.vlm.score
                one, two = ((each.weight.float(), each.bias.float()) for each in (first, last))
                hidden = functional.relu(functional.linear(states.float(), *one))
                scores = functional.linear(hidden, *two)[:, 0]
            else:
                yes, no = self.vlm.lm_head.weight[list(self.words)].float()
                scores = states.float() @ (yes - no)
        return scores

    def scale(self) -> Float[Tensor, ""]:
        """One over the temperature."""
        return self.logit_scale.exp()

    def hold(self) -> None:
        """Hold a temperature that is learned at CLIP's 0.01 or above."""
        if isinstance(self.logit_scale, nn.Parameter):
            with torch.no_grad():
                self.logit_scale.clamp_(max=math.log(100.0))


_SIDES: tuple[Side, Side] = ("query", "corpus")
#: An item of each kind, for the hash of the prompts.
_SHOWN = (Said("text", 0), Said("", 1), Said("text", 1))


def _by_length(
    batch: Conversations, make: Callable[[Conversations], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """What is made of each row, of the short and the long apart where that saves much padding."""
    groups = length_groups((batch.lengths - 1).tolist())
    if len(groups) == 1:
        return make(batch)
    parts = [make(batch.pick(rows)) for rows in groups]
    order = torch.tensor([row for rows in groups for row in rows], device=batch.tokens.device)
    return tuple(torch.cat(each)[order.argsort()] for each in zip(*parts, strict=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_reasoning(reasoning: Reasoning, layout: Layout, vlm: Any) -> None:
    from augment.engines.decoding import fits

    if reasoning.when == "never":
        return
    if layout.pooling == "last":
        raise DataError("reasoning ends in a mark; set layout.pooling to before, at or after")
    if not fits(vlm):
        raise DataError("reasoning needs a model whose layers all attend to all that was read")


def _limited(layout: Layout, processor: Any) -> Layout:
    """The layout with the limits that count, which are the processor's now."""
    from augment.engines.inputs import limit_pixels

    try:
        limit_pixels(processor, layout.min_pixels, layout.max_pixels)
    except EngineError as error:
        raise DataError(f"layout: {error}") from error
    size = processor.image_processor.size
    return replace(layout, min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"])


def _load(name: str, dtype: str, random_init: bool, scored: bool) -> tuple[Any, Any]:
    """Model, with a head that scores if that is asked for, and processor; no code is fetched."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.utils.logging import disable_progress_bar

    from augment.engines.base import resolve_model
    from augment.engines.decoding import embed_patches_at_once

    source, kind = resolve_model(name), getattr(torch, dtype)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    safe = {"trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **safe)
        if config.model_type not in FAMILIES:
            raise DataError(
                f"is a {config.model_type}; this encoder takes {', '.join(FAMILIES)}", name
            )
        processor = AutoProcessor.from_pretrained(source, **safe)  # type: ignore[no-untyped-call]
        made: Any = AutoModelForImageTextToText
        if scored:
            made = _with_score(made._model_mapping[type(config)])
        if random_init:
            model = (made._from_config if scored else made.from_config)(config, dtype=kind)
        else:
            model = made.from_pretrained(source, dtype=kind, use_safetensors=True, **safe)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"cannot be loaded ({str(error)[:300]}); name a folder that save_pretrained wrote, a "
            "model on the Hub, or flagland-vlm",
            name,
        ) from error
    embed_patches_at_once(model)
    return model, processor


def _with_score(kind: Any) -> Any:
    """A class of transformers with jina's head behind it: two layers, by the names of its files."""

    def begin(self: Any, config: Any) -> None:
        kind.__init__(self, config)
        width = int(config.get_text_config().hidden_size)
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    return type(kind.__name__, (kind,), {"__init__": begin, "__module__": kind.__module__})


def _add_mark(model: Any, processor: Any, mark: str) -> int:
    """The mark's id; a new one gets a spare row of the vocabulary, which begins as the end's.

    An untrained model then ends its text with the mark where it would have ended it. The matrix
    grows if it has no spare row and never shrinks: Qwen's have more rows than tokens.
    """
    tokenizer = processor.tokenizer
    known = tokenizer.get_vocab()
    if mark not in known:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": [mark]}, replace_extra_special_tokens=False
        )
        number = int(tokenizer.convert_tokens_to_ids(mark))
        if number >= model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(number + 1, mean_resizing=False)
        matrices = {id(m.weight): m.weight for m in
                    (model.get_input_embeddings(), model.get_output_embeddings())}  # fmt: skip
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in matrices.values():
                row = weight[tokenizer.eos_token_id]
                drawn = torch.randn(row.shape, generator=noise, device="cpu")
                drawn = drawn * float(row.float().std()) / 50
                weight[number] = row + drawn.to(row)
    found = int(tokenizer.convert_tokens_to_ids(mark))
    if tokenizer.encode(mark, add_special_tokens=False) != [found]:
        raise DataError(
            f"layout.mark {mark!r} is not one special token of this tokenizer; name another, such "
            "as <|emb|>"
        )
    return found
