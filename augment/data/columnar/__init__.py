"""Pools and queries as memory-mapped Arrow tables, built once from their JSONL files.

A million rows open in milliseconds and cost next to no private memory; worker processes share
the pages. See :mod:`augment.data.columnar.cache` for where the tables lie and when they are rebuilt.
"""

from augment.data.columnar.tables import (
    CandidateTable,
    QueryTable,
    Table,
    open_candidates,
    open_queries,
)

__all__ = ["CandidateTable", "QueryTable", "Table", "open_candidates", "open_queries"]
