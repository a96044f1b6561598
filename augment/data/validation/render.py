"""A report as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from augment.data.validation.report import EXAMPLES, PROBLEMS, FileStats, Finding, Report
from augment.records import TASKS

_SHORT = {"text": "t", "image": "i", "image,text": "it"}


def render_report(report: Report) -> str:
    """Counts, lengths, findings and a verdict, in that order."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"Data root {report.root}"
    yield from _queries([stats for stats in report.files if stats.side == "query"])
    yield from _pools([stats for stats in report.files if stats.side == "corpus"])
    yield from _tasks(report.files)
    yield from _lengths(report)
    yield from _pictures(report)
    yield from _findings(report.findings)
    yield ""
    yield _verdict(report)


def _queries(files: Sequence[FileStats]) -> Iterator[str]:
    rows = [
        (
            stats.file.removeprefix("query/"),
            f"{stats.records:,}",
            *(f"{stats.modalities[key]:,}" for key in _SHORT),
            _mean(stats.positives, stats.records),
            _mean(stats.negatives, stats.records),
        )
        for stats in files
    ]
    head = ("queries", "records", "text", "image", "image,text", "positives", "negatives")
    yield from _table(head, rows)


def _pools(files: Sequence[FileStats]) -> Iterator[str]:
    rows = [
        (
            stats.file.removeprefix("cand_pool/"),
            f"{stats.records:,}",
            *(f"{stats.modalities[key]:,}" for key in _SHORT),
        )
        for stats in files
    ]
    yield from _table(("pools", "records", "text", "image", "image,text"), rows)


def _tasks(files: Iterable[FileStats]) -> Iterator[str]:
    splits = ("train", "val", "test")
    counts: dict[str, dict[str, int]] = {}
    for stats in files:
        split = stats.file.split("/")[1]
        if stats.side == "query" and split in splits:
            for task, count in stats.tasks.items():
                row = counts.setdefault(task, dict.fromkeys(splits, 0))
                row[split] += count
    rows = [
        (_task_name(task), *(f"{counts[task][split]:,}" for split in splits))
        for task in sorted(counts)
    ]
    yield from _table(("queries by task code", *splits), rows)


def _task_name(task: str) -> str:
    if task == "none":
        return "none"
    query, candidate = TASKS[int(task)]
    return f"{task}  {_SHORT[query]} -> {_SHORT[candidate]}"


def _lengths(report: Report) -> Iterator[str]:
    rows = []
    for stats in report.files:
        if (found := stats.lengths) is not None:
            sample = "" if found.measured == found.texts else f" of {found.texts:,}"
            share = f"{found.cut:,} ({100 * found.cut / found.measured:.1f} %)"
            numbers = (f"{found.mean:.1f}", str(found.p50), str(found.p95), str(found.longest))
            rows.append((stats.file, f"{found.measured:,}{sample}", *numbers, share))
    head = (
        "texts in CLIP tokens",
        "measured",
        "mean",
        "p50",
        "p95",
        "max",
        f"cut at {report.context}",
    )
    yield from _table(head, rows)
    if rows:
        yield "Start and end marks are counted, instructions are not."


def _pictures(report: Report) -> Iterator[str]:
    named, looked, decoded = (report.pictures[key] for key in ("named", "looked_up", "decoded"))
    yield ""
    if looked + decoded == 0:
        yield f"Pictures: {named:,} named, none looked up."
    else:
        yield f"Pictures: {named:,} named, {looked + decoded:,} looked up, {decoded:,} decoded."


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    for kind in dict.fromkeys(found.kind for found in findings):
        same = [found for found in findings if found.kind == kind]
        problem = PROBLEMS[kind]
        total = sum(found.count for found in same)
        yield ""
        yield f"{problem.severity.upper()}  {total:,} {problem.title}; {problem.remedy}"
        shown = EXAMPLES if len(same) <= EXAMPLES else 1  # one each when it is everywhere
        for found in same:
            yield f"  {found.count:,} in {found.file}"
            yield from (f"      {_within(found, text)}" for text in found.examples[:shown])


def _within(found: Finding, example: str) -> str:
    """An example without the name of the file it is listed under."""
    file = found.file.partition(" -> ")[0]
    return f"line {example[len(file) + 1 :]}" if example.startswith(f"{file}:") else example


def _verdict(report: Report) -> str:
    errors, warnings = report.total("error"), report.total("warning")
    if errors == 0:
        return f"Clean: no errors, {warnings:,} warnings."
    return f"Not clean: {errors:,} errors, {warnings:,} warnings."


def _mean(total: int, count: int) -> str:
    return f"{total / count:.1f}" if count else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """An aligned table: the first column to the left, numbers to the right; nothing if empty."""
    if not rows:
        return
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    yield ""
    for row in (head, ["-" * width for width in widths], *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()
