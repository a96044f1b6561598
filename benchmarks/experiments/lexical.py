"""BM25 over published and generated text, and its fusion with a dense retriever.

``python -m benchmarks.experiments.lexical`` writes ``benchmarks/results/lexical.md``: a small Flagland, whose
generated text is the oracle's, and ``../shared/data/mbeir_real``, which has published text only.
The dense retriever is the packaged flagland-clip as it is. Weights are tuned on training queries,
which neither system was trained on.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from augment import corpus, queries
from augment.enrichment.pipeline import Options
from benchmarks.experiments.real import DEFAULT_ROOT
from benchmarks.flagland.oracle import oracle_engine
from benchmarks.flagland.world import WorldConfig, write_world
from retrievers.cli import main as retrievers
from retrievers.evaluation.compare import compare

RESULTS = Path("benchmarks/results/lexical.md")
METRICS = ("success@1", "success@5", "ndcg@10")


def _command(*arguments: object) -> None:
    if retrievers([str(argument) for argument in arguments]):
        raise SystemExit(2)


def _views(store: Path | None) -> list[str]:
    if store is None:
        return []
    sides = (("query", "replace"), ("corpus", "append"))
    return [
        option
        for side, view in sides
        for option in (f"--{side}.view={view}", f"--{side}.store={store}")
    ]


def _runs(root: Path, out: Path, store: Path | None, limit: int) -> None:
    """Search test and dev queries by both systems; what is there already is not done again."""
    for name, split, extra in (("test", "test", []), ("dev", "train", [f"limit={limit}"])):
        for text, shown in (("raw", None), ("enriched", store)):
            if text == "enriched" and store is None:
                continue
            views = _views(shown)
            folder = out / f"bm25-{text}-{name}"
            if not (folder / "metrics.json").exists():
                _command(
                    "bm25", f"--root={root}", f"--out={folder}", f"--split={split}", *views,
                    *(f"--{option}" for option in extra), "--union=false",
                )  # fmt: skip
            folder = out / f"dense-{text}-{name}"
            if not (folder / "metrics.json").exists():
                _command(
                    "test", "--config=flagland", f"--data.root={root}", f"--out={folder}",
                    f"--data.test.split={split}", "--data.test.union=false",
                    "--data.on_bad_image=skip", "--trainer.enable_progress_bar=false",
                    *(view.replace("--", "--data.") for view in views),
                    *(f"--data.{option}" for option in extra),
                )  # fmt: skip


def _fused(out: Path, text: str) -> dict[str, Any]:
    test = [out / f"{system}-{text}-test" for system in ("dense", "bm25")]
    dev = [out / f"{system}-{text}-dev" for system in ("dense", "bm25")]
    _command("fuse", *test, "--out", out / f"rrf-{text}")
    _command("fuse", *test, "--out", out / f"weighted-{text}", "--dev", *dev)
    found: dict[str, Any] = json.loads((out / f"weighted-{text}" / "fusion.json").read_text())
    return found


def _means(folder: Path) -> dict[str, float]:
    record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    means: dict[str, float] = record["mean"]["local"]
    return means


def _section(title: str, out: Path, texts: Sequence[str]) -> list[str]:
    lines = [f"## {title}", "", "| text | system | " + " | ".join(METRICS) + " |"]
    lines.append("|---|---|" + "--:|" * len(METRICS))
    notes = []
    for text in texts:
        fusion = _fused(out, text)
        for system, folder in (
            ("flagland-clip", out / f"dense-{text}-test"),
            ("BM25", out / f"bm25-{text}-test"),
            ("reciprocal ranks", out / f"rrf-{text}"),
            ("weighted", out / f"weighted-{text}"),
        ):
            means = _means(folder)
            cells = " | ".join(f"{100 * means[metric]:.1f}" for metric in METRICS)
            lines.append(f"| {text} | {system} | {cells} |")
        tuned = fusion["tuned"]
        notes.append(
            f"Weights on {text} text (dense, BM25): {', '.join(map(str, tuned['weights']))}, tuned "
            f"for {tuned['metric']} on {tuned['queries']} training queries."
        )
    last = texts[-1]
    comparison = compare(
        out / f"dense-{last}-test", out / f"weighted-{last}", metric="success@5",
        names=("dense", "weighted fusion"),
    )  # fmt: skip
    return [*lines, "", *notes, "", comparison.table(), "", comparison.note(), ""]


def main() -> None:
    """Parse, run, write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments.lexical", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("runs/lexical"))
    parser.add_argument("--countries", type=int, default=200, help="of the small Flagland")
    parser.add_argument("--limit", type=int, default=60, help="dev queries per data set and task")
    parser.add_argument("--real", type=Path, default=DEFAULT_ROOT)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    world, store = args.out / "world", args.out / "store"
    if not world.exists():
        partial = args.out / "world.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write_world(partial, WorldConfig(args.countries, 1), workers=1)
        partial.rename(world)
    options = Options(model="oracle", batch_size=64, threads=1)
    corpus.run(world, store, options=options, engine=oracle_engine(world, "corpus"))
    queries.run(world, store, options=options, engine=oracle_engine(world, "query"))
    lines = [
        "# BM25, and its fusion with a dense retriever",
        "",
        (__doc__ or "").split("\n\n", 1)[1],
    ]
    _runs(world, args.out / "flagland", store, args.limit)
    title = f"Flagland, {args.countries} countries, seed 1 (local pools)"
    lines += _section(title, args.out / "flagland", ("raw", "enriched"))
    if args.real.is_dir():
        _runs(args.real, args.out / "real", None, args.limit)
        title = "Real photographs, product texts, recipes and flags (local pools)"
        lines += _section(title, args.out / "real", ("raw",))
    else:
        lines.append(f"{args.real} was not there; name a root with --real.")
    args.results.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
