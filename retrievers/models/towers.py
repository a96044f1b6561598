"""open_clip models by name, and their towers: text cut where that is exact, vectors or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, cast

import open_clip
import torch
from jaxtyping import Bool, Float, Int
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor

from augment.errors import DataError, EngineError, MismatchError
from augment.files import check_sums
from retrievers.models.inputs import Processor

#: Packaged models, by the name of their folder under ``retrievers/models``.
PACKAGED = ("flagland-clip",)

#: Ways to read one position of the text, at or before the end-of-text token.
_POOLS = ("argmax", "eos")

#: Share of the positions of a batch of texts that parting it must save, and rows that each part
#: must have: two passes of small products are slower than one of large ones.
_WORTH, _LEAST = 0.15, 4


def load_clip(
    name: str, pretrained: str | None = None, random_init: bool = False
) -> tuple[Any, Processor]:
    """An open_clip model in float32 on the CPU and its processor.

    Args:
        name: open_clip's name, ``local-dir:FOLDER``, ``hf-hub:NAME``, a ``.json`` model config, or
            one of :data:`PACKAGED`.
        pretrained: open_clip's tag or a weights file.
        random_init: leave weights out.

    Raises:
        DataError: if there is no such folder or config.
        EngineError: if open_clip cannot build the model or get its weights.
    """
    name = _resolve(name)
    if name.startswith("local-dir:") and not random_init:
        check_sums(Path(name.removeprefix("local-dir:")))
    try:
        config = _model_config(name)
        if name.startswith("hf-hub:") and not random_init:
            _refuse_pickles(name.removeprefix("hf-hub:"))
        model = open_clip.create_model(
            name,
            pretrained=None if random_init else pretrained,
            load_weights=not random_init,
            # Of a repository without weights, it would go on with random ones.
            require_pretrained=has_weights(name, pretrained, random_init),
            force_preprocess_cfg=_tag_preprocessing(name, pretrained),
        )
        tokenizer = unmarked(open_clip.get_tokenizer(name))
    except (RuntimeError, ValueError, OSError) as error:
        hint = "see open_clip.list_pretrained() for names and tags"
        raise EngineError(f"cannot load {name!r} ({pretrained}): {error}; {hint}") from error
    model.open_clip_config = config
    preprocessing = PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
    return model, Processor(tokenizer, image_transform_v2(preprocessing, is_train=False))


def _refuse_pickles(repository: str) -> None:
    """Refuse a repository whose weights are no safetensors: open_clip would take a pickle then."""
    if not download_pretrained_from_hf(repository).endswith(".safetensors"):
        raise ValueError("its weights are a pickle; only safetensors are read")


def _model_config(name: str) -> dict[str, Any]:
    """What open_clip builds a model from; kept with the model, for export."""
    config: dict[str, Any] | None = open_clip.get_model_config(name)
    if config is None:
        raise ValueError("open_clip knows no such model")
    given = config.get("text_cfg", {}).get("tokenizer_kwargs") or {}
    if given.get("trust_remote_code"):
        raise DataError(
            "its open_clip_config.json asks to run the tokenizer's own code; that is never done. "
            "Take tokenizer_kwargs.trust_remote_code out, if the tokenizer works without",
            name,
        )
    return deepcopy(config)


def _tag_preprocessing(name: str, tag: str | None) -> dict[str, Any]:
    """Size, mean and so on of a tag, which open_clip forgets if it is asked for no weights."""
    found: dict[str, Any] | None = open_clip.get_pretrained_cfg(name, tag) if tag else None
    wanted = ("mean", "std", "interpolation", "resize_mode")
    return {key: found[key] for key in wanted if found.get(key) is not None} if found else {}


def unmarked(tokenize: Any) -> Any:
    """Let a tokenizer take its own marks in a text, such as ``<end_of_text>``, for ordinary text.

    A text would end there otherwise, in silence.
    """
    if isinstance(tokenize, SimpleTokenizer):
        marks = "|".join(tokenize.decoder[number] for number in tokenize.all_special_ids)
        ordinary = tokenize.pat.pattern.removeprefix(f"{marks}|")
        tokenize.pat = open_clip.tokenizer.re.compile(ordinary, tokenize.pat.flags)
    elif hasattr(tokenize, "tokenizer"):  # of transformers
        tokenize.tokenizer.split_special_tokens = True
    return tokenize


def has_weights(name: str, pretrained: str | None, random_init: bool) -> bool:
    """Whether the arguments of :func:`load_clip` bring weights, the same each time."""
    named = name in PACKAGED or name.startswith(("local-dir:", "hf-hub:"))
    return not random_init and (named or pretrained is not None)


def _resolve(name: str) -> str:
    if name in PACKAGED:
        folder = Path(str(resources.files("retrievers"))) / "models" / "weights" / name
        name = f"local-dir:{folder}"
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise DataError("no open_clip_config.json in this folder", str(folder))
    elif name.endswith(".json"):
        if not Path(name).is_file():
            raise DataError("no such model config", name)
        open_clip.add_model_config(name)
        name = Path(name).stem
    return name


def text_tower(clip: Any) -> Any:
    """Where an open_clip model keeps its text tower: in itself, or apart (``custom_text``)."""
    return clip if isinstance(clip, open_clip.CLIP) else clip.text


def pool_type(tower: Any) -> str:
    """How one vector is read from the states of a text."""
    own = isinstance(tower, open_clip.CLIP)
    return str(getattr(tower, "text_pool_type" if own else "pool_type", ""))


def is_causal(tower: Any) -> bool:
    """Whether later positions change nothing of what is read."""
    if not isinstance(tower, (open_clip.CLIP, TextTransformer)):
        return False
    plain = tower.attn_mask is not None and getattr(tower, "cls_emb", None) is None
    return plain and pool_type(tower) in _POOLS


def ends(tower: Any, texts: Int[Tensor, "rows context"]) -> Int[Tensor, " rows"]:
    """The position that the tower reads: that of the end-of-text token."""
    if pool_type(tower) == "argmax":
        return texts.argmax(-1)
    eos = int(tower.text_eos_id if isinstance(tower, open_clip.CLIP) else tower.eos_id)
    return (texts == eos).int().argmax(-1)


def causal_states(
    tower: Any, texts: Int[Tensor, "rows context"], length: int
) -> Float[Tensor, "rows length width"]:
    """Last states of the first positions."""
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(texts[:, :length]).to(dtype)
    x = x + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    return cast("Tensor", tower.ln_final(x))


def encode_text(clip: Any, texts: Int[Tensor, "rows context"]) -> Float[Tensor, "rows dim"]:
    """Text features, computed only up to the longest text of the batch where that is exact.

    CLIP's own text tower is causal and reads one position, so later positions change nothing.
    Short texts go through apart from long ones where that saves much of the padding.
    Other towers (SigLIP must be padded) go through open_clip as they are.
    """
    tower = text_tower(clip)
    if not is_causal(tower):
        return cast("Tensor", clip.encode_text(texts))
    end = ends(tower, texts)
    groups = [torch.tensor(rows, device=texts.device) for rows in length_groups(end.tolist())]
    parts = []
    for rows in groups:
        states = causal_states(tower, texts[rows], int(end[rows].max()) + 1)
        parts.append(states[torch.arange(len(states), device=states.device), end[rows]])
    pooled = parts[0] if len(parts) == 1 else torch.cat(parts)[torch.cat(groups).argsort()]
    if tower.text_projection is None:
        return pooled
    linear = isinstance(tower.text_projection, torch.nn.Linear)
    projected: Tensor = tower.text_projection(pooled) if linear else pooled @ tower.text_projection
    return projected


def length_groups(ends: Sequence[int]) -> list[list[int]]:
    """Rows of a batch in one group, or the short and the long apart.

    Args:
        ends: last position that is read of each row, from 0.

    Returns:
        Rows of each group; all of them in order where parting them saves little.
    """
    size = len(ends)
    order = sorted(range(size), key=ends.__getitem__)
    lengths = [ends[row] + 1 for row in order]
    places = range(_LEAST, size - _LEAST + 1)
    cost = {at: at * lengths[at - 1] + (size - at) * lengths[-1] for at in places}
    at = min(cost, key=cost.__getitem__, default=0)
    if not at or cost[at] > (1 - _WORTH) * size * lengths[-1]:
        return [list(range(size))]
    return [order[:at], order[at:]]


def compile_blocks(clip: Any) -> None:
    """Compile block by block, in place: names in checkpoints stay, and blocks share one graph."""
    for module in clip.modules():
        if isinstance(module, open_clip.transformer.ResidualAttentionBlock):
            module.compile()


class Widths(NamedTuple):
    """Numbers per token of each tower, and of the model's vectors."""

    text: int
    image: int
    width: int


class TextTokens(NamedTuple):
    """States of texts at some positions; columns that no text needs are left out.

    Attributes:
        states: last normalised states, not projected.
        positions: of the columns in the text.
        mask: which of them belong to the text and are no padding.
    """

    states: Float[Tensor, "texts columns width"]
    positions: Int[Tensor, " columns"]
    mask: Bool[Tensor, "texts columns"]


def give_tokens(clip: Any) -> Widths:
    """Make both towers give their tokens.

    Raises:
        MismatchError: if a tower has none.
    """
    text, visual = text_tower(clip), clip.visual
    known = isinstance(text, (open_clip.CLIP, TextTransformer))
    if not known or getattr(text, "cls_emb", None) is not None:
        raise MismatchError(
            f"feature fusion cannot read tokens of a {type(text).__name__} text tower"
        )
    if isinstance(text, TextTransformer):
        text.output_tokens = True
    # Nothing reads it; weight decay would still move it.
    text.text_projection = None
    width = int(text.token_embedding.embedding_dim)
    if isinstance(visual, VisionTransformer) and visual.proj is not None:
        visual.output_tokens = True
        dim = int(visual.proj.shape[1])
        return Widths(width, dim, dim)
    if isinstance(visual, TimmModel):
        height, across = visual.image_size
        with torch.no_grad():
            training = visual.training
            visual.eval()
            dim = int(visual(torch.zeros(1, 3, height, across)).shape[1])
            visual.train(training)
        return Widths(width, int(visual.trunk.num_features), dim)
    raise MismatchError(
        f"feature fusion cannot read tokens of a {type(visual).__name__} image tower"
    )


def text_tokens(clip: Any, texts: Int[Tensor, "texts context"], full: bool = False) -> TextTokens:
    """States of each text's own tokens, start and end of text included.

    A causal tower is run only up to the longest text of the batch. A tower that sees its padding
    (SigLIP) is given all of it; the text's tokens are those before the run of equal ones at the
    end, and the last position, where SigLIP gathers what it pools.

    ``full`` gives all positions, padding too.
    """
    tower = text_tower(clip)
    length = texts.shape[1]
    columns = torch.arange(length, device=texts.device)
    if full:
        mask = torch.ones_like(texts, dtype=torch.bool)
    elif is_causal(tower):
        end = ends(tower, texts)
        length = int(end.max()) + 1
        columns = columns[:length]
        mask = columns <= end[:, None]
    else:
        mask = _before_padding(texts)
        mask[:, -1 if pool_type(tower) == "last" else 0] = True
    states = _states(clip, tower, texts, length)
    if not full and length == texts.shape[1]:
        columns = mask.any(0).nonzero()[:, 0]
        states, mask = states[:, columns], mask[:, columns]
    return TextTokens(states, columns, mask)


def _states(clip: Any, tower: Any, texts: Tensor, length: int) -> Tensor:
    if is_causal(tower):
        return causal_states(tower, texts, length)
    if isinstance(tower, open_clip.CLIP):
        dtype = tower.transformer.get_cast_dtype()
        x = tower.token_embedding(texts).to(dtype) + tower.positional_embedding.to(dtype)
        states: Tensor = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))
    else:
        states = clip.encode_text(texts)[1]
    return states


def _before_padding(texts: Int[Tensor, "texts context"]) -> Bool[Tensor, "texts context"]:
    """False in the run of equal tokens at the end of each row."""
    same = texts == texts[:, -1:]
    return ~same.flip(1).long().cumprod(1).bool().flip(1)


def image_tokens(
    clip: Any, images: Float[Tensor, "images 3 height width"]
) -> Float[Tensor, "images tokens width"]:
    """The class token or whatever else is pooled, then the patches, projected where CLIP does."""
    visual = clip.visual
    if isinstance(visual, VisionTransformer):
        pooled, patches = visual(images)
        return torch.cat([pooled[:, None], patches @ visual.proj], 1)
    states = visual.trunk.forward_features(images)
    pooled = visual.head(visual.trunk.forward_head(states))
    flat = states if states.ndim == 3 else states.flatten(2).transpose(1, 2)
    return torch.cat([pooled[:, None], flat], 1) if pooled.shape[1] == flat.shape[2] else flat
