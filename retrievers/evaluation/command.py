"""``python -m retrievers compare | fuse | submission``: run files on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from augment.data import DataRoot
from augment.data.pools import open_queries
from augment.data.root import read_lists
from augment.enrichment import command
from augment.errors import DataError, printable
from augment.files import say, write_json
from augment.records import Query
from retrievers.evaluation.compare import Comparison, Pool, compare
from retrievers.evaluation.evaluate import evaluate
from retrievers.evaluation.fusion import fuse
from retrievers.evaluation.results import modality_table
from retrievers.evaluation.run_files import read_run
from retrievers.evaluation.versions import source_commit, versions


def run_fuse(arguments: Sequence[str]) -> None:
    """Make one run out of several, and score it."""
    args = command.asked(fuse, arguments, "python -m retrievers fuse", ("runs",))
    tuned, out = fuse(**args), args["out"]
    if tuned:
        alone = ", ".join(f"{100 * score:.1f}" for score in tuned.alone)
        say(
            f"weights {' '.join(map(str, tuned.weights))}: {tuned.metric} "
            f"{100 * tuned.score:.1f} on {tuned.queries} dev queries (alone: {alone})\n"
        )
    say(evaluate(out, out=out / "metrics.json"))


def submission(
    run: Path, out: Path, to: Literal["cirr", "circo"], subsets: Path | None = None
) -> None:
    """Write a run of a test split, whose labels are kept back, as the authors' server takes it.

    CIRCO takes the 50 best of each query (miccunifi/CIRCO, README). CIRR (Cuberick-Orion/CIRR,
    Test-split_server.md) takes the same, and in another file the three best of each own list.

    Args:
        run: TREC run of an imported root, searched at least so deep.
        out: New JSON file.
        to: Whose form.
        subsets: The root's ``subsets/test.json``, for CIRR's own lists.
    """
    own, depth = (read_lists(subsets), 3) if subsets else ({}, 50)
    found: dict[str, Any] = {}
    for qid, hits in read_run(run).items():
        wanted = own.get(qid, ()) if subsets else None
        dids = [hit.did for hit in hits if wanted is None or hit.did in wanted][:depth]
        if len(dids) < depth:
            raise DataError(f"has {len(dids)} of {depth} candidates; search deeper", f"query {qid}")
        found[qid] = dids
    if to == "circo":
        found = {qid.removeprefix("q"): list(map(int, dids)) for qid, dids in found.items()}
    else:
        found |= {"version": "rc2", "metric": "recall_subset" if subsets else "recall"}
    write_json(out, found, DataError)


def compare_runs(
    first: Path,
    second: Path,
    qrels: Path | None = None,
    metric: str = "success@5",
    pool: Pool = "local",
    names: Sequence[str] = (),
    root: Path | None = None,
    split: str = "test",
    examples: int = 0,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Paired comparison of two runs.

    A row a task with a bootstrap interval and a randomisation test (Holm-corrected), the plain mean
    of the tasks, slices of the queries.

    Args:
        first: Folder that ``test`` or ``bm25`` wrote, or a run file.
        second: The same of the other system.
        qrels: Judgements, if run files are compared.
        metric: success@k, recall@k, ndcg@k, ...
        pool: What was searched.
        names: Of the two systems.
        root: Data root: slices, texts, modalities.
        split: Of the queries in the root.
        examples: Show so many wins and losses.
        seed: Of the resampling.
        out: Write everything as JSON, every change included.
    """
    if len(names) not in (0, 2):
        raise DataError(f"--names {' '.join(names)}: give two, one for each run")
    a, b = names or (first.stem, second.stem)
    if a == b:
        a, b = f"{first.parent.name}/{a}", f"{second.parent.name}/{b}"
    files = DataRoot(root).query_files(split) if root else []
    queries = [query for file in files for query in open_queries(file.path)]
    result = compare(
        first, second, metric=metric, pool=pool, names=(a, b), seed=seed, queries=queries,
        qrels=qrels,
    )  # fmt: skip
    say(_told(result, queries, examples))
    seen = {}
    for name, run in ((a, first), (b, second)) if root is not None else ():
        found = evaluate(
            run, qrels, root=root, metrics=["success@1"], short=True, extra=True, split=split
        ).modalities
        seen[name] = {title: asdict(row) for title, row in found.items()}
        say(f"\n{name}\n{modality_table(found)}\n" if found else "")
    if out is not None:
        record = {**asdict(result), "modality": seen, "commit": source_commit()}
        record["versions"] = versions()
        write_json(out, record, DataError)


def _told(result: Comparison, queries: Sequence[Query], examples: int) -> str:
    parts = [result.table(), result.slice_table(), result.note()]
    texts = {query.item.id: query.item.text or "(picture)" for query in queries}
    wins = [change for change in result.changes if change.second > change.first][:examples]
    losses = [change for change in result.changes if change.second < change.first][::-1][:examples]
    for title, changes in (("wins", wins), ("losses", losses)):
        if changes:
            lines = [
                printable(
                    f"- {change.task}, {change.qid}: {change.first:.3f} → {change.second:.3f} "
                    f"{texts.get(change.qid, '')}".rstrip()
                )
                for change in changes
            ]
            parts.append("\n".join([f"{title} of {result.names[1]}:", *lines]))
    return "\n\n".join(part for part in parts if part)
