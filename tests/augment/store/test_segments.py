"""A sealed file read by rows says what Parquet says; names seen are those of a dict."""

import random
import tracemalloc

import pytest

from augment.store import segments
from augment.store.segments import Mapped, Seen

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


@pytest.mark.parametrize("latest", [1, 7, 1 << 16])
@pytest.mark.parametrize("same_high", [False, True])
def test_it_remembers_what_a_dict_does(latest, same_high, monkeypatch):
    monkeypatch.setattr(segments, "LATEST", latest)
    if same_high:  # names that agree in their first 64 bits
        whole = segments.code
        monkeypatch.setattr(segments, "code", lambda name: bytes(8) + whole(name)[8:])
    dice = random.Random(latest)
    names, known = Seen(), {}
    for _ in range(600):
        name, number = f"9:{dice.randrange(300)}", dice.randrange(-(2**63), 2**63)
        assert (name in names) == (name in known)
        assert names.add(name, number) == known.get(name)
        known.setdefault(name, number)
    assert len(names) == len(known)
    assert all(names.add(name) == number for name, number in known.items())
    assert "never" not in names


def test_it_takes_a_fraction_of_the_memory_of_a_dict():
    def size(fill):
        tracemalloc.start()
        kept = fill()
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return taken / len(kept)

    def ours():
        names = Seen()
        for number in range(2 << 16):
            names.add(f"9:{number}", number)
        return names

    assert size(ours) < 40
    assert size(lambda: {f"9:{n}": n for n in range(2 << 16)}) > 100
