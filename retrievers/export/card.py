"""The model card: what the weights are, which text they were trained on, and what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub import EvalResult, ModelCardData

from augment.enrichment.export import Shown, provenance
from augment.records import Side
from augment.store.page import visible
from retrievers.evaluation.protocol import TASK_NAMES

if TYPE_CHECKING:
    from retrievers.models.base import Encoder

#: The libraries that a folder is written for.
Form = Literal["open_clip", "sentence_transformers"]

_SIDES: tuple[tuple[Side, str], ...] = (("query", "queries"), ("corpus", "candidates"))

_OPEN_CLIP = """\
```python
import open_clip, torch
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
text = model.encode_text(tokenizer(["a text"]){inner})
image = model.encode_image(preprocess(picture)[None]{inner})
both = torch.nn.functional.normalize(text + image, dim=-1)  # an item with text and picture
```

From the Hub: `hf-hub:OWNER/NAME` in place of `local-dir:FOLDER`.
"""

_OURS = """\
With the toolkit that trained it, instructions and views included:

```python
from retrievers import load
retriever = load("FOLDER")
```
"""

_SENTENCE_TRANSFORMERS = """\
```python
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("FOLDER")
text, image = model.encode("a text"), model.encode(picture)  # picture: a PIL image
both = text + image  # an item with text and picture; compare by cosine
```
"""


def model_card(
    retriever: Encoder,
    name: str,
    metrics: Mapping[str, Any] | None = None,
    licence: str | None = None,
    form: Form = "open_clip",
) -> str:
    """``README.md`` for a folder or a repository on the Hub.

    Args:
        retriever: what is written.
        name: of the model.
        metrics: content of ``metrics.json`` that ``test`` wrote for these weights.
        licence: identifier on the Hub, such as apache-2.0; None leaves it to be filled in.
        form: the library that the folder is for.
    """
    library = form.replace("_", "-") if form == "sentence_transformers" else form
    data = ModelCardData(
        model_name=name,
        license=licence or "other",
        library_name=library if hasattr(retriever, "clip") else "reasoning-augmented-retrieval",
        pipeline_tag="feature-extraction",
        tags=["multimodal-retrieval", "m-beir", "clip"],
        eval_results=list(_eval_results(metrics)) or None,
    )
    head = f"---\n{data.to_yaml()}\n---\n"
    return head + "\n".join(_lines(retriever, name, metrics, licence, form)) + "\n"


def _lines(
    retriever: Encoder,
    name: str,
    metrics: Mapping[str, Any] | None,
    licence: str | None,
    form: Form,
) -> Iterator[str]:
    origin = _safe(retriever.origin or {})
    yield from (f"# {_safe(name)}", "")
    yield (
        f"A retriever of text, pictures and both ({type(retriever).__name__}): unit vectors, "
        "compared by inner product."
    )
    yield from ("", "## Use", "", *_usage(retriever, form).splitlines())
    yield from ("", "## Text it was trained on", "")
    yield from _text(retriever, origin)
    yield from ("", "## Training", "")
    yield from _training(retriever, origin)
    yield from ("", "## Measured", "")
    yield from _measured(_safe(metrics))
    yield from ("", "## Limits and licences", "")
    yield (
        "Vectors of text in another form than the one above (another view, prompt or instruction) "
        f"are not what was trained. {_cut(retriever)} Generated text may be wrong."
    )
    yield ""
    yield (
        f"Licence of the weights: {licence}."
        if licence
        else "No licence was named: fill it in above and here before you pass the weights on."
    ) + (
        " The terms of the starting weights, of the training data and of the models that wrote "
        "its text may bind them too."
    )


def _safe(value: Any) -> Any:
    """What a stranger's checkpoint says, with no text that could leave its place in Markdown."""
    if isinstance(value, Mapping):
        return {_safe(key): _safe(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(inner) for inner in value]
    if isinstance(value, str):
        return re.sub(r"[`|<>\[\]\s]+", " ", visible(value)).strip()
    return value


def _cut(retriever: Encoder) -> str:
    if getattr(retriever.collator(), "windows", None) is None:
        return "Text beyond the context is cut."
    return (
        "Text beyond the context was read in several windows, whose vectors were pooled; other "
        "libraries cut it, so split long texts and average the vectors."
    )


def _usage(retriever: Encoder, form: Form) -> str:
    if form == "sentence_transformers":
        return _SENTENCE_TRANSFORMERS
    if not hasattr(retriever, "clip"):
        return _OURS
    normalised = bool(retriever.settings().get("normalize_towers"))
    fusion = type(retriever).__name__ == "ClipScoreFusion"
    shown = _OPEN_CLIP.format(inner=", normalize=True" if normalised else "") if fusion else ""
    return f"{shown}\n{_OURS}" if shown else _OURS


def _text(retriever: Encoder, origin: Mapping[str, Any]) -> Iterator[str]:
    trained = _safe(retriever.trained_on)
    if trained is None:
        yield "It was not trained here, or does not remember on what."
        return
    data = origin.get("data") or {}
    instructions = "before queries" if trained.get("instructions") == "on" else "none"
    yield f"- rule: `{trained.get('rule')}`; instructions: {instructions}"
    for side, plural in _SIDES:
        view, _, fingerprint = str(trained.get(side, "")).partition(":")
        yield f"- {plural}: view `{view}`, fingerprint `{fingerprint}`"
    yield ""
    yield (
        "Views: `raw` is the published text, `append` the published text, a line break and the "
        "generated text, `replace` the generated text alone."
    )
    for side, _ in _SIDES:
        recipe = data.get(f"{side}_recipe")
        if isinstance(recipe, Mapping) and recipe:
            view = str(trained.get(side, "")).partition(":")[0]
            yield from provenance(side, Shown(view, recipe))


def _training(retriever: Encoder, origin: Mapping[str, Any]) -> Iterator[str]:
    if not origin:
        yield "Nothing is remembered of the training."
    data = origin.get("data") or {}
    if data:
        root = Path(str(data.get("root", ""))).name
        yield f"- data: `{root}`, tasks {data.get('tasks') or 'all'}"
    if "sha256" in origin:
        yield f"- SHA-256 of pools and training queries: `{origin['sha256']}`"
    if origin.get("command"):
        yield f"- command: `{origin['command']}`"
    versions = ", ".join(f"{name} {v}" for name, v in (origin.get("versions") or {}).items())
    if versions:
        yield f"- versions: {versions}; source {origin.get('commit') or 'installed, no commit'}"
    settings = ", ".join(f"{key} `{value}`" for key, value in _safe(retriever.settings()).items())
    yield f"- model: {settings}"


def _measured(metrics: Mapping[str, Any] | None) -> Iterator[str]:
    if not metrics:
        yield "No test of these weights was given when this card was written."
        return
    yield "success@k counts a query if any positive is among the first k (M-BEIR: Recall@k)."
    yield from ("", "| data set | task | pool | queries | success@1 | success@5 | recall@5 |")
    yield "|---|---|---|--:|--:|--:|--:|"
    for row in metrics["rows"]:
        found = row["metrics"]
        shown = " | ".join(f"{100 * found[m]:.1f}" for m in ("success@1", "success@5", "recall@5"))
        task = TASK_NAMES.get(row["task"], "")
        yield f"| {row['dataset']} | {task} | {row['pool']} | {row['queries']} | {shown} |"
    yield ""
    yield f"Fingerprint of weights and text: `{metrics['made_by']}`. One seed."


def _eval_results(metrics: Mapping[str, Any] | None) -> Iterator[EvalResult]:
    for row in (metrics or {}).get("rows", ()):
        for name in ("success@5", "recall@5"):
            yield EvalResult(
                task_type="feature-extraction",
                task_name=f"retrieval, {TASK_NAMES.get(row['task'], 'task unknown')}",
                dataset_type=row["dataset"],
                dataset_name=f"{row['dataset']} ({row['pool']} pool)",
                metric_type=name,
                metric_value=round(float(row["metrics"][name]), 4),
            )
