"""The loss of the small VLM, and shortcuts that change its cost but no number (tested)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen

from augment.engines.decoding import cache_argument


def install_shortcuts() -> None:
    """Use the quick forms of the vision tower's attention and patch embedding from now on."""
    setattr(qwen.Qwen3VLVisionAttention, "forward", batched_vision_attention)  # noqa: B010 - mypy
    setattr(qwen.Qwen3VLVisionPatchEmbed, "forward", linear_patch_embedding)  # noqa: B010 - mypy


def attention_in_full_precision() -> None:
    """Under autocast to bfloat16, leave attention in fp32 from now on.

    Products are 1.5 to 2 times as fast in bfloat16 on a CPU with units for it; the gradient of
    attention is 3 times slower there than in fp32 (torch 2.15).
    """
    attention = nn.functional.scaled_dot_product_attention

    def in_full(q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return attention(q.float(), k.float(), v.float(), *args, **options)

    setattr(nn.functional, "scaled_dot_product_attention", in_full)  # noqa: B010 - mypy


def batched_vision_attention(
    self: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any = None, **_: Any
) -> Tensor:
    """The vision attention for pictures of one size: one call instead of one per picture."""
    length, pictures = hidden_states.shape[0], len(cu_seqlens) - 1
    qkv = self.qkv(hidden_states).reshape(length, 3, self.num_heads, -1).permute(1, 0, 2, 3)
    q, k, v = qkv.unbind(0)
    q, k = qwen.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    q, k, v = (
        t.reshape(pictures, -1, self.num_heads, t.shape[-1]).transpose(1, 2) for t in (q, k, v)
    )
    out = nn.functional.scaled_dot_product_attention(q, k, v)
    mixed: Tensor = self.proj(out.transpose(1, 2).reshape(length, -1))
    return mixed


def linear_patch_embedding(self: Any, hidden_states: Tensor) -> Tensor:
    """The patch embedding as the matrix product that it is.

    A convolution over single patches costs several times as much backwards on a CPU.
    """
    weight = self.proj.weight
    return nn.functional.linear(hidden_states.to(weight.dtype), weight.flatten(1), self.proj.bias)


def plain_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """Sum of the cross-entropies of the answers, every row on its own: the slow reference."""
    hidden = model.model(**batch["inputs"]).last_hidden_state[:, :-1]
    return _answers_loss(model, hidden, batch["labels"][:, 1:])


def _answers_loss(model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    at = labels != -100
    logits = model.lm_head(hidden[at]).float()
    return nn.functional.cross_entropy(logits, labels[at], reduction="sum")


def shared_prefix_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """The same number as :func:`plain_loss`; the instruction all rows begin with runs once.

    Its keys and values are expanded to the batch, so the gradient flows back into the one pass.
    """
    inputs = batch["inputs"]
    ids = inputs["input_ids"]
    same = (ids == ids[:1]).all(0) & (inputs["mm_token_type_ids"] == 0).all(0)
    same &= (batch["labels"] == -100).all(0)  # a batch of one row is its own prefix
    shared = int(same.long().cumprod(0).sum()) - 1
    positions, _ = model.model.get_rope_index(
        ids, inputs["mm_token_type_ids"], image_grid_thw=inputs.get("image_grid_thw"),
        attention_mask=inputs["attention_mask"],
    )  # fmt: skip
    cache: Any = DynamicCache(config=model.config.text_config)
    model.model(
        input_ids=ids[:1, :shared], position_ids=positions[:, :1, :shared],
        use_cache=True, **cache_argument(model.model, cache),
    )  # fmt: skip
    for layer in cache.layers:
        layer.keys = layer.keys.expand(len(ids), -1, -1, -1)
        layer.values = layer.values.expand(len(ids), -1, -1, -1)
    pictures = {k: inputs[k] for k in ("pixel_values", "image_grid_thw") if k in inputs}
    hidden = model.model(
        input_ids=ids[:, shared:], position_ids=positions[:, :, shared:],
        attention_mask=inputs["attention_mask"], use_cache=True,
        **cache_argument(model.model, cache), **pictures,
    ).last_hidden_state  # fmt: skip
    return _answers_loss(model, hidden[:, :-1], batch["labels"][:, shared + 1 :])
