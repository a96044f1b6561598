"""UniIR's files besides the M-BEIR data: hashed ids, retrieved candidates, the table of results.

Formats as written by TIGER-AI-Lab/UniIR, ``src/common/mbeir_retriever.py``. Its run files (seven
columns) are read by :func:`retrievers.evaluation.run.read_table` and written by
:func:`retrievers.evaluation.run.write_uniir_run`; its five-column qrels by ``augment.data``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from augment.data.records import candidate_record, parse_candidate, parse_query, query_record
from augment.errors import DataError
from augment.files import replacing, text_lines
from augment.records import Item, Query, Run
from retrievers.evaluation.metrics import ranked

#: UniIR's hash of an id "dataset:n" is dataset * base + n, without a check of n.
_QID_BASE, _DID_BASE = 500_000, 10_000_000
_ID = re.compile(r"([0-9]+):([0-9]+)")
_TASK_NAMES = (
    "text -> image", "text -> text", "text -> image,text", "image -> text", "image -> image",
    "image -> image,text", "image,text -> text", "image,text -> image", "image,text -> image,text",
)  # fmt: skip


def hash_qid(qid: str) -> int:
    """UniIR's number of a query, as in its ``*_ids.npy``.

    Raises:
        DataError: if the id is not "dataset:number" or its number would collide with another's.
    """
    return _hash(qid, _QID_BASE)


def hash_did(did: str) -> int:
    """UniIR's number of a candidate; see :func:`hash_qid`."""
    return _hash(did, _DID_BASE)


def unhash_qid(number: int) -> str:
    """The query id behind UniIR's number."""
    return "{}:{}".format(*divmod(int(number), _QID_BASE))


def unhash_did(number: int) -> str:
    """The candidate id behind UniIR's number."""
    return "{}:{}".format(*divmod(int(number), _DID_BASE))


def _hash(name: str, base: int) -> int:
    match = _ID.fullmatch(name)
    if match is None:
        raise DataError("is not 'dataset:number'; UniIR can hash no other id", name)
    dataset, number = int(match[1]), int(match[2])
    if number >= base:
        raise DataError(
            f"UniIR would read its hash as {dataset + number // base}:{number % base}; number "
            f"from 0 to {base - 1}, or write TREC files, which keep ids as they are",
            name,
        )
    return dataset * base + number


class Retrieved(NamedTuple):
    """A query with the candidates found for it, best first; a line of ``*_retrieved.jsonl``."""

    query: Query
    candidates: tuple[Item, ...]


def write_retrieved(
    path: str | Path,
    queries: Iterable[Query],
    run: Run,
    find: Callable[[str], Item | None],
) -> int:
    """Write ``{"query": ..., "candidates": [...]}`` lines, best candidate first.

    Args:
        path: the file.
        queries: those to write; a query without hits gets an empty list.
        run: what was found.
        find: looks a candidate up by its id.

    Returns:
        How many lines were written.

    Raises:
        DataError: if a candidate of the run is unknown.
    """
    count = 0
    with replacing(Path(path), DataError) as stream:
        for query in queries:
            found = []
            for did in ranked(run.get(query.item.id, ())):
                item = find(did)
                if item is None:
                    raise DataError(
                        f"candidate {did} is in no pool; name the pool that was searched",
                        f"query {query.item.id}",
                    )
                found.append(candidate_record(item))
            record = {"query": query_record(query), "candidates": found}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_retrieved(path: str | Path) -> Iterator[Retrieved]:
    """Read what :func:`write_retrieved` or UniIR wrote (``raw_retrieval``), line by line.

    Raises:
        DataError: with ``file:line``, if a line cannot be used.
    """
    for number, line in text_lines(Path(path)):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"is not a line of JSON: {error}", where) from error
        if not isinstance(record, dict) or not isinstance(record.get("candidates"), list):
            raise DataError('expected {"query": {...}, "candidates": [...]}', where)
        candidates = tuple(
            parse_candidate(json.dumps(candidate).encode(), f"{where}: candidate {place}")
            for place, candidate in enumerate(record["candidates"], start=1)
        )
        query = parse_query(json.dumps(record.get("query")).encode(), f"{where}: query")
        yield Retrieved(query, candidates)


class Result(NamedTuple):
    """One row of UniIR's table: hit rates of a data set and task in one pool, by cut-off."""

    dataset: str
    task: int
    split: str
    pool: str
    success: Mapping[int, float]


def write_results_tsv(path: str | Path, results: Iterable[Result]) -> None:
    """Write UniIR's ``final_tsv``: a line per row and cut-off, the union's value beside it.

    Its ``Recall@k`` is success@k, rounded to four digits.
    """
    rows = list(results)
    union = {(row.dataset, row.task, row.split): row for row in rows if row.pool == "union"}
    header = "TaskID Task Dataset Split Metric CandPool Value UnionPool UnionValue"
    with replacing(Path(path), DataError) as stream:
        stream.write("\t".join(header.split()) + "\n")
        for row in sorted(rows, key=lambda row: (row.task, row.dataset)):
            if row.pool == "union":
                continue
            beside = union.get((row.dataset, row.task, row.split))
            for k, value in row.success.items():
                cells = [str(row.task), _TASK_NAMES[row.task], row.dataset, row.split]
                cells += [f"Recall@{k}", row.pool, f"{value:.4f}"]
                known = beside is not None and k in beside.success
                cells += ["union", f"{beside.success[k]:.4f}"] if beside and known else ["", ""]
                stream.write("\t".join(cells) + "\n")
