"""``python -m augment validate ROOT``: check a data root before hours are spent on it.

Queries are read first, then pools one at a time, then pictures and lengths of texts. A problem
becomes a finding; the rest is still checked.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast, final

import numpy as np
from tqdm import tqdm

from augment.data.images import open_image, refuse_pointer, resolve
from augment.data.records import (
    parse_candidate,
    parse_query,
    read_qrels,
    record_lines,
    task_in_name,
)
from augment.data.root import INSTRUCTIONS, DataFile, DataRoot, Instructions
from augment.data.tokens import clip_token_counter
from augment.errors import DataError, EngineError, ImageError, printable
from augment.files import aligned, home, legible_output, numbered_lines, write_json
from augment.records import TASKS, Item, Modality, Query

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
QUERY_BOUND = 500_000
CANDIDATE_BOUND = 10_000_000

_SHORT = {"text": "t", "image": "i", "image,text": "it"}
_Parsed = TypeVar("_Parsed", Item, Query)


class Problem(NamedTuple):
    """A kind of problem: how bad it is, what it means and what to do."""

    severity: Severity
    title: str
    remedy: str


def _problems() -> dict[str, Problem]:
    table = resources.files("augment.data").joinpath("problems.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in table.splitlines()[1:]]
    return {kind: Problem(cast("Severity", how), *words) for kind, how, *words in rows}


#: Kind -> problem, in the order in which they are shown: ``augment/data/problems.tsv``.
PROBLEMS = _problems()


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


class TextLengths(NamedTuple):
    """Lengths of the texts of a file in tokens, start and end marks included.

    Attributes:
        texts: texts in the file.
        measured: texts measured; fewer than ``texts`` means a sample.
        mean: mean length.
        p50: median (nearest rank).
        p95: 95th percentile (nearest rank).
        longest: the longest.
        cut: measured texts longer than the context.
    """

    texts: int
    measured: int
    mean: float
    p50: int
    p95: int
    longest: int
    cut: int


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
        lengths: lengths of texts in CLIP tokens, None if not measured or without texts.
    """

    file: str
    side: Literal["query", "corpus"]
    records: int = 0
    modalities: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    positives: int = 0
    negatives: int = 0
    lengths: TextLengths | None = None


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

    @property
    def findings(self) -> list[Finding]:
        """All findings, worst kind first, then in the order of :data:`PROBLEMS` and by file."""
        worst, order = ["error", "warning", "info"], list(PROBLEMS)
        return sorted(
            self._findings.values(),
            key=lambda one: (
                worst.index(PROBLEMS[one.kind].severity),
                order.index(one.kind),
                one.file,
            ),
        )

    def total(self, severity: Severity) -> int:
        """How many problems of one severity."""
        same = (one for one in self.findings if PROBLEMS[one.kind].severity == severity)
        return sum(one.count for one in same)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "root": self.root,
            "context": self.context,
            "clean": self.total("error") == 0,
            "files": [
                {**vars(one), "lengths": one.lengths and one.lengths._asdict()}
                for one in self.files
            ],
            "pictures": dict(self.pictures),
            "findings": [{**asdict(one), **PROBLEMS[one.kind]._asdict()} for one in self.findings],
        }


@final
class Reservoir:
    """A uniform sample of a stream whose length is not known (Vitter 1985, algorithm R).

    Args:
        size: how many to keep; None keeps all.
        seed: the sample is the same for the same stream.
    """

    def __init__(self, size: int | None, seed: int = 0) -> None:
        self.kept: list[str] = []
        self.seen = 0
        self._size = size
        self._random = random.Random(seed)  # noqa: S311 - a sample, not a secret

    def offer(self, value: str) -> None:
        """One more value of the stream."""
        self.seen += 1
        if self._size is None or len(self.kept) < self._size:
            self.kept.append(value)
            return
        place = self._random.randrange(self.seen)
        if place < self._size:
            self.kept[place] = value


def measure(sample: Reservoir, count: Callable[[str], int], context: int) -> TextLengths | None:
    """Measure a sample; None where there is no text."""
    if not sample.kept:
        return None
    lengths = np.array([count(text) for text in sample.kept])
    median, high = np.percentile(lengths, [50, 95], method="inverted_cdf").tolist()
    return TextLengths(
        texts=sample.seen,
        measured=len(lengths),
        mean=round(float(lengths.mean()), 2),
        p50=median,
        p95=high,
        longest=int(lengths.max()),
        cut=int((lengths > context).sum()),
    )


# --- The checks -----------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Extents:
    """How much is checked.

    Attributes:
        images: ``sample`` looks every picture up and decodes some, ``all`` decodes every one,
            ``none`` touches none.
        texts: whether the lengths of some, all or no texts are measured.
        context: tokens an encoder reads; CLIP's 77 include start and end marks.
    """

    images: Extent = "sample"
    texts: Extent = "sample"
    context: int = 77


class QueryLinks(NamedTuple):
    """What a query asks of a pool."""

    qid: str
    line: int
    task: int | None
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


def validate_root(path: Path, options: Extents | None = None) -> Report:
    """Check a data root. Problems become findings; the rest is still checked.

    Memory: the ids that all queries ask for, the ids of the largest pool and the picture paths;
    some hundreds of bytes a record.

    Raises:
        DataError: if the folder is no data root at all.
    """
    return _Validation(DataRoot(path), options or Extents()).run()


@final
class _Validation:
    def __init__(self, root: DataRoot, options: Extents) -> None:
        self.root = root
        self.options = options
        self.report = Report(str(root.path), options.context)
        self.pictures: dict[str, str] = {}  # path -> the first record, as ``file:line (id)``
        self.links: dict[Path, list[QueryLinks]] = {}
        self._texts: list[tuple[FileStats, Reservoir]] = []

    def run(self) -> Report:
        """All checks in turn."""
        files = {split: self.root.query_files(split) for split in SPLITS}
        self.links = {file.path: self._queries(file.path) for one in files.values() for file in one}
        asked = self._searches(files)
        pools = [*self.root.pools(), *self.root.union_pools()]
        for pool in tqdm(pools, "pools", disable=None, leave=False):
            ids = self._pool(pool.path)
            for file, task in asked.get(pool.path, []):
                self._links(file.path, task, ids, pool.path.name)
        judged = [(file, split) for split in SPLITS[:3] for file in self.root.qrels(split)]
        for file, split in judged:
            self._qrels(file, split)
        self._instructions()
        self._unread(
            {*self.links, *(file.path for file in pools), *(file.path for file, _ in judged)}
        )
        self._pictures()
        self._lengths()
        return self.report

    # One file alone: lines, ids, modalities, tasks.

    def _stats(self, path: Path, side: Literal["query", "corpus"]) -> tuple[FileStats, Reservoir]:
        kept = {"sample": SAMPLED_TEXTS, "all": None, "none": 0}[self.options.texts]
        found = FileStats(self._name(path), side), Reservoir(kept)
        self.report.files.append(found[0])
        self._texts.append(found)
        return found

    def _pool(self, path: Path) -> dict[str, Modality]:
        """Check a pool; the modality of every id."""
        stats, texts = self._stats(path, "corpus")
        lines: dict[str, int] = {}
        modalities: dict[str, Modality] = {}
        for number, item in self._parsed(path, parse_candidate):
            if item.id in lines:
                where = f"{stats.file}:{number}: {item.id}, first in line {lines[item.id]}"
                self.report.add("duplicate-id", stats.file, where)
            else:
                lines[item.id] = number
                modalities[item.id] = item.modality
            self._item(item, number, CANDIDATE_BOUND, stats, texts)
        if not stats.records:
            self.report.add("no-records", stats.file)
        return modalities

    def _queries(self, path: Path) -> list[QueryLinks]:
        """Check a file of queries; what they ask of pools."""
        stats, texts = self._stats(path, "query")
        hint = task_in_name(path)
        links: list[QueryLinks] = []
        first: dict[str, tuple[int, Query]] = {}
        for number, query in self._parsed(path, lambda line, at: parse_query(line, at, hint)):
            qid = query.item.id
            line, earlier = first.setdefault(qid, (number, query))
            where = f"{stats.file}:{number}: {qid}"
            if line != number:
                kind = "repeated" if earlier == query else "duplicate-id"
                other = "" if earlier == query else ", other content"
                self.report.add(kind, stats.file, f"{where}, first in line {line}{other}")
            self._item(query.item, number, QUERY_BOUND, stats, texts)
            self._task(query, where, stats)
            links.append(QueryLinks(qid, number, query.task, query.positives, query.negatives))
        if not stats.records:
            self.report.add("no-records", stats.file)
        return links

    def _parsed(
        self, path: Path, parse: Callable[[bytes, str], _Parsed]
    ) -> Iterator[tuple[int, _Parsed]]:
        """Records that can be used; the others become findings."""
        name = self._name(path)
        try:
            with record_lines(path) as stream:
                for number, line in numbered_lines(stream):
                    record = self._tried(parse, line, name, number)
                    if record is not None:
                        yield number, record
        except (DataError, OSError) as error:
            self.report.add("unreadable", name, str(error))

    def _tried(
        self, parse: Callable[[bytes, str], _Parsed], line: bytes, name: str, number: int
    ) -> _Parsed | None:
        try:
            return parse(line, f"{name}:{number}")
        except DataError as error:
            self.report.add("unreadable", name, str(error))
            return None

    def _item(
        self, item: Item, number: int, bound: int, stats: FileStats, texts: Reservoir
    ) -> None:
        where = f"{stats.file}:{number}"
        stats.records += 1
        stats.modalities[item.modality] += 1
        for image in item.images:
            self.pictures.setdefault(image, f"{where} ({item.id})")
        has_text = bool(item.text and item.text.strip())
        if item.text is not None and has_text:
            texts.offer(item.text)
        for kind, wrong in (
            ("no-image", "image" in item.modality and not item.images),
            ("extra-image", item.modality == "text" and bool(item.images)),
            ("no-text", "text" in item.modality and not has_text),
            ("extra-text", item.modality == "image" and has_text),
            ("id-overflow", not 1 <= int(item.id.partition(":")[2][:20]) <= bound),
        ):
            if wrong:
                self.report.add(kind, stats.file, f"{where}: {item.id}")

    def _task(self, query: Query, where: str, stats: FileStats) -> None:
        stats.tasks["none" if query.task is None else str(query.task)] += 1
        stats.positives += len(query.positives)
        stats.negatives += len(query.negatives)
        if query.task is None:
            self.report.add("no-task", stats.file, where)
        elif TASKS[query.task][0] != query.item.modality:
            wanted = f"task {query.task} wants {TASKS[query.task][0]}, is {query.item.modality}"
            self.report.add("task-mismatch", stats.file, f"{where}: {wanted}")

    # Between files: positives and negatives against pools, qrels against queries.

    def _searches(
        self, files: Mapping[str, list[DataFile]]
    ) -> Mapping[Path, list[tuple[DataFile, int | None]]]:
        """The query files that are searched in each pool, with the task to select or None for all.

        Queries of an evaluated split search their local pool and the union pool of that split.
        Training queries are looked up in the union training pool or, without one, in the local
        pools of their dataset's tasks.
        """
        found: dict[Path, list[tuple[DataFile, int | None]]] = {}
        for split, own in files.items():
            union = _maybe(self.root.union_pool, split.removeprefix("union_"))
            for file in own:
                pools = self._local(file, split, union) + ([(union, None)] if union else [])
                if not pools:
                    self.report.add("no-pool", self._name(file.path))
                for pool, task in pools:
                    found.setdefault(pool, []).append((file, task))
        return found

    def _local(
        self, file: DataFile, split: str, union: Path | None
    ) -> list[tuple[Path, int | None]]:
        if split in EVALUATED:
            pool = _maybe(self.root.pool_for, file.dataset, file.task, split)
            return [(pool, None)] if pool else []
        if union is not None:
            return []
        return [
            (pool.path, pool.task) for pool in self.root.pools() if pool.dataset == file.dataset
        ]

    def _links(self, path: Path, task: int | None, ids: Mapping[str, Modality], pool: str) -> None:
        """Positives and negatives of queries, of one task or all, against the ids of a pool."""
        file = self._name(path)
        for link in self.links[path]:
            if task is not None and link.task != task:
                continue
            where = f"{file}:{link.line}: query {link.qid}"
            for kind, what in _link_problems(link, ids):
                self.report.add(kind, f"{file} -> {pool}", f"{where}, {what}")

    def _qrels(self, file: DataFile, split: str) -> None:
        """Judgements against the positives in the queries, as sets per query.

        A training file mixes tasks, where judgements may come task by task: such a file of
        judgements is compared with the queries of its task.
        """
        name = self._name(file.path)
        judged: dict[str, set[str]] = {}
        try:
            for qrel in read_qrels(file.path):
                if qrel.relevance > 0:
                    judged.setdefault(qrel.qid, set()).add(qrel.did)
            queries = self.links[self.root.query_file(file.dataset, file.task, split)]
        except (DataError, KeyError) as error:
            self.report.add("unreadable", name, str(error))
            return
        asked = {
            link.qid: set(link.positives)
            for link in queries
            if split in EVALUATED or _belongs(link, file.task, judged)
        }
        for qid in sorted(asked.keys() | judged.keys()):
            differ = _differ(asked.get(qid), judged.get(qid))
            if differ:
                self.report.add("qrel-mismatch", name, f"query {qid}: {differ}")

    def _instructions(self) -> None:
        """Whether every kind of query has an instruction; a kind is counted once a file."""
        try:
            table = self.root.instructions()
        except DataError as error:
            self.report.add("no-instructions", "instructions", str(error))
            return
        for path, links in self.links.items():
            file = self._name(path)
            kinds: dict[tuple[str, int], QueryLinks] = {}
            for link in links:
                if link.task is not None:
                    kinds.setdefault((link.qid.partition(":")[0], link.task), link)
            for (dataset, task), link in kinds.items():
                missing = _no_instruction(table, dataset, task)
                if missing:
                    where = f"{file}:{link.line}: query {link.qid}: {missing}"
                    self.report.add("no-instruction", file, where)

    def _unread(self, read: Collection[Path]) -> None:
        """Files that lie among the data and were not checked, since their names say nothing."""
        for folder in ("query", "cand_pool", "qrels", "instructions"):
            for path in sorted((self.root.path / folder).rglob("*")):
                name = self._name(path)
                hidden = any(part.startswith(".") for part in name.split("/"))
                if not (hidden or path.is_dir() or path in read or name == INSTRUCTIONS):
                    self.report.add("not-read", name)

    # Pictures and lengths.

    def _pictures(self) -> None:
        self.report.pictures["named"] = len(self.pictures)
        if self.options.images == "none":
            return
        paths = sorted(self.pictures)
        decoded = set(paths)
        if self.options.images == "sample" and len(paths) > SAMPLED_PICTURES:
            sampler = random.Random(0)  # noqa: S311 - a sample, not a secret
            decoded = set(sampler.sample(paths, SAMPLED_PICTURES))
        for path in tqdm(paths, "pictures", disable=None, leave=False):
            self._picture(path, path in decoded)

    def _picture(self, path: str, decode: bool) -> None:
        self.report.pictures["decoded" if decode else "looked_up"] += 1
        try:
            if decode:
                open_image(self.root.path, path)
            else:
                refuse_pointer(resolve(self.root.path, path), path)
        except ImageError as error:
            first = self.pictures[path]
            self.report.add(error.reason, first.partition(":")[0], f"{first}: {error}")

    def _lengths(self) -> None:
        if self.options.texts == "none":
            return
        try:
            count = clip_token_counter()
        except EngineError as error:
            self.report.add("no-lengths", "-", str(error))
            return
        for stats, texts in tqdm(self._texts, "text lengths", disable=None, leave=False):
            stats.lengths = measure(texts, count, self.options.context)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root.path).as_posix()


def _maybe(find: Callable[..., Path], *which: Any) -> Path | None:
    try:
        return find(*which)
    except DataError:
        return None


def _link_problems(link: QueryLinks, ids: Mapping[str, Modality]) -> Iterator[tuple[str, str]]:
    if not any(did in ids for did in link.positives):
        yield "no-positive", f"of {len(link.positives)} positives"
    for did in link.positives:
        if did not in ids:
            own = did.partition(":")[0] == link.qid.partition(":")[0]
            yield "dangling-positive" if own else "foreign-positive", f"positive {did}"
        elif link.task is not None and ids[did] != TASKS[link.task][1]:
            wanted = f"task {link.task} wants {TASKS[link.task][1]}"
            yield "wrong-modality", f"positive {did}: {ids[did]}, {wanted}"
    for did in link.negatives:
        if did not in ids:
            yield "dangling-negative", f"negative {did}"


def _no_instruction(instructions: Instructions, dataset: str, task: int) -> str:
    try:
        instructions.get(dataset, *TASKS[task])
    except DataError as error:
        return str(error)
    return ""


def _belongs(link: QueryLinks, task: int | None, judged: Collection[str]) -> bool:
    """Whether judgements of a task, None for all, should have a query of a file of mixed tasks."""
    if task is None or link.task == task:
        return True
    return link.task is None and link.qid in judged  # else another file may have it


def _differ(positives: set[str] | None, judged: set[str] | None) -> str:
    if positives == judged:
        return ""
    if positives is None:
        return "is judged but not among the queries"
    if judged is None:
        return "has no judgement"
    return (
        f"{len(positives - judged)} positives without judgement, {len(judged - positives)} "
        "judgements without positive"
    )


# --- The report for people, and the command -------------------------------------------------------


def render_report(report: Report) -> str:
    """Counts, lengths, findings and a verdict, in that order."""
    return printable("\n".join(_lines(report)), lines=True) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"Data root {report.root}"
    modalities = ("records", *_SHORT)
    queries = [one for one in report.files if one.side == "query"]
    pools = [one for one in report.files if one.side == "corpus"]
    yield from _table(
        ("queries", *modalities, "positives", "negatives"),
        [
            (*_counts(one, "query/"), _mean(one.positives, one), _mean(one.negatives, one))
            for one in queries
        ],
    )
    yield from _table(("pools", *modalities), [_counts(one, "cand_pool/") for one in pools])
    yield from _table(("queries by task code", "train", "val", "test"), _tasks(queries))
    lengths = [_length_cells(one.file, one.lengths) for one in report.files if one.lengths]
    head = ("texts in CLIP tokens", "measured", "mean", "p50", "p95", "max")
    yield from _table((*head, f"cut at {report.context}"), lengths)
    if lengths:
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


def _counts(stats: FileStats, folder: str) -> tuple[str, ...]:
    counts = (stats.records, *(stats.modalities[key] for key in _SHORT))
    return stats.file.removeprefix(folder), *(f"{count:,}" for count in counts)


def _mean(total: int, stats: FileStats) -> str:
    return f"{total / stats.records:.1f}" if stats.records else "-"


def _tasks(files: Iterable[FileStats]) -> list[tuple[str, ...]]:
    counts: dict[str, Counter[str]] = {}
    for stats in files:
        for task, count in stats.tasks.items():
            counts.setdefault(task, Counter())[stats.file.split("/")[1]] += count
    splits = ("train", "val", "test")
    return [
        (_task_name(task), *(f"{counts[task][split]:,}" for split in splits))
        for task in sorted(counts)
        if any(counts[task][split] for split in splits)
    ]


def _task_name(task: str) -> str:
    if task == "none":
        return "none"
    query, candidate = TASKS[int(task)]
    return f"{task}  {_SHORT[query]} -> {_SHORT[candidate]}"


def _length_cells(file: str, found: TextLengths) -> tuple[str, ...]:
    sample = "" if found.measured == found.texts else f" of {found.texts:,}"
    share = f"{found.cut:,} ({100 * found.cut / found.measured:.1f} %)"
    numbers = (f"{found.mean:.1f}", str(found.p50), str(found.p95), str(found.longest))
    return file, f"{found.measured:,}{sample}", *numbers, share


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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["", aligned(rows, head=head)] if rows else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        report = validate_root(
            options.root, Extents(options.images, options.texts, options.context)
        )
        print(render_report(report), end="")
        if options.json is not None:
            write_json(options.json, report.to_json(), DataError)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if report.total("error") else 0


def _home(text: str) -> Path:
    return Path(home(text))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m augment validate",
        description="Check a data root in M-BEIR's layout: counts per task and modality, "
        "duplicate ids, dangling positives, missing or broken pictures, text lengths.",
        epilog="exit status: 0 no errors (warnings may be), 1 errors found, 2 wrong usage or no "
        "data root",
    )
    extents = ("sample", "all", "none")
    parser.add_argument("root", type=_home, metavar="ROOT", help="folder of query/ and cand_pool/")
    parser.add_argument("--json", type=_home, metavar="FILE", help="also write the report as JSON")
    parser.add_argument(
        "--images",
        choices=extents,
        default="sample",
        help="sample: look every picture up and decode 500 of them (default); all: decode every "
        "one; none: touch no picture",
    )
    parser.add_argument(
        "--texts",
        choices=extents,
        default="sample",
        help="measure text lengths on at most 5,000 texts per file (sample, default), on all, or "
        "not at all; needs open_clip",
    )
    parser.add_argument(
        "--context",
        type=int,
        default=77,
        metavar="N",
        help="tokens the text encoder reads, start and end marks included (default: 77, CLIP)",
    )
    return parser


if __name__ == "__main__":
    legible_output()
    sys.exit(main())
