"""Small models of the toolkit's own: how they are built, and where the packaged ones lie."""

from __future__ import annotations

from pathlib import Path

#: Names that stand for a folder shipped with the package.
PACKAGED = {"flagland-vlm": Path(__file__).parent / "flagland-vlm"}


def resolve_model(name: str) -> str:
    """The folder of a packaged model, or the name unchanged (a folder or a hub name)."""
    return str(PACKAGED[name]) if name in PACKAGED else name
