"""Packaged configs by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from augment.files import homes


def expand(args: Sequence[str]) -> list[str]:
    """Names of packaged configs become their paths (``--config flagland``), and so does ``~``."""
    folder = Path(str(resources.files("retrievers"))) / "configs"
    expanded: list[str] = []
    for position, arg in enumerate(homes(list(args))):
        flag, equals, value = arg.partition("=")
        if equals and flag in ("--config", "-c"):
            expanded.append(f"{flag}={_config(value, folder)}")
        elif position and args[position - 1] in ("--config", "-c"):
            expanded.append(_config(arg, folder))
        else:
            expanded.append(arg)
    return expanded


def _config(value: str, folder: Path) -> str:
    packaged = next(folder.glob(f"*/{value}.yaml"), None) if value.isidentifier() else None
    return str(packaged) if packaged is not None and not Path(value).exists() else value
