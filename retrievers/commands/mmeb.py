"""``python -m retrievers mmeb --root MMEB --images PICTURES --out RUN``: MMEB's image data sets."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jsonargparse
import numpy as np
import torch

from augment.errors import DataError
from augment.images import open_image
from augment.mbeir import write_qrels
from augment.mbeir.files import replacing
from augment.records import Qrel, Side
from retrievers.base import Retriever
from retrievers.clip import ClipScoreFusion  # noqa: F401 - a short name for --model
from retrievers.clip_ff import ClipFeatureFusion  # noqa: F401 - a short name
from retrievers.encoding import Content, encode
from retrievers.mmeb import (
    Score,
    Target,
    rank_lists,
    read_subset,
    record,
    score_subset,
    subset_names,
    table,
)
from retrievers.run import write_run


def evaluate_mmeb(
    model: Retriever,
    root: Path,
    images: Path,
    out: Path,
    subsets: list[str] | None = None,
    ckpt_path: str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    depth: int = 100,
) -> list[Score]:
    """Evaluate a retriever on MMEB's image data sets; runs, judgements, ``metrics.json`` in OUT.

    Args:
        model: a retriever, as for ``test``.
        root: folder with a folder of parquet files (or a .jsonl file) for each data set.
        images: folder that the picture paths start from.
        out: run files, qrels and ``metrics.json`` go here.
        subsets: only these data sets.
        ckpt_path: weights to load first.
        limit: only so many queries of each data set.
        batch_size: items encoded at once.
        device: where the model runs.
        depth: hits per query in the run files.

    Raises:
        DataError: if a data set or picture is missing or cannot be used.
    """
    started = time.monotonic()
    names = subset_names(root)
    lacking = sorted(set(subsets or ()) - set(names))
    if lacking:
        raise DataError(f"has no data set {lacking[0]}; there are {', '.join(names)}", str(root))
    if ckpt_path is not None:
        model.load_weights(ckpt_path)
    model.to(torch.device(device))
    scores = []
    for name in subsets or names:
        subset = read_subset(root, name, limit)
        queries = _vectors(model, subset.queries, "query", images, batch_size, f"{name} query")
        found = _vectors(
            model, subset.candidates, "corpus", images, batch_size, f"{name} candidate"
        )
        run = rank_lists(subset, queries, found)
        scores.append(score_subset(subset, run))
        write_run(out / f"{name}.local.trec", run.cut(depth), "mmeb")
        qrels = [Qrel(q, d, g) for q, own in subset.grades.items() for d, g in own.items()]
        write_qrels(out / f"{name}.qrels", qrels, columns=4)
        sys.stdout.write(f"{name}: hit@1 {100 * scores[-1].metrics['success@1']:.1f}\n")
    settings = {"model": model.describe(), "root": str(root), "limit": limit, "depth": depth}
    told = record(scores, {**settings, "ckpt_path": ckpt_path}, time.monotonic() - started)
    with replacing(out / "metrics.json") as stream:
        stream.write(json.dumps(told, indent=1, default=str) + "\n")
    return scores


def _vectors(
    model: Retriever, targets: Sequence[Target], side: Side, images: Path, size: int, where: str
) -> np.ndarray:
    parts = []
    for start in range(0, len(targets), size):
        contents = [
            Content(target.text, open_image(images, target.image) if target.image else None)
            for target in targets[start : start + size]
        ]
        parts.append(encode(model, contents, side, where).numpy())
    return np.concatenate(parts)


def main(arguments: Sequence[str]) -> None:
    """Run the command; ``--config`` takes a YAML file, ``--help`` lists the settings."""
    scores = jsonargparse.auto_cli(
        evaluate_mmeb, args=list(arguments), as_positional=False, prog="python -m retrievers mmeb"
    )
    sys.stdout.write(table(scores) + "\n")
