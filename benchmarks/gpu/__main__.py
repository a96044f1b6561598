"""``python -m benchmarks.gpu``: rates of one GPU with models of published sizes.

Some eight minutes on a GPU of 80 GB. Nothing is downloaded; what must be installed beside torch,
transformers, lightning and peft is listed in ``benchmarks/gpu/wheels.txt``. Every part prints its
figures when it has them and adds them to the file; one that fails says why, and the next begins.
``--size=tiny`` tries the whole program on a CPU in a minute.
"""

from __future__ import annotations

import platform
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli

from augment.files import write_json
from benchmarks.gpu.parts import PARTS, SCALES, Bench, Figures
from retrievers.evaluation.versions import source_commit

_PACKAGES = ("torch", "transformers", "open_clip_torch", "peft", "lightning")


def measure(
    out: Path = Path("gpu.json"),
    size: Literal["full", "tiny"] = "full",
    seconds: float = 480.0,
    each: float = 15.0,
    only: list[str] | None = None,
    batch: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure one part after another.

    Args:
        out: JSON that grows by a part at a time.
        size: of models and batches.
        seconds: after which no further part begins.
        each: seconds that a rate is measured for.
        only: names of parts; null measures all.
        batch: requests answered and items embedded together; null takes the size's.
        device: auto, cpu or cuda.

    Returns:
        What the file holds.

    Raises:
        SystemExit: if a name is of no part.
    """
    names = [part.__name__ for part in PARTS]
    if unknown := sorted(set(only or ()) - set(names)):
        raise SystemExit(f"no part {', '.join(unknown)}; there are {', '.join(names)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    start, found = time.perf_counter(), _told(torch.device(device), size)
    with tempfile.TemporaryDirectory() as folder:
        scale = replace(SCALES[size], batch=batch or SCALES[size].batch)
        bench = Bench(torch.device(device), scale, Path(folder), each)
        for part in PARTS:
            if only and part.__name__ not in only:
                continue
            began = time.perf_counter()
            if began - start > seconds:
                figures: Figures | dict[str, str] = {"left out": f"{seconds:.0f} s were over"}
            else:
                figures = _figures(bench, part)
            spent = time.perf_counter() - began
            found["parts"][part.__name__] = {**figures, "seconds": spent}
            write_json(out, found)
            shown = ", ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
                for name, value in figures.items()
            )
            print(f"{part.__name__} ({spent:.0f} s): {shown}", flush=True)
    return found


def _figures(bench: Bench, part: Any) -> Figures | dict[str, str]:
    try:
        return dict(part(bench))
    except Exception as error:  # noqa: BLE001 - the other parts' figures are worth having
        return {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
    finally:
        bench.free()


def _told(device: torch.device, size: str) -> dict[str, Any]:
    cuda = device.type == "cuda"
    chip = torch.cuda.get_device_name(device) if cuda else platform.machine()
    return {
        "chip": chip,
        "size": size,
        "command": f"python -m benchmarks.gpu {shlex.join(sys.argv[1:])}".strip(),
        "commit": source_commit() or "unknown",
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda if cuda else None,
        "parts": {},
    }


if __name__ == "__main__":
    auto_cli(measure, as_positional=False, prog="python -m benchmarks.gpu")
