"""Check a data root before hours are spent on it (``python -m augment validate ROOT``).

Queries are read first, then pools one at a time, then pictures. A problem becomes a finding; the
rest is still checked.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, final

import numpy as np
from tqdm import tqdm

from augment.data.images import located, open_image
from augment.data.records import numbered_records, parse_candidate, query_parser, read_qrels
from augment.data.root import INSTRUCTIONS, DataFile, DataRoot
from augment.data.sampling import Reservoir
from augment.data.tokens import clip_token_counter
from augment.errors import DataError, EngineError, printable
from augment.files import aligned, write_json
from augment.records import TASKS, Query, Side, dataset_of

Extent = Literal["sample", "all", "none"]
Severity = Literal["error", "warning", "info"]

SPLITS = ("train", "val", "test", "union_train", "union_val")
EVALUATED = ("val", "test")

#: With ``sample``: pictures decoded in all, and texts measured per file.
SAMPLED_PICTURES = 500
SAMPLED_TEXTS = 5_000

#: How many examples of a problem are kept per file.
EXAMPLES = 3

#: UniIR hashes ids as ``dataset * bound + n`` and checks no bound (its data utilities).
BOUNDS: Mapping[Side, int] = {"query": 500_000, "corpus": 10_000_000}

_SHORT = {"text": "t", "image": "i", "image,text": "it"}


class Problem(NamedTuple):
    """A kind of problem: how bad it is, what it means and what to do."""

    severity: Severity
    title: str
    remedy: str


_TABLE = resources.files("augment.data").joinpath("problems.tsv").read_text(encoding="utf-8")
_ROWS = [line.split("\t") for line in _TABLE.splitlines()[1:]]
#: Kind -> problem, in the order in which they are shown, the worst first: ``problems.tsv``.
PROBLEMS = {kind: Problem(cast("Severity", how), *words) for kind, how, *words in _ROWS}


# --- What is found --------------------------------------------------------------------------------


@final
@dataclass
class Finding:
    """One kind of problem in one file.

    Attributes:
        kind: a key of :data:`PROBLEMS`.
        file: path relative to the root; ``queries -> pool`` for what concerns both.
        count: how often.
        examples: the first few, with ids and line numbers.
    """

    kind: str
    file: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


@final
@dataclass
class FileStats:
    """What one file of records holds.

    Attributes:
        file: path relative to the root.
        side: ``query`` or ``corpus``.
        records: usable records.
        modalities: records by modality.
        tasks: queries by task code; ``none`` where it is unknown.
        positives: relevant candidates over all queries.
        negatives: hard negatives over all queries.
        lengths: of texts in CLIP tokens, see :func:`measure`; None if nobody measured them.
    """

    file: str
    side: Side
    records: int = 0
    modalities: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    positives: int = 0
    negatives: int = 0
    lengths: dict[str, float] | None = None


@final
@dataclass
class Report:
    """The outcome of a validation.

    Attributes:
        root: the data root.
        context: tokens an encoder reads, for the share of texts that are cut.
        files: one entry per file of records.
        pictures: how many were ``named``, ``looked_up`` only, and ``decoded``.
    """

    root: str
    context: int
    files: list[FileStats] = field(default_factory=list)
    pictures: Counter[str] = field(default_factory=Counter)
    _findings: dict[tuple[str, str], Finding] = field(default_factory=dict)

    def add(self, kind: str, file: str, example: str = "") -> None:
        """Count one more problem; the first few keep their example."""
        finding = self._findings.setdefault((kind, file), Finding(kind, file))
        finding.count += 1
        if example and len(finding.examples) < EXAMPLES:
            finding.examples.append(example)

    @contextmanager
    def noting(self, kind: str, file: str, before: str = "") -> Iterator[None]:
        """Make a problem of an error, a picture's of the kind that it tells."""
        try:
            yield
        except (DataError, EngineError, OSError) as error:
            self.add(getattr(error, "reason", kind), file, f"{before}{error}")

    @property
    def findings(self) -> list[Finding]:
        """All findings in the order of :data:`PROBLEMS`, then by file."""
        order = list(PROBLEMS)
        return sorted(self._findings.values(), key=lambda one: (order.index(one.kind), one.file))

    def total(self, severity: Severity) -> int:
        """How many problems of one severity."""
        found = self._findings.values()
        return sum(one.count for one in found if PROBLEMS[one.kind].severity == severity)

    @property
    def exit_code(self) -> int:
        """1 if there are errors, else 0."""
        return 1 if self.total("error") else 0

    def __str__(self) -> str:
        """Counts, lengths, findings and a verdict, in that order."""
        return printable("\n".join(_lines(self)), lines=True)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "root": self.root,
            "context": self.context,
            "clean": self.total("error") == 0,
            "files": [vars(one) for one in self.files],
            "pictures": dict(self.pictures),
            "findings": [{**asdict(one), **PROBLEMS[one.kind]._asdict()} for one in self.findings],
        }


def measure(
    sample: Reservoir[str], count: Callable[[str], int], context: int
) -> dict[str, float] | None:
    """Lengths of texts in tokens, start and end marks included; None where there is no text.

    Returns:
        How many texts there are and how many were measured (fewer: a sample), their mean, median
        and 95th percentile (nearest rank), the longest, and how many are longer than the context.
    """
    if not sample.kept:
        return None
    lengths = np.array([count(text) for text in sample.kept])
    median, high = np.percentile(lengths, [50, 95], method="inverted_cdf").tolist()
    return {
        "texts": sample.seen,
        "measured": len(lengths),
        "mean": round(float(lengths.mean()), 2),
        "p50": median,
        "p95": high,
        "longest": int(lengths.max()),
        "cut": int((lengths > context).sum()),
    }


# --- The checks -----------------------------------------------------------------------------------


class QueryLinks(NamedTuple):
    """What a query asks of a pool."""

    qid: str
    line: int
    task: int | None
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


def validate(
    root: Path,
    images: Extent = "sample",
    texts: Extent = "sample",
    context: int = 77,
    json: Path | None = None,
) -> Report:
    """Check a data root. Exit code 1 if errors are found, 0 if at most warnings.

    Counts per task and modality, duplicate ids, dangling positives, missing or broken pictures,
    lengths of texts. Problems become findings; the rest is still checked.

    Memory: the ids that all queries ask for, the ids of the largest pool and the picture paths;
    some hundreds of bytes a record.

    Args:
        root: Folder in M-BEIR's layout.
        images: Look every picture up and decode 500 of them (sample), decode every one (all), or
            touch none.
        texts: Measure the lengths of at most 5,000 texts a file (sample), of all, or of none; needs
            open_clip.
        context: Tokens the text encoder reads, start and end marks included; CLIP: 77.
        json: Also write the report as JSON.

    Raises:
        DataError: if the folder is no data root at all.
    """
    checks = _Checks(DataRoot(root), Report(str(root), context), texts)
    checks.files()
    checks.pictures(images)
    if json:
        write_json(json, checks.report.to_json(), DataError)
    return checks.report


@final
class _Checks:
    def __init__(self, root: DataRoot, report: Report, texts: Extent) -> None:
        self.root = root
        self.report = report
        self._links: dict[Path, list[QueryLinks]] = {}
        self._images: dict[str, str] = {}  # path -> the first record, as ``file:line (id)``
        self._sampled = SAMPLED_TEXTS if texts == "sample" else None
        self._tokens: Callable[[str], int] | None = None
        if texts != "none":
            with report.noting("no-lengths", "-"):
                self._tokens = clip_token_counter()

    def files(self) -> None:
        """All files, each by itself and against the others."""
        asked: dict[Path, list[tuple[Path, int | None]]] = defaultdict(list)
        for split in SPLITS:
            for file in self.root.query_files(split):
                self._read(file.path, "query")
                searched = self._searched(file, split)
                if not searched:
                    self.report.add("no-pool", self._name(file.path))
                for pool, task in searched:
                    asked[pool].append((file.path, task))
        pools = [pool.path for pool in (*self.root.pools(), *self.root.union_pools())]
        for pool in tqdm(pools, "pools", disable=None, leave=False):
            ids = self._read(pool, "corpus")
            for path, task in asked[pool]:
                self._look_up(path, task, ids, pool.name)
        judged = [(file, split) for split in SPLITS[:3] for file in self.root.qrels(split)]
        for file, split in judged:
            self._qrels(file, split)
        self._instructions()
        self._unread({*self._links, *pools, *(file.path for file, _ in judged)})

    # One file alone.

    def _read(self, path: Path, side: Side) -> Mapping[str, tuple[int, Any]]:
        """Check a file of records by itself; its ids with the line and the modality of each."""
        stats, texts = FileStats(self._name(path), side), Reservoir[str](self._sampled)
        self.report.files.append(stats)
        first: dict[str, tuple[int, Any]] = {}
        links = []
        for number, query in self._records(path, side):
            qid, where = query.item.id, f"{stats.file}:{number}"
            self._record(query, where, stats, texts)
            kept = query.item.modality if side == "corpus" else query
            line, earlier = first.setdefault(qid, (number, kept))
            if line != number:
                kind = "repeated" if earlier == query else "duplicate-id"
                other = ", other content" if (side, kind) == ("query", "duplicate-id") else ""
                self.report.add(kind, stats.file, f"{where}: {qid}, first in line {line}{other}")
            if side == "query":
                links.append(QueryLinks(qid, number, query.task, query.positives, query.negatives))
        if side == "query":
            self._links[path] = links
        if not stats.records:
            self.report.add("no-records", stats.file)
        if self._tokens:
            stats.lengths = measure(texts, self._tokens, self.report.context)
        return first

    def _records(self, path: Path, side: Side) -> Iterator[tuple[int, Query]]:
        """Records that can be used, candidates as queries without a task; others are findings."""
        name = self._name(path)
        parse = query_parser(path) if side == "query" else _candidate
        with self.report.noting("unreadable", name):
            yield from numbered_records(
                path, parse, lambda error: self.report.add("unreadable", name, str(error)), name
            )

    def _record(self, query: Query, where: str, stats: FileStats, texts: Reservoir[str]) -> None:
        item = query.item
        stats.records += 1
        stats.modalities[item.modality] += 1
        stats.positives += len(query.positives)
        stats.negatives += len(query.negatives)
        if stats.side == "query":
            stats.tasks["none" if query.task is None else str(query.task)] += 1
        for image in item.images:
            self._images.setdefault(image, f"{where} ({item.id})")
        if self._tokens and item.text and item.text.strip():
            texts.offer(item.text)
        for kind, wrong, what in _record_checks(query, stats.side):
            if wrong:
                self.report.add(kind, stats.file, f"{where}: {item.id}{what}")

    # Between files: positives and negatives against pools, qrels and instructions against queries.

    def _searched(self, file: DataFile, split: str) -> list[tuple[Path, int | None]]:
        """The pools in which queries are looked up, with the task to select or None for all.

        Queries of an evaluated split search their local pool and the union pool of that split.
        Training queries are looked up in the union training pool or, without one, in the local
        pools of their dataset's tasks.
        """
        local: list[tuple[Path, int | None]] = []
        union: list[tuple[Path, int | None]] = []
        with suppress(DataError):
            union = [(self.root.union_pool(split.removeprefix("union_")), None)]
        if split in EVALUATED:
            with suppress(DataError):
                local = [(self.root.pool_for(file.dataset, file.task, split), None)]
        elif not union:
            pools = self.root.pools()
            local = [(pool.path, pool.task) for pool in pools if pool.dataset == file.dataset]
        return local + union

    def _look_up(
        self, path: Path, task: int | None, ids: Mapping[str, tuple[int, Any]], pool: str
    ) -> None:
        """Positives and negatives of queries, of one task or all, against the ids of a pool."""
        file = self._name(path)
        for link in self._links[path]:
            if task in (None, link.task):
                for kind, what in _link_problems(link, ids):
                    where = f"{file}:{link.line}: query {link.qid}, {what}"
                    self.report.add(kind, f"{file} -> {pool}", where)

    def _qrels(self, file: DataFile, split: str) -> None:
        """Judgements against the positives in the queries, as sets per query.

        A training file mixes tasks, where judgements may come task by task: such a file of
        judgements is compared with the queries of its task.
        """
        name = self._name(file.path)
        judged: dict[str, set[str]] = {}
        with self.report.noting("unreadable", name):
            for qrel in read_qrels(file.path):
                if qrel.relevance > 0:
                    judged.setdefault(qrel.qid, set()).add(qrel.did)
            queries = self.root.query_file(file.dataset, file.task, split)
            asked = {
                link.qid: set(link.positives)
                for link in self._links.get(queries, [])
                if split in EVALUATED
                or file.task in (None, link.task)
                or (link.task is None and link.qid in judged)  # else another file may have it
            }
            for qid in sorted(asked.keys() | judged.keys()):
                differ = _difference(asked.get(qid), judged.get(qid))
                if differ:
                    self.report.add("qrel-mismatch", name, f"query {qid}: {differ}")

    def _instructions(self) -> None:
        """Whether every kind of query has an instruction; a kind is counted once a file."""
        with self.report.noting("no-instructions", "instructions"):
            table = self.root.instructions()
            for path, links in self._links.items():
                file = self._name(path)
                kinds = {(dataset_of(link.qid), link.task): link for link in reversed(links)}
                for (dataset, task), link in sorted(kinds.items(), key=lambda kind: kind[1].line):
                    if task is not None:
                        before = f"{file}:{link.line}: query {link.qid}: "
                        with self.report.noting("no-instruction", file, before):
                            table.get(dataset, *TASKS[task])

    def _unread(self, read: Collection[Path]) -> None:
        """Files that lie among the data and were not checked, since their names say nothing."""
        for folder in ("query", "cand_pool", "qrels", "instructions"):
            for path in sorted((self.root.path / folder).rglob("*")):
                name = self._name(path)
                hidden = any(part.startswith(".") for part in name.split("/"))
                if not (hidden or path.is_dir() or path in read or name == INSTRUCTIONS):
                    self.report.add("not-read", name)

    def pictures(self, extent: Extent) -> None:
        """The pictures that the files named."""
        counts, paths = self.report.pictures, sorted(self._images)
        counts["named"] = len(paths)
        if extent == "none":
            return
        decoded = set(paths)
        if extent == "sample" and len(paths) > SAMPLED_PICTURES:
            sampler = random.Random(0)  # noqa: S311 - a sample, not a secret
            decoded = set(sampler.sample(paths, SAMPLED_PICTURES))
        for path in tqdm(paths, "pictures", disable=None, leave=False):
            first = self._images[path]
            counts["decoded" if path in decoded else "looked_up"] += 1
            with self.report.noting("corrupt", first.partition(":")[0], f"{first}: "):
                if path in decoded:
                    open_image(self.root.path, path)
                else:
                    located(self.root.path, path)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root.path).as_posix()


def _candidate(line: bytes, where: str) -> Query:
    return Query(parse_candidate(line, where), None)


def _record_checks(query: Query, side: Side) -> list[tuple[str, bool, str]]:
    """Of one record: kind of problem, whether it has it, and what the example says of it."""
    item, task = query.item, query.task
    has_text = bool(item.text and item.text.strip())
    wanted = item.modality if task is None else TASKS[task][0]
    number = int(item.id.partition(":")[2][:20] if item.dataset else "0")
    return [
        ("no-image", "image" in item.modality and not item.images, ""),
        ("extra-image", item.modality == "text" and bool(item.images), ""),
        ("no-text", "text" in item.modality and not has_text, ""),
        ("extra-text", item.modality == "image" and has_text, ""),
        ("id-overflow", not 1 <= number <= BOUNDS[side], ""),
        ("no-task", side == "query" and task is None, ""),
        ("task-mismatch", wanted != item.modality,
         f": task {task} wants {wanted}, is {item.modality}"),
    ]  # fmt: skip


def _link_problems(
    link: QueryLinks, ids: Mapping[str, tuple[int, Any]]
) -> Iterator[tuple[str, str]]:
    if not link.positives:
        yield "no-judgement", "no positive"
    elif not any(did in ids for did in link.positives):
        yield "no-positive", f"of {len(link.positives)} positives"
    wanted = None if link.task is None else TASKS[link.task][1]
    for did in link.positives:
        if did not in ids:
            own = dataset_of(did) == dataset_of(link.qid)
            yield "dangling-positive" if own else "foreign-positive", f"positive {did}"
        elif wanted not in (None, ids[did][1]):
            what = f"positive {did}: {ids[did][1]}, task {link.task} wants {wanted}"
            yield "wrong-modality", what
    for did in link.negatives:
        if did not in ids:
            yield "dangling-negative", f"negative {did}"


def _difference(positives: set[str] | None, judged: set[str] | None) -> str:
    if (positives or None) == judged:
        return ""
    if positives is None:
        return "is judged but not among the queries"
    if judged is None:
        return "has no judgement"
    return (
        f"{len(positives - judged)} positives without judgement, {len(judged - positives)} "
        "judgements without positive"
    )


# --- The report for people ------------------------------------------------------------------------


def _lines(report: Report) -> Iterator[str]:
    yield f"Data root {report.root}"
    modalities = ("records", *_SHORT)
    queries = [one for one in report.files if one.side == "query"]
    pools = [one for one in report.files if one.side == "corpus"]
    measured = [(one.file, one.lengths) for one in report.files if one.lengths]
    texts = ("texts in CLIP tokens", "measured", "mean", "p50", "p95", "max")
    for head, rows in (
        (("queries", *modalities, "positives", "negatives"), [_counts(one) for one in queries]),
        (("pools", *modalities), [_counts(one) for one in pools]),
        (("queries by task code", *SPLITS[:3]), _tasks(queries)),
        ((*texts, f"cut at {report.context}"), [_lengths(*one) for one in measured]),
    ):
        if rows:
            yield ""
            yield aligned(rows, head=head)
    if measured:
        yield "Start and end marks are counted, instructions are not."
    yield ""
    named, looked, decoded = (report.pictures[key] for key in ("named", "looked_up", "decoded"))
    counted = f"{looked + decoded:,} looked up, {decoded:,} decoded"
    yield f"Pictures: {named:,} named, {counted if looked + decoded else 'none looked up'}."
    yield from _findings(report.findings)
    yield ""
    errors, warnings = report.total("error"), report.total("warning")
    said = "Not clean" if errors else "Clean"
    yield f"{said}: {f'{errors:,}' if errors else 'no'} errors, {warnings:,} warnings."


def _counts(stats: FileStats) -> list[str]:
    counts = [stats.records, *(stats.modalities[key] for key in _SHORT)]
    links = [stats.positives, stats.negatives] if stats.side == "query" else []
    means = [f"{number / stats.records:.1f}" if stats.records else "-" for number in links]
    return [stats.file.partition("/")[2], *(f"{count:,}" for count in counts), *means]


def _tasks(files: Sequence[FileStats]) -> list[list[str]]:
    names = {str(code): f"{code}  {_SHORT[q]} -> {_SHORT[c]}" for code, (q, c) in TASKS.items()}
    rows = []
    for task, name in {**names, "none": "none"}.items():
        row = [sum(s.tasks[task] for s in files if s.file.split("/")[1] == split)
               for split in SPLITS[:3]]  # fmt: skip
        rows += [[name, *(f"{count:,}" for count in row)]] if any(row) else []
    return rows


def _lengths(file: str, found: Mapping[str, float]) -> list[str]:
    measured, cut = found["measured"], found["cut"]
    sample = "" if measured == found["texts"] else f" of {found['texts']:,}"
    numbers = (f"{found['mean']:.1f}", *(str(found[name]) for name in ("p50", "p95", "longest")))
    return [file, f"{measured:,}{sample}", *numbers, f"{cut:,} ({100 * cut / measured:.1f} %)"]


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    for kind in dict.fromkeys(one.kind for one in findings):
        same = [one for one in findings if one.kind == kind]
        severity, title, remedy = PROBLEMS[kind]
        yield ""
        yield f"{severity.upper()}  {sum(one.count for one in same):,} {title}; {remedy}"
        shown = EXAMPLES if len(same) <= EXAMPLES else 1  # one each when it is everywhere
        for one in same:
            yield f"  {one.count:,} in {one.file}"
            yield from (f"      {printable(_within(one, text))}" for text in one.examples[:shown])


def _within(finding: Finding, example: str) -> str:
    """An example without the name of the file it is listed under."""
    file = finding.file.partition(" -> ")[0]
    return f"line {example[len(file) + 1 :]}" if example.startswith(f"{file}:") else example
