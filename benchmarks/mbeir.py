"""What the experiments need on real M-BEIR, what of it is here, and what it would cost.

``python -m benchmarks.mbeir --root data/mbeir [--store S]``: a line for every part with what is
missing and the command that gets it, then the arithmetic of GPU-hours. Exit status 1 if something
is missing. Nothing is downloaded or run. See ``docs/m-beir.md``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from augment.enrichment.command import entry
from augment.files import say

#: Data set, M-BEIR task code -> thousands of queries (train, val, test) and of candidates in the
#: local pool; UniIR (2311.17136), table 1, as published there (rounded).
ROWS: dict[tuple[str, int], tuple[float, float, float, float]] = {
    ("visualnews", 0): (99, 20, 20, 542), ("mscoco", 0): (100, 24.8, 24.8, 5),
    ("fashion200k", 0): (15, 1.7, 1.7, 201), ("webqa", 1): (16, 1.7, 2.4, 544),
    ("edis", 2): (26, 3.2, 3.2, 1000), ("webqa", 2): (17, 1.7, 2.5, 403),
    ("visualnews", 3): (100, 20, 20, 537), ("mscoco", 3): (113, 5, 5, 25),
    ("fashion200k", 3): (15, 4.8, 4.8, 61), ("nights", 4): (16, 2, 2, 40),
    ("oven", 6): (150, 50, 50, 676), ("infoseek", 6): (141, 11, 11, 611),
    ("fashioniq", 7): (16, 2, 6, 74), ("cirr", 7): (26, 2, 4, 21),
    ("oven", 8): (157, 14.7, 14.7, 335), ("infoseek", 8): (143, 17.6, 17.6, 481),
}  # fmt: skip
#: Tasks whose candidates, and whose queries, have a picture.
_PICTURED_CANDIDATES, _PICTURED_QUERIES = (0, 2, 4, 7, 8), (3, 4, 6, 7, 8)
#: Training pairs in the upsampled union file (UniIR's issue 6), epochs and pairs a step of its
#: large recipe.
UNION_PAIRS, EPOCHS, BATCH = 1_332_790, 20, 840


#: Rows of each file whose pictures are looked for.
SAMPLE = 20


class Part(NamedTuple):
    """Something that is needed.

    Attributes:
        name: what.
        found: where or how much of it; empty if it is missing.
        remedy: how to get it.
    """

    name: str
    found: str
    remedy: str


_DOWNLOAD = (
    "huggingface-cli download TIGER-Lab/M-BEIR --repo-type dataset --local-dir {root}; then "
    "`cd {root} && cat mbeir_images.tar.gz.part-* | tar xz`"
)


def _file(root: Path, *names: str) -> Part:
    there = next((name for name in names if (root / name).is_file()), "")
    size = f"{(root / there).stat().st_size / 1e6:,.0f} MB" if there else ""
    return Part(names[0], size, _DOWNLOAD.format(root=root))


def data_parts(root: Path) -> Iterator[Part]:
    """The files of the root, by their published names."""
    for dataset, task in ROWS:
        stem = f"mbeir_{dataset}_task{task}"
        yield _file(root, f"query/test/{stem}_test.jsonl")
        yield _file(root, f"qrels/test/{stem}_test_qrels.txt")
        yield _file(root, f"cand_pool/local/{stem}_cand_pool.jsonl",
                    f"cand_pool/local/{stem}_test_cand_pool.jsonl")  # fmt: skip
    for dataset in dict.fromkeys(dataset for dataset, _ in ROWS):
        yield _file(root, f"query/train/mbeir_{dataset}_train.jsonl")
    yield _file(root, "query/union_train/mbeir_union_up_train.jsonl")
    yield _file(root, "cand_pool/global/mbeir_union_test_cand_pool.jsonl")
    yield _file(root, "instructions/query_instructions.tsv")
    yield _pictures(root)


def _pictures(root: Path) -> Part:
    """The first pictures that each pool and query file names; the folder, without such files."""
    remedy = _DOWNLOAD.format(root=root)
    named: list[str] = []
    for path in (*root.glob("cand_pool/local/*.jsonl"), *root.glob("query/test/*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in islice(lines, SAMPLE) if line.strip()]
        found = (row.get("img_path") or row.get("query_img_path") for row in rows)
        named += [image for image in found if image]
    absent = [image for image in named if not (root / image).is_file()]
    if absent:
        return Part(f"{len(absent)} of {len(named)} pictures looked for, first {absent[0]}", "",
                    remedy)  # fmt: skip
    there = f"{len(named)} of {len(named)} looked for" if named else ""
    return Part("mbeir_images (pictures)", there, remedy)


def machine_parts(model: str, out: Path) -> Iterator[Part]:
    """Packages, devices, disk and weights."""
    import torch

    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    yield Part("GPU", ", ".join(gpus), "run on a machine with one; CPUs would take years")
    vllm = "installed" if importlib.util.find_spec("vllm") else ""
    yield Part("vllm", vllm, "pip install 'reasoning-augmented-retrieval[vllm]' (see setup.cfg)")
    near = next(parent for parent in (out.resolve(), *out.resolve().parents) if parent.exists())
    free = shutil.disk_usage(near).free / 1e9
    yield Part("100 GB of free disk for texts, vectors and checkpoints",
               f"{free:,.0f} GB" if free >= 100 else "", f"free some beside {near}")  # fmt: skip
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    for name in (model, "timm/vit_large_patch14_clip_224.openai"):
        folder = home / f"models--{name.replace('/', '--')}"
        there = "in the cache" if folder.is_dir() or Path(name).is_dir() else ""
        yield Part(f"weights of {name}", there, f"huggingface-cli download {name}")


def pictured() -> tuple[float, float, float]:
    """Pictures to be described: candidates, training and val queries, test queries."""
    candidates = sum(row[3] for (_, t), row in ROWS.items() if t in _PICTURED_CANDIDATES)
    queries = [row for (_, t), row in ROWS.items() if t in _PICTURED_QUERIES]
    return (1e3 * candidates, 1e3 * sum(row[0] + row[1] for row in queries),
            1e3 * sum(row[2] for row in queries))  # fmt: skip


class Rates(NamedTuple):
    """What one GPU does in a second.

    Attributes:
        captions: descriptions of candidates.
        rewrites: texts of queries.
        pairs: training pairs.
        items: candidates or queries embedded.
    """

    captions: float
    rewrites: float
    pairs: float
    items: float


#: Measured and published by others, on hardware and models as near as there are; none is ours.
#: Captions: Qwen2.5-VL-7B-Instruct, vLLM 0.7.2, H100, pictures of 480 x 360 and 128 new tokens, 3.3
#: requests a second (A100: 3.0; FP8 on an H100: 4.2); rewrites: 640 x 480, 128 tokens in and 128
#: out, 3.1 (Neural Magic's card of Qwen2.5-VL-7B-Instruct-quantized.w4a16, February 2025). Pairs:
#: open_clip's docs/PRETRAINED.md, ViT-L/14 on LAION-400M, 12.8 billion samples in 50,800 hours of
#: A100 40 GB with activations computed again: 70. Items: such a step is the work of four forward
#: passes, so 4 x 70 pairs through both towers.
PUBLISHED = Rates(3.3, 3.1, 70, 280)
#: Assumed for a current GPU, a current vLLM and short texts of queries.
ASSUMED = Rates(15, 30, 400, 1000)


def arithmetic(rates: Rates) -> str:
    """GPU-hours of each stage, with the sums."""
    candidates, training, test = pictured()
    steps = UNION_PAIRS // BATCH * EPOCHS
    embedded = 1e3 * sum(row[3] + row[2] for row in ROWS.values())
    lines = []
    for name, count, rate in (
        ("describe candidates", candidates, rates.captions),
        ("rewrite train and val queries", training, rates.rewrites),
        ("rewrite test queries", test, rates.rewrites),
        (f"one training, {steps:,} steps of {BATCH}", steps * BATCH, rates.pairs),
        ("one test, pools and queries embedded", embedded, rates.items),
    ):
        hours = count / rate / 3600
        lines.append(f"{name}: {count:,.0f} / {rate:g} a second / 3600 = {hours:,.1f} GPU-hours")
    once = (candidates / rates.captions + (training + test) / rates.rewrites) / 3600
    each = steps * BATCH / rates.pairs / 3600
    tests = embedded / rates.items / 3600
    lines.append(
        f"the grid with one seed: {once:,.0f} for the texts + 2 trainings x {each:,.0f} + 8 tests "
        f"x {tests:,.1f} = {once + 2 * each + 8 * tests:,.0f} GPU-hours"
    )
    return "\n".join(lines)


@entry
def main(arguments: Sequence[str]) -> int:
    """Run the command; 0 if everything is here, 1 if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mbeir", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("data/mbeir"))
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where results will lie")
    parser.add_argument("--model", default="Qwen/Qwen3-VL-8B-Instruct")
    # What --dry-run and --preview say on your machine is better than either.
    for name, published, assumed in zip(Rates._fields, PUBLISHED, ASSUMED, strict=True):
        told = f"a second and GPU; published {published:g}, assumed for a current one {assumed:g}"
        parser.add_argument(f"--{name}", type=float, help=told)
    args = parser.parse_args(arguments)
    parts = [*data_parts(args.root), *machine_parts(args.model, args.out)]
    missing: dict[str, list[str]] = {}
    for part in parts:
        if part.found:
            say(f"there    {part.name} ({part.found})")
        else:
            missing.setdefault(part.remedy, []).append(f"MISSING  {part.name}\n")
    for remedy, names in missing.items():
        say(f"{''.join(names)}         get {'it' if len(names) == 1 else 'them'}: {remedy}")
    there = sum(bool(part.found) for part in parts)
    say(f"\n{there} of {len(parts)} parts are there\n")
    given = {name: rate for name in Rates._fields if (rate := getattr(args, name)) is not None}
    if given:
        say("Cost by your rates, published ones where you gave none (--help), of one GPU:")
        say(arithmetic(PUBLISHED._replace(**given)))
    else:
        say("Cost by rates that others measured on one GPU in 2022 and 2025 (see the source):")
        say(f"{arithmetic(PUBLISHED)}\n\nThe same by rates assumed for a current GPU:")
        say(arithmetic(ASSUMED))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
