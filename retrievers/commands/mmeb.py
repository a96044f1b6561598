"""``python -m retrievers mmeb --root MMEB --images PICTURES --out RUN``: MMEB's data sets."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from augment.data import open_instructions, write_qrels
from augment.data.images import FRAMES, frames, open_image
from augment.data.mmeb import Target, read_subset, reworded, subset_names
from augment.errors import DataError, printable
from augment.files import say, write_json
from augment.records import Qrel, Side
from retrievers.data.plan import Content
from retrievers.evaluation.mmeb import SAID, rank_lists, score_subset, summary, table
from retrievers.evaluation.run_files import write_run
from retrievers.evaluation.versions import source_commit, versions
from retrievers.models.base import Encoder
from retrievers.models.load import load_weights, loaded
from retrievers.vectors.embed import embed_contents, kept_room, plain_settings
from retrievers.vectors.store import SHARD_SECONDS, EmbeddingWriter


def evaluate_mmeb(
    model: Encoder | str,
    root: Path,
    images: Path,
    out: Path,
    subsets: list[str] | None = None,
    ckpt_path: str | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    depth: int = 100,
    embeddings: Path | None = None,
    instructions: str | None = None,
    video_frames: int = FRAMES,
) -> None:
    """Evaluate a retriever on MMEB, V1 and V2; runs, judgements, ``metrics.json`` in OUT.

    Kill it at any moment and run it again: finished vectors are kept, at most a minute's are made
    twice. They are float32, so that scores do not depend on whether a run was stopped.

    Args:
        model: a checkpoint, an exported folder, a name that ``search`` takes, or an encoder.
        root: folder with a folder of parquet files (or a .jsonl file) for each data set.
        images: folder that the picture paths start from, and those of videos' frames.
        out: run files, qrels and ``metrics.json`` go here.
        subsets: only these data sets.
        ckpt_path: weights to load first.
        limit: only so many queries of each data set.
        batch_size: items encoded at once.
        device: where the model runs.
        depth: hits per query in the run files.
        embeddings: folder that keeps the vectors; OUT/embeddings if none is named.
        instructions: table in place of the published ones: a file, or ``rge``.
        video_frames: frames of a video that the model sees; 1 for a model of one picture.

    Raises:
        DataError: if a data set or picture is missing or cannot be used.
        MismatchError: if the folder holds vectors of other weights.
        StoreError: if the folder cannot be read or written.
    """
    started = time.monotonic()
    names = subset_names(root)
    asked = open_instructions(instructions) if instructions else None
    lacking = sorted(set(subsets or ()) - set(names))
    if lacking:
        raise DataError(f"has no data set {lacking[0]}; there are {', '.join(names)}", str(root))
    model = loaded(model)
    if ckpt_path is not None:
        load_weights(model, ckpt_path)
    model.to(torch.device(device))
    scores = []
    for name in subsets or names:
        subset = read_subset(root, name, limit, images=images)
        if asked is not None:
            subset = reworded(subset, asked)
        sides: dict[Side, dict[str, Target]] = {
            "query": {subset.qid(row): one for row, one in enumerate(subset.queries)},
            "corpus": {subset.did(row): one for row, one in enumerate(subset.candidates)},
        }
        folder = (embeddings or out / "embeddings") / name
        queries, found = (
            _embedded(model, side, targets, images, folder, batch_size, video_frames)
            for side, targets in sides.items()
        )
        run = rank_lists(subset, queries, found)
        write_run(out / f"{name}.local.trec", run.cut(depth), "mmeb")
        scores.append(score_subset(subset, run))
        qrels = [Qrel(q, d, g) for q, own in subset.grades.items() for d, g in own.items()]
        write_qrels(out / f"{name}.qrels", qrels, columns=4)
        metric = scores[-1].metric
        say(f"{printable(name)}: {SAID[metric]} {100 * scores[-1].metrics[metric]:.1f}")
    seconds, items = time.monotonic() - started, sum(one.queries + one.candidates for one in scores)
    told = {
        "rows": [asdict(score) for score in scores],
        "mean": summary(scores),
        "settings": {
            "model": model.settings(), "root": str(root), "limit": limit, "depth": depth,
            "ckpt_path": ckpt_path, "instructions": asked and asked.name,
            "video_frames": video_frames,
        },
        "commit": source_commit(),
        "versions": versions(),
        "cost": {"seconds": round(seconds, 3), "items": items,
                 "items_per_second": round(items / max(seconds, 1e-9), 1)},
    }  # fmt: skip
    write_json(out / "metrics.json", told, DataError)
    say(table(scores))


def _embedded(
    model: Encoder, side: Side, targets: dict[str, Target], images: Path, folder: Path, size: int,
    most: int,
) -> np.ndarray:  # fmt: skip
    """Vectors of one side of a data set by id, but for what an earlier run left in its folder."""
    names, items = list(targets), [
        Content(name, one.text, frames(images, one.image, most) if one.image else ())
        for name, one in targets.items()
    ]  # fmt: skip
    writer = EmbeddingWriter(
        folder / side,
        model.fingerprint({}),  # the texts are the data's own; they count by item
        plain_settings(model),
        "float32",
        shard_seconds=SHARD_SECONDS,
    )
    room = kept_room(writer, items, images, lambda rows: [names[row] for row in rows])
    missing, where = room.missing(), f"{printable(folder.name)} {side}"
    if len(missing) < len(items):
        kept = len(items) - len(missing)
        say(f"{where}: {kept} of {len(items)} vectors were there", sys.stderr)
    for start in tqdm(range(0, len(missing), size), desc=where, leave=False, disable=None):
        rows = missing[start : start + size]
        shown = [
            (one.text, [open_image(images, path) for path in one.images])
            for one in (items[row] for row in rows)
        ]
        room.put(torch.from_numpy(rows), embed_contents(model, shown, side, where))
    room.finish()
    return room.vectors.numpy()
