"""Small models of the toolkit's own: how they are built, and where the packaged ones lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

#: Names that stand for a folder shipped with the package.
PACKAGED = {"flagland-vlm": Path(__file__).parent / "weights" / "flagland-vlm"}

#: Files of a model folder that change its answers; cards and logs do not.
_ANSWERING = (".safetensors", ".json", ".jinja", ".txt", ".model")


def fingerprint(folder: Path) -> str:
    """Forty hex digits over the names and bytes of a model folder's files that matter."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _ANSWERING and path.is_file():
            with path.open("rb") as file:
                part = hashlib.sha256()
                while block := file.read(1 << 20):
                    part.update(block)
            total.update(f"{path.name}\0{part.hexdigest()}\n".encode())
    return total.hexdigest()[:40]


def resolve_model(name: str) -> str:
    """The folder of a packaged model, or the name unchanged (a folder or a hub name)."""
    return str(PACKAGED[name]) if name in PACKAGED else name
