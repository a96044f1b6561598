"""Multimodal language models for sentence-transformers and peft, and the check that they agree.

A layout becomes a chat template: what it does to a conversation stands before the model's own
template (``chat.jinja``), so that other libraries show an item as in training without our code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from augment.engines.base import resolve_model
from augment.errors import MismatchError
from retrievers.export.open_clip import AGREEMENT, noise
from retrievers.export.sentence_transformers import library
from retrievers.models.mllm.encoder import Mllm
from retrievers.models.mllm.layout import LAYOUT_SET, Layout
from retrievers.models.mllm.reasoning import Reasoning
from retrievers.models.reranker import scorer
from retrievers.models.tuning import is_tuned
from retrievers.vectors.embed import embed_contents, examples_of

#: Scores of a folder differ from ours by less.
SCORES = 1e-4

#: What is compared: texts, pictures, both.
_ITEMS: list[tuple[str | None, Image.Image | None]] = [
    ("a photo of a dog", None), ("caf\u00e9 & co. at 5 o'clock", None), (None, noise(96, 64)),
    (None, noise(300, 200)), ("the same in red", noise(50, 77)),
]  # fmt: skip


def write_folder(model: Mllm, folder: Path, prompts: dict[str, str] | None = None) -> None:
    """Write a folder that ``SentenceTransformer`` loads, ``CrossEncoder`` if it is a reranker.

    Its weights are the whole model's, as its class in transformers names them; so servers load it.

    Args:
        model: low-rank updates are in its weights.
        folder: empty.
        prompts: name -> instruction, for ``prompt_name=``.

    Raises:
        MismatchError: if the layout has no counterpart there; says why.
        EngineError: if sentence-transformers is not installed.
    """
    reasons = list(refusals(model.layout))
    if is_tuned(model):
        reasons.append("its low-rank updates are not merged, which fit() and load() do")
    if reasons:
        raise MismatchError(
            f"a folder of sentence-transformers cannot hold this model: {'; '.join(reasons)}"
        )
    st = library()
    parts = st.sentence_transformer.modules
    model.vlm.save_pretrained(folder)
    processor = deepcopy(model.collator().processor)
    processor.chat_template = chat_template(model)
    processor.save_pretrained(folder)
    kind = {"transformer_task": "any-to-any"} if model.words else {}
    first: Any = parts.Transformer(str(folder), **kind)
    # The weights are there, those of a head of words, too, which an encoder does not load.
    first.save = lambda path, *_given, **_named: first.save_config(path)
    # Pictures are resized by Pillow, as in training; torchvision's numbers are a little different.
    first.processor_kwargs = {"use_fast": False}
    first.config_keys = [*first.config_keys, "processor_kwargs"]
    shared: dict[str, Any] = {"prompts": prompts or {}, "device": "cpu"}
    if model.words:
        modules = [first, st.cross_encoder.modules.LogitScore(*model.words)]
        whole = st.CrossEncoder(modules=modules, activation_fn=nn.Identity(), **shared)
    else:
        width = int(model.config.get_text_config().hidden_size)
        modules = [first, parts.Pooling(width, "lasttoken")]
        if isinstance(model.head, nn.Linear):
            weight = model.head.weight.detach().cpu().float()
            modules.append(parts.Dense(width, width, False, nn.Identity(), weight))
        modules.append(parts.Normalize())
        whole = st.SentenceTransformer(modules=modules, similarity_fn_name="cosine", **shared)
    whole.save_pretrained(str(folder), create_model_card=False)


def refusals(layout: Layout) -> Iterator[str]:
    """Why a layout is none of sentence-transformers; nothing if it is one."""
    cross = layout.cross
    if cross is None:
        return
    if cross.listwise:
        yield "layout.cross.ask without yes: it writes an order, and there a pair gets a score"
    elif not cross.yes:
        yield "layout.cross.yes is empty: its score is of a head of layers, not of two words"
    if cross.end:
        yield "layout.cross.end: tokens behind the prompt"
    if cross.corpus_first:
        yield "layout.cross.corpus_first: pictures of a pair are handed over query first"
    if not layout.chat:
        yield "layout.chat=false: a pair comes through the chat template"


def chat_template(model: Mllm) -> str:
    """The chat template of transformers that writes the prompts of a model's layout."""
    layout, own = model.layout, model.collator().processor
    cross, plain = layout.cross, ["", "", ""]
    turns = [{"roles": ["user", "query", "document"], "before": "", "ask": list(layout.ask)}]
    if cross is not None:
        query = {"roles": ["user", "query"], "before": cross.query, "ask": plain}
        corpus = cross.corpus.replace("{n}", "1")
        turns = [query, {"roles": ["document"], "before": corpus, "ask": plain}]
    told = {
        "query": layout.query, "corpus": layout.corpus, "turns": turns,
        "after": "" if cross is None else cross.ask,
        "pictures_first": layout.pictures_first or not layout.chat,
    }  # fmt: skip
    body = str(own.chat_template).removesuffix("\n")
    if not layout.chat:  # pictures and text with a blank between
        body = (
            '{%- for part in seen.content -%}{{- " " if not loop.first -}}'
            f'{{{{- part.text | trim if part.text else "{own.image_token}" -}}}}{{%- endfor -%}}'
        )
    end = layout.suffix + "".join(own.tokenizer.convert_ids_to_tokens(layout.behind(own.tokenizer)))
    words = (resources.files("retrievers.export") / "chat.jinja").read_text(encoding="utf-8")
    given, tail = (json.dumps(value, ensure_ascii=False) for value in (told, end))
    return f"{LAYOUT_SET}{given} -%}}\n{words}{body}{{{{ {tail} }}}}"


def write_adapter(model: Mllm, folder: Path) -> None:
    """Write low-rank updates as ``PeftModel.from_pretrained`` reads them, with the processor.

    Args:
        model: with its updates beside its weights.
        folder: is made.

    Raises:
        MismatchError: if there are no such updates, or more than them was trained.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    configs = getattr(model.vlm, "peft_config", {})
    if not configs:
        raise MismatchError(
            "the checkpoint has no low-rank updates (model.tuning.lora_rank); export it with "
            "--to=sentence_transformers"
        )
    held = ("lora_", "token_adapter", "logit_scale")
    trained = (name for name, value in model.named_parameters() if value.requires_grad)
    if others := [name for name in trained if not any(part in name for part in held)]:
        raise MismatchError(
            f"{', '.join(others[:4])} were trained beside the low-rank updates, and a folder of "
            "peft holds those alone; export with --to=sentence_transformers"
        )
    config = deepcopy(configs["default"])
    config.base_model_name_or_path = model.settings()["model_name"]
    config.task_type, config.inference_mode = "FEATURE_EXTRACTION", True
    config.save_pretrained(str(folder))
    state = get_peft_model_state_dict(model.vlm)
    tensors = {f"base_model.model.{name}": t.cpu().contiguous() for name, t in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    model.collator().processor.save_pretrained(folder)


def agreement(model: Mllm, folder: Path) -> dict[str, float]:
    """Compare what a folder gives, loaded by its own library, with what the model gives.

    Args:
        model: that it was made of; compared in float32, whatever its weights are.
        folder: of :func:`write_folder` or :func:`write_adapter`.

    Returns:
        The least cosine, or the largest difference of scores.

    Raises:
        MismatchError: if a cosine is below :data:`~retrievers.export.open_clip.AGREEMENT`, or
            scores differ by :data:`SCORES`.
    """
    theirs = (_by_peft if (folder / "adapter_config.json").is_file() else _by_st)(model, folder)
    ours = _given(model)
    if ours.ndim == 1:
        found = {"largest difference of scores": float((ours - theirs).abs().max())}
        agrees = max(found.values()) < SCORES
    else:
        least = float(functional.cosine_similarity(ours, theirs).min())
        found = {"cosine with the checkpoint's vectors at least": least}
        agrees = least >= AGREEMENT
    if not agrees:
        raise MismatchError(
            f"the exported folder gives others than the checkpoint ({found}); it was not kept. "
            "Low-rank updates need the base that their training began with; else report it with "
            "the model's name and the versions of transformers, peft and sentence-transformers"
        )
    return found


def _given(model: Mllm) -> Tensor:
    """Vectors of either side, or scores of all pairs; in float32, nothing written before."""
    with _plain(model):
        if model.layout.cross is None:
            sides = (embed_contents(model, _ITEMS, side) for side in ("query", "corpus"))
            return torch.cat(list(sides))
        every = examples_of(model.collator(), _ITEMS)
        return torch.cat([scorer(model).score(one, every) for one in every])


def _by_peft(model: Mllm, folder: Path) -> Tensor:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    name, kept = resolve_model(model.settings()["model_name"]), model.vlm
    base = AutoModelForImageTextToText.from_pretrained(
        name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    try:
        model.vlm = PeftModel.from_pretrained(base, str(folder)).base_model.model
        return _given(model)
    except (RuntimeError, IndexError, ValueError) as error:
        raise MismatchError(
            f"the low-rank updates do not fit {name} ({str(error)[:300]}); their training began "
            "with another base or more words. Export with --to=sentence_transformers"
        ) from error
    finally:
        model.vlm = kept


def _by_st(model: Mllm, folder: Path) -> Tensor:
    st, given = library(), {"convert_to_tensor": True, "show_progress_bar": False}
    options: dict[str, Any] = {"device": "cpu", "model_kwargs": {"dtype": torch.float32}}
    items = [
        text if picture is None else {"image": picture, **({"text": text} if text else {})}
        for text, picture in _ITEMS
    ]
    if model.layout.cross is not None:
        judge: Any = st.CrossEncoder(str(folder), **options)
        scores: Tensor = judge.predict([(one, two) for one in items for two in items], **given)
        return scores
    loaded: Any = st.SentenceTransformer(str(folder), **options)
    return torch.cat([loaded.encode_query(items, **given), loaded.encode_document(items, **given)])


@contextmanager
def _plain(model: Mllm) -> Iterator[None]:
    """Parameters in float32 for a while (buffers are what they are), and nothing written."""
    kept, reasoning = [(p, p.dtype) for p in model.vlm.parameters()], model.reasoning
    model.reasoning = Reasoning()
    for parameter, _ in kept:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        model.reasoning = reasoning
        for parameter, dtype in kept:
            parameter.data = parameter.data.to(dtype)
