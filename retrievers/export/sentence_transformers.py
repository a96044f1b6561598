"""A sentence-transformers folder: ``SentenceTransformer(FOLDER)`` loads it.

It holds open_clip's CLIP as transformers' ``CLIPModel``, where the architectures are the same. The
layouts differ in names, in one matrix for query, key and value against three, and in projections
that are transposed. The arithmetic is the same if and only if :func:`refusals` is empty.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import open_clip
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from tokenizers import Regex, normalizers
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
)

from augment.errors import DataError, EngineError, MismatchError
from retrievers.export.open_clip import Encoders, is_open_clip
from retrievers.models.base import Encoder
from retrievers.models.inputs import Processor

#: What ftfy, which open_clip's tokenizer calls, turns into plain characters; its repair of broken
#: encodings cannot be written as a rule.
_PLAIN = (
    ("[\u2018\u2019\u201a\u201b\u02bc]", "'"), ("[\u201c\u201d\u201e\u201f]", '"'),
    ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#39;", "'"), ("&nbsp;", " "),
    ("\ufb00", "ff"), ("\ufb01", "fi"), ("\ufb02", "fl"), ("\ufb03", "ffi"), ("\ufb04", "ffl"),
)  # fmt: skip

#: Patterns in open_clip's names of weights, and what transformers has in their place.
_RENAMED = (
    (r"^(text|visual)[._]proj(ection)?(\.weight)?$", r"\1_projection.weight"),
    (r"^visual\.conv1", "visual.patch_embedding"),
    (r"^(visual\.)?(\w+_embedding)", r"\1embeddings.\2"),
    (r"positional_embedding$", "position_embedding.weight"),
    (r"^visual\.ln_pre", "visual.pre_layrnorm"), (r"^visual\.ln_post", "visual.post_layernorm"),
    (r"^ln_final", "final_layer_norm"), (r"transformer\.resblocks", "encoder.layers"),
    (r"ln_([12])", r"layer_norm\1"), (r"attn\.", "self_attn."),
    (r"c_fc", "fc1"), (r"c_proj", "fc2"),
    (r"^visual\.", "vision_model."), (r"^(embeddings|encoder|final)", r"text_model.\1"),
)  # fmt: skip


def library() -> Any:
    """The library.

    Raises:
        EngineError: if it is not installed.
    """
    try:
        import sentence_transformers
    except ImportError as error:
        raise EngineError(
            "sentence-transformers is not installed; pip install "
            "'reasoning-augmented-retrieval[sentence-transformers]'"
        ) from error
    return sentence_transformers


def write_sentence_transformers(
    encoder: Encoder, folder: Path, prompts: dict[str, str] | None = None
) -> None:
    """Write transformers' ``CLIPModel``, its processor, and the modules around them.

    Vectors are features of one tower, made unit vectors only if the encoder normalises its
    towers: so the sum of a text's and a picture's vector is that of the item with both, up to its
    length, which cosine ignores.

    Args:
        encoder: score fusion.
        folder: is made.
        prompts: name -> beginning of a text, for ``encode(..., prompt_name=)``.

    Raises:
        MismatchError: if the architecture has no counterpart; says why.
        EngineError: if sentence-transformers is not installed.
        DataError: if the folder holds something else.
    """
    if not is_open_clip(encoder):
        raise MismatchError(
            f"a {type(encoder).__name__} fuses text and picture in layers that no class of "
            "sentence-transformers has; only score fusion goes there. Export it with --to=open_clip"
        )
    if folder.exists() and any(folder.iterdir()):
        raise DataError("is not empty; name a new folder", str(folder))
    ours: Any = encoder
    model, tokenizer, image_processor = to_transformers(ours.clip, ours.collator())
    st = library()
    with tempfile.TemporaryDirectory() as made:
        model.save_pretrained(made)
        processor = CLIPProcessor(image_processor, tokenizer)  # type: ignore[no-untyped-call]
        processor.save_pretrained(made)
        modules = [st.sentence_transformer.modules.Transformer(made)]
        if encoder.settings()["normalize_towers"]:
            modules.append(st.sentence_transformer.modules.Normalize())
        whole = st.SentenceTransformer(
            modules=modules, prompts=prompts or {}, similarity_fn_name="cosine", device="cpu"
        )
        whole.save_pretrained(str(folder), create_model_card=False)


def encoders_of(folder: Path) -> Encoders:
    """Text and picture encoders of a folder, by sentence-transformers alone."""
    model: Any = library().SentenceTransformer(str(folder), device="cpu")

    def encode_all(things: list[Any]) -> Tensor:
        return cast("Tensor", model.encode(things, convert_to_tensor=True, show_progress_bar=False))

    return encode_all, encode_all


def refusals(clip: Any, processor: Processor) -> list[str]:
    """Why a model is no ``CLIPModel`` of transformers; empty if it is one."""
    if not isinstance(clip, open_clip.CLIP):
        return [f"it is a {type(clip).__name__}, not open_clip's plain CLIP"]
    return [*_of_vision(clip.visual), *_of_text(clip), *_of_processor(clip, processor)]


def _of_vision(visual: Any) -> Iterator[str]:
    if not isinstance(visual, open_clip.transformer.VisionTransformer):
        yield f"its image tower is a {type(visual).__name__}, not a plain vision transformer"
        return
    if visual.image_size[0] != visual.image_size[1] or visual.patch_size[0] != visual.patch_size[1]:
        yield f"its pictures are {visual.image_size[0]} x {visual.image_size[1]} pixels, not square"
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
        yield "its image tower does not read the class token"
    if isinstance(visual.ln_pre, nn.Identity):
        yield "its image tower has no norm before the blocks"
    yield from _of_blocks(visual.transformer, "image")


def _of_text(clip: Any) -> Iterator[str]:
    if clip.attn_mask is None:
        yield "its text tower is not causal"
    if clip.text_pool_type not in ("argmax", "eos"):
        yield f"its text is pooled by {clip.text_pool_type!r}, not at the end-of-text token"
    if clip.text_pool_type == "eos" and clip.text_eos_id == 2:
        # transformers takes an eos_token_id of 2 to mean "the largest id" (modeling_clip.py).
        yield "its end-of-text token has the id 2, which transformers takes for something else"
    projection = clip.text_projection
    if projection is None or getattr(projection, "bias", None) is not None:
        yield "its text projection is missing or has a bias"
    yield from _of_blocks(clip.transformer, "text")


def _of_blocks(transformer: Any, name: str) -> Iterator[str]:
    block = transformer.resblocks[0]
    plain = type(block) is open_clip.transformer.ResidualAttentionBlock
    if not plain or not isinstance(block.ls_1, nn.Identity):
        yield f"its {name} blocks are not CLIP's (layer scale or another kind of attention)"
    elif _activation(transformer) is None:
        yield f"its {name} blocks use {type(block.mlp.gelu).__name__}"


def _of_processor(clip: Any, processor: Processor) -> Iterator[str]:
    mode = open_clip.get_model_preprocess_cfg(clip).get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        yield f"its pictures are resized by {mode!r}, which transformers' processor does not know"
    if not isinstance(processor.tokenize, SimpleTokenizer | HFTokenizer):
        yield f"its texts are cut up by a {type(processor.tokenize).__name__}"


def _activation(transformer: Any) -> str | None:
    kind = transformer.resblocks[0].mlp.gelu
    if isinstance(kind, open_clip.transformer.QuickGELU):
        return "quick_gelu"
    return "gelu" if isinstance(kind, nn.GELU) and kind.approximate == "none" else None


def to_transformers(clip: Any, processor: Processor) -> tuple[CLIPModel, Any, Any]:
    """Model, tokenizer and image processor of transformers with the same vectors.

    Args:
        clip: an open_clip model.
        processor: its processor.

    Raises:
        MismatchError: if the architecture has no counterpart; says why.
    """
    reasons = refusals(clip, processor)
    if reasons:
        raise MismatchError(
            "transformers' CLIPModel, which sentence-transformers loads, cannot hold this model: "
            f"{'; '.join(reasons)}. Export it for open_clip, or train a square ViT with CLIP's own "
            "text tower (ViT-B-32, ViT-L-14, ...)"
        )
    model = CLIPModel(_config(clip)).eval()  # type: ignore[no-untyped-call]
    model.load_state_dict(dict(_renamed(clip)), strict=True)
    return model, _tokenizer(clip, processor), _image_processor(clip)


def _config(clip: Any) -> CLIPConfig:
    visual = clip.visual
    dim = int(visual.proj.shape[1])
    # The end of text, by which transformers pools; CLIP's own is the largest id.
    last = len(clip.token_embedding.weight) - 1
    end = clip.text_eos_id if clip.text_pool_type == "eos" else last
    return CLIPConfig(
        projection_dim=dim,
        vision_config={
            **_tower(visual.transformer, dim),
            "image_size": int(visual.image_size[0]),
            "patch_size": int(visual.patch_size[0]),
        },
        text_config={
            **_tower(clip.transformer, dim),
            "vocab_size": last + 1,
            "max_position_embeddings": len(clip.positional_embedding),
            "bos_token_id": last - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
    )


def _tower(transformer: Any, dim: int) -> dict[str, Any]:
    block = transformer.resblocks[0]
    return {
        "hidden_size": block.attn.embed_dim,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": _activation(transformer),
        "layer_norm_eps": block.ln_1.eps,
        "projection_dim": dim,
    }


def _renamed(clip: Any) -> Iterator[tuple[str, Tensor]]:
    for ours, value in clip.state_dict().items():
        name, tensor = ours, value.detach().cpu()
        for seen, theirs in _RENAMED:
            name = re.sub(seen, theirs, name)
        if ".in_proj_" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                yield name.replace("in_proj_", f"{letter}_proj."), part.clone()
        elif ours in ("visual.proj", "text_projection"):
            yield name, tensor.T.contiguous()
        elif ours != "logit_bias":
            yield name, tensor.reshape(()) if ours == "logit_scale" else tensor


def _image_processor(clip: Any) -> CLIPImageProcessorPil:
    """The one that resizes with Pillow, as open_clip does."""
    given = open_clip.get_model_preprocess_cfg(clip)
    side = int(clip.visual.image_size[0])
    square = {"height": side, "width": side}
    squash = given.get("resize_mode") == "squash"
    return CLIPImageProcessorPil(
        size=square if squash else {"shortest_edge": side},
        crop_size=square,
        do_center_crop=not squash,
        image_mean=list(given["mean"]),
        image_std=list(given["std"]),
        resample=2 if given.get("interpolation") == "bilinear" else 3,
    )


def _tokenizer(clip: Any, processor: Processor) -> Any:
    tokenizer = processor.tokenize
    context = len(clip.positional_embedding)
    if isinstance(tokenizer, HFTokenizer):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            made = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, split_special_tokens=True
            )
    else:
        assert isinstance(tokenizer, SimpleTokenizer)  # noqa: S101 - refusals() looks
        made = _clip_tokenizer(tokenizer)
    made.model_max_length = context
    return made


def _clip_tokenizer(tokenizer: SimpleTokenizer) -> PreTrainedTokenizerFast:
    vocabulary = dict(tokenizer.encoder)
    start, end = "<|startoftext|>", "<|endoftext|>"
    for ours, theirs in (("<start_of_text>", start), ("<end_of_text>", end)):
        vocabulary[theirs] = vocabulary.pop(ours)
    made = CLIPTokenizer(vocab=vocabulary, merges=list(tokenizer.bpe_ranks))
    own = made.backend_tokenizer
    rules = [normalizers.Replace(Regex(seen), plain) for seen, plain in _PLAIN]
    own.normalizer = normalizers.Sequence([normalizers.NFC(), *rules, own.normalizer])
    # A CLIPTokenizer that is loaded makes its rules anew from vocabulary and merges.
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=own,
        bos_token=start,
        eos_token=end,
        pad_token=end,
        unk_token=end,
        split_special_tokens=True,
    )
