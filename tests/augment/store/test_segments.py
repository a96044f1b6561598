"""A sealed file read by rows says what Parquet says, in whatever order it is asked."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from augment.store import segments
from augment.store.segments import Mapped, place

ROWS = 500


@pytest.fixture
def sealed(tmp_path, monkeypatch):
    """A file of several groups, and its rows."""
    monkeypatch.setattr(segments, "GROUP", 128)
    rows = [
        {"item": f"1:{n}", "at": n, "text": None if n % 7 == 0 else f"é {n}"} for n in range(ROWS)
    ]
    table = pa.Table.from_pylist(rows).append_column("code", pa.array([b"x" * 16] * ROWS))
    path = tmp_path / "links" / "a.parquet"
    path.parent.mkdir()
    pq.write_table(table, path, row_group_size=128)
    return Mapped(path, tmp_path / "cache"), rows


def _orders():
    draw = random.Random(0)
    yield "forwards", list(range(ROWS))
    yield "backwards", list(range(ROWS))[::-1]
    yield "gaps", sorted(draw.sample(range(ROWS), 200))
    yield "anyhow", [draw.randrange(ROWS) for _ in range(ROWS)]
    yield "two readers", [n for pair in zip(range(250), range(250, 500), strict=True) for n in pair]
    yield "again", [n for n in range(ROWS) for _ in range(2)]


@pytest.mark.parametrize("order", [order for _, order in _orders()], ids=[n for n, _ in _orders()])
def test_rows_are_those_of_the_file(sealed, order):
    mapped, rows = sealed
    assert [mapped.row(number) for number in order] == [rows[number] for number in order]


def test_a_row_may_be_changed_by_who_asked(sealed):
    mapped, rows = sealed
    for number in (0, 1, 2, 1):
        mapped.row(number).clear()
        assert mapped.row(number) == rows[number]


def test_a_place_is_where_numpy_puts_it():
    column = np.sort(np.random.default_rng(0).integers(0, 1 << 64, 300, np.uint64, endpoint=False))
    column[10:14] = column[10]
    for wanted in (0, *map(int, column), *(int(n) + 1 for n in column[:-1]), (1 << 64) - 1):
        assert place(column.data, wanted) == np.searchsorted(column, np.uint64(wanted))
