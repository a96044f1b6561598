"""``python -m retrievers export``: a checkpoint for other libraries and for the Hub."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from augment.data import DataRoot, format_text
from augment.errors import DataError, MismatchError
from augment.files import write_text
from retrievers.export import folder as hub
from retrievers.export.card import Form, model_card
from retrievers.export.check import (
    agreement,
    open_clip_encoders,
    sentence_transformers_encoders,
)
from retrievers.export.sentence_transformers import write_sentence_transformers
from retrievers.models.base import Encoder
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.load import load


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m retrievers export",
        description="Write a checkpoint as a folder that open_clip or sentence-transformers loads "
        "without this package, with a model card; compare the folder's vectors with ours.",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="written by fit")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument(
        "--to", default="open_clip", choices=("open_clip", "sentence_transformers"),
        help="the library that loads it; an open_clip folder also loads here (from_pretrained)",
    )  # fmt: skip
    parser.add_argument(
        "--metrics", type=Path,
        help="metrics.json of a test of these weights; default: the one of the checkpoint's run",
    )  # fmt: skip
    parser.add_argument(
        "--root", type=Path,
        help="data root, whose instructions become sentence-transformers' prompts",
    )  # fmt: skip
    parser.add_argument("--license", help="of the weights, as the Hub names it: apache-2.0")
    parser.add_argument("--name", help="of the model in its card; default: the folder's")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it too (open_clip only)")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    args = _parser().parse_args(list(arguments))
    if args.push and args.to != "open_clip":
        raise DataError("--push uploads the open_clip form; leave --to out")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise DataError("is there already; name a new folder with --out", str(args.out))
    retriever = load(args.checkpoint)
    metrics = _metrics(retriever, args.checkpoint, args.metrics)
    form: Form = args.to
    card = model_card(retriever, args.name or args.out.resolve().name, metrics, args.license, form)
    partial = args.out.with_name(f".{args.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        found = _write(retriever, form, partial, card, args.root)
        if args.out.exists():
            args.out.rmdir()
        partial.rename(args.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for name, cosine in found.items():
        sys.stdout.write(f"{name}: cosine with the checkpoint's vectors at least {cosine:.6f}\n")
    sys.stdout.write(f"{args.out}\n")
    if args.push:
        sys.stdout.write(f"{hub.push(retriever, args.push, card, private=args.private)}\n")


def _write(
    retriever: Encoder, form: Form, folder: Path, card: str, root: Path | None
) -> dict[str, float]:
    if form == "sentence_transformers":
        prompts = _prompts(retriever, root)
        write_sentence_transformers(retriever, folder, prompts)
        write_text(folder / "README.md", card)
        return agreement(retriever, sentence_transformers_encoders(folder))
    hub.save(retriever, folder, card)
    if isinstance(retriever, ClipScoreFusion):
        return agreement(retriever, open_clip_encoders(folder))
    return {}  # open_clip has no such model; the folder is for from_pretrained


def _metrics(retriever: Encoder, checkpoint: Path, given: Path | None) -> Mapping[str, Any] | None:
    path = given or checkpoint.parent.parent / "metrics.json"
    if given is None and not path.is_file():
        return None
    try:
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        made_by, text = metrics["made_by"], metrics["settings"]["data"]["text"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"is no metrics.json of a test ({type(error).__name__}: {error})", str(path)
        ) from error
    if made_by == retriever.fingerprint(text):
        return metrics
    if given is not None:
        raise MismatchError(
            f"{path} was measured with other weights or text (fingerprint {made_by}); test this "
            "checkpoint, or leave --metrics out"
        )
    return None


def _prompts(retriever: Encoder, root: Path | None) -> dict[str, str]:
    """First instruction of each kind of query, by data set and modalities."""
    trained = retriever.trained_on or {}
    if root is None or trained.get("instructions") != "on":
        return {}
    rule: Any = trained.get("rule", "plain")
    rows = DataRoot(root).instructions().rows
    return {
        f"{row.dataset_name}: {row.query_modality} -> {row.candidate_modality}": format_text(
            row.prompts[0], rule
        )
        + " "
        for row in rows
    }
