"""Names seen in a run, against a dict."""

import random
import tracemalloc

import pytest

from augment.store import seen
from augment.store.seen import Seen


@pytest.mark.parametrize("latest", [1, 7, 1 << 16])
@pytest.mark.parametrize("same_high", [False, True])
def test_it_remembers_what_a_dict_does(latest, same_high, monkeypatch):
    monkeypatch.setattr(seen, "LATEST", latest)
    if same_high:  # names that agree in their first 64 bits
        whole = seen.code
        monkeypatch.setattr(seen, "code", lambda name: bytes(8) + whole(name)[8:])
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
