"""What a validation finds: per file what it holds, per problem how often and where first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, final

from augment.data.validation.lengths import Lengths

Severity = Literal["error", "warning", "info"]

#: How many examples of a problem are kept per file.
EXAMPLES = 3


class Problem(NamedTuple):
    """A kind of problem: how bad it is, what it means and what to do."""

    severity: Severity
    title: str
    remedy: str


PROBLEMS: Mapping[str, Problem] = {
    "unreadable": Problem("error", "lines or files that cannot be read", "correct or remove them"),
    "duplicate-id": Problem(
        "error", "ids used twice", "keep one record of each, or number the others anew"
    ),
    "no-positive": Problem(
        "error",
        "queries without any reachable positive",
        "they can only count as missed; remove them or complete the pool",
    ),
    "dangling-positive": Problem(
        "error",
        "positives of the own dataset that are not in the pool",
        "complete the pool, or drop them from the queries and qrels",
    ),
    "foreign-positive": Problem(
        "warning",
        "positives of another dataset that are not in the pool",
        "as in M-BEIR's OVEN and InfoSeek; hit@k is unharmed, recall is capped",
    ),
    "dangling-negative": Problem(
        "warning", "hard negatives that are not in the pool", "training skips them"
    ),
    "missing": Problem("error", "pictures that are not there", "unpack them under the root"),
    "outside-root": Problem(
        "error", "pictures outside the root", "write paths relative to the root"
    ),
    "lfs-pointer": Problem(
        "error", "Git-LFS pointers instead of pictures", "run 'git lfs pull' at their source"
    ),
    "too-large": Problem("error", "pictures with too many pixels", "shrink them"),
    "corrupt": Problem("error", "pictures that cannot be decoded", "fetch them again"),
    "no-image": Problem(
        "error", "records whose modality names a picture but that have none", "add the path"
    ),
    "no-text": Problem(
        "warning", "records whose modality names a text but that have none", "add the text"
    ),
    "extra-image": Problem(
        "warning", "records of modality text that have a picture", "correct the modality"
    ),
    "extra-text": Problem(
        "info", "records of modality image that have a text", "usual after an export"
    ),
    "task-mismatch": Problem(
        "error", "queries whose task wants another query modality", "correct task or modality"
    ),
    "no-task": Problem(
        "warning", "queries without a task code", "give task_id or candidate_modality"
    ),
    "no-pool": Problem(
        "warning", "queries without a pool to search", "add the pool under its published name"
    ),
    "no-instructions": Problem(
        "warning", "unusable instruction tables", "write instructions/query_instructions.tsv"
    ),
    "no-instruction": Problem(
        "warning",
        "kinds of queries without an instruction",
        "add a row for the data set and both modalities, or turn instructions off",
    ),
    "qrel-mismatch": Problem(
        "warning",
        "queries whose qrels and positives differ",
        "scores follow the qrels, training the positives; make them agree",
    ),
    "id-overflow": Problem(
        "info",
        "ids that alias in UniIR's hashed form",
        "harmless here, where ids stay strings; number them anew for UniIR",
    ),
    "wrong-modality": Problem(
        "warning",
        "positives whose modality is not the one that the query's task wants",
        "correct the task of the query or the modality of the candidate",
    ),
    "no-records": Problem("warning", "files without a record", "fill or remove them"),
    "repeated": Problem(
        "info", "queries repeated unchanged", "upsampling, as in M-BEIR's union training file"
    ),
    "no-lengths": Problem("info", "text lengths not measured", "install open_clip_torch"),
}


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

    @property
    def severity(self) -> Severity:
        """``error``, ``warning`` or ``info``."""
        return PROBLEMS[self.kind].severity


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
    lengths: Lengths | None = None


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
        worst = ["error", "warning", "info"]
        order = {kind: place for place, kind in enumerate(PROBLEMS)}
        return sorted(
            self._findings.values(),
            key=lambda found: (worst.index(found.severity), order[found.kind], found.file),
        )

    def total(self, severity: Severity) -> int:
        """How many problems of one severity."""
        return sum(found.count for found in self.findings if found.severity == severity)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "root": self.root,
            "context": self.context,
            "clean": self.total("error") == 0,
            "files": [_stats(stats) for stats in self.files],
            "pictures": dict(self.pictures),
            "findings": [
                {**asdict(found), "severity": found.severity, **_words(found.kind)}
                for found in self.findings
            ],
        }


def _stats(stats: FileStats) -> dict[str, Any]:
    """Like ``asdict``, which cannot copy a Counter before Python 3.12."""
    return {
        **vars(stats),
        "modalities": dict(stats.modalities),
        "tasks": dict(stats.tasks),
        "lengths": None if stats.lengths is None else asdict(stats.lengths),
    }


def _words(kind: str) -> dict[str, str]:
    return {"title": PROBLEMS[kind].title, "remedy": PROBLEMS[kind].remedy}
