"""Time for which servers had room while pictures were being made ready."""

import time

from PIL import Image

from augment.engines import make_engine, remote
from augment.engines.slots import Slots
from augment.records import Request, Sampling
from tests.fakes import FakeServer


def test_slots_count_free_places_while_something_is_made_ready():
    now, noted = 0.0, []
    slots = Slots(lambda: 4, noted.append, clock=lambda: now)
    with slots.preparing():
        now = 1.0  # one request in the making, four places free: one of them waits
        with slots.preparing(), slots.asking(), slots.asking(), slots.asking():
            now = 3.0  # two in the making, one place free
    assert sum(noted) == 1.0 * 1 / 4 + 2.0 * 1 / 4
    with slots.asking():
        now = 9.0  # nothing in the making: the run is at its end
    assert sum(noted) == 0.75


def test_a_served_engine_tells_how_long_pictures_kept_it_waiting(tmp_path, monkeypatch):
    for n in range(6):
        Image.new("RGB", (40, 30), (40 * n, 9, 9)).save(tmp_path / f"{n}.png")
    requests = [Request(f"1:{n}", "s", "describe", (f"{n}.png",)) for n in range(6)]
    waited, opened = [], remote.open_image
    for pause in (0.0, 0.2):
        monkeypatch.setattr(
            remote, "open_image", lambda *a, p=pause: (time.sleep(p), opened(*a))[1]
        )
        with FakeServer() as server:
            engine = make_engine(
                "fake", root=tmp_path, urls=[server.url], concurrency=2, workers=1, canaries=False
            )
            assert all(r.finish == "stop" for r in engine.generate(requests, Sampling(64)))
            waited.append(engine.waited)
    assert waited[1] > waited[0] + 0.5
