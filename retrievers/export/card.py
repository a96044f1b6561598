"""The model card: what the weights are, which text they were trained on, and what was measured.

Its text is ``card.md.jinja``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub import EvalResult, ModelCardData

from augment.enrichment.export import NAMES, SideShown
from augment.records import Side
from augment.store.page import inline
from retrievers.evaluation.protocol import TASK_NAMES

if TYPE_CHECKING:
    from retrievers.models.base import Encoder

#: The libraries that a folder is written for.
Form = Literal["open_clip", "sentence_transformers", "peft"]
#: What a pool with its vectors is written for.
Place = Literal["parquet", "faiss", "milvus"]

_SIDES: tuple[Side, ...] = ("query", "corpus")


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
    from jinja2 import Template

    library = {"sentence_transformers": "sentence-transformers"}.get(form, form)
    clip, layout = hasattr(retriever, "clip"), getattr(retriever, "layout", None)
    ranks = layout is not None and layout.cross is not None
    data = ModelCardData(
        model_name=name,
        license=licence or "other",
        library_name=library if clip or form != "open_clip" else "reasoning-augmented-retrieval",
        pipeline_tag="text-ranking" if ranks else "feature-extraction",
        tags=["multimodal-retrieval", "m-beir", *(["clip"] if clip else [])],
        eval_results=list(_eval_results(metrics)) or None,
    )
    trained, origin = _safe(retriever.trained_on), _safe(retriever.origin or {})
    text = (resources.files("retrievers.export") / "card.md.jinja").read_text(encoding="utf-8")
    template = Template(text, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    card: str = template.render(
        head=data.to_yaml(),
        name=_safe(name),
        kind=type(retriever).__name__,
        form=form,
        ranks=ranks,
        both=layout is not None,
        settings=_safe(retriever.settings()),
        trained=trained,
        origin=origin,
        root=Path((origin.get("data") or {}).get("root", "")).name,
        recipes=list(_recipes(trained or {}, origin.get("data") or {})),
        metrics=_safe(metrics),
        tasks=TASK_NAMES,
        windows=getattr(retriever.collator(), "windows", None) is not None,
        licence=licence,
    )
    return card


def _safe(value: Any) -> Any:
    """What a stranger's checkpoint says, with no text that could leave its place in Markdown."""
    if isinstance(value, Mapping):
        return {_safe(key): _safe(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(inner) for inner in value]
    if isinstance(value, str):
        return inline(value)
    return value


def _recipes(trained: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[str]:
    for side in _SIDES:
        recipe, view = data.get(f"{side}_recipe"), trained.get(side, "").partition(":")[0]
        if isinstance(recipe, Mapping) and recipe:
            yield from SideShown(NAMES[side], view, recipe).provenance().splitlines()


def _eval_results(metrics: Mapping[str, Any] | None) -> Iterator[EvalResult]:
    for row in (metrics or {}).get("rows", ()):
        for name in ("success@5", "recall@5"):
            yield EvalResult(
                task_type="feature-extraction",
                task_name=f"retrieval, {TASK_NAMES.get(row['task'], 'task unknown')}",
                dataset_type=row["dataset"],
                dataset_name=f"{row['dataset']} ({row['pool']} pool)",
                # Or the Hub takes all tasks and pools of a data set for one.
                dataset_config=f"task {row['task']}, {row['pool']}",
                metric_type=name,
                metric_value=round(float(row["metrics"][name]), 4),
            )
