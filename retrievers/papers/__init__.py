"""Each paper, composed of the parts of this toolkit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from augment.engines import Engine
    from augment.enrichment.pipeline import Options


def written_by(vlm: str | Engine, options: Options | None) -> dict[str, Any]:
    """Arguments of an enrichment by a model of a name, or by an engine."""
    from augment.enrichment.pipeline import Options

    asked = options or Options()
    if isinstance(vlm, str):
        return {"options": replace(asked, model=vlm)}
    return {"options": asked, "engine": vlm}
