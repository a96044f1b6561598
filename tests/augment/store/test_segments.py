"""A sealed file read by rows says what Parquet says."""

import random

import pytest

from augment.store import segments
from augment.store.segments import Mapped

ROWS = 500


@pytest.fixture
def sealed(tmp_path, monkeypatch):
    """A file of several groups and batches, and its rows."""
    monkeypatch.setattr(segments, "GROUP", 128)
    monkeypatch.setattr(segments, "BATCH", 64)
    rows = [
        {"item": f"1:{n}", "at": n, "key": f"k{n}", "route": None if n % 7 == 0 else f"é {n}"}
        for n in range(ROWS)
    ]
    path = segments.write(tmp_path / "links", "a", "link", rows)
    empty = dict.fromkeys(("judged", "shown", "rejected", "checks"))
    return Mapped("link", path, tmp_path / "cache"), [{**row, **empty} for row in rows]


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
