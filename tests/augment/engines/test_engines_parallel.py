"""Many workers: processes and Ray's actors; some are killed, nothing is lost or doubled."""

import os
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest
from PIL import Image

from augment.engines import Ask, EngineOptions, make_engine
from augment.engines.parallel import ParallelEngine
from augment.engines.processes import ProcessCrew
from augment.errors import EngineError
from augment.records import Request, Sampling

HOME = Path(__file__).parents[3]


@pytest.fixture
def pictures(tmp_path):
    for n in range(4):
        Image.new("RGB", (40, 30), (60 * n, 9, 9)).save(tmp_path / f"{n}.png")
    return tmp_path


def ask(count):
    return [Request(f"1:{n}", "s", f"request {n}", (f"{n % 4}.png",)) for n in range(count)]


def parallel(root, name, size, **options):
    chosen = EngineOptions(**options)
    crew = ProcessCrew(name, root, chosen, ["cpu"] * size)
    inner = make_engine(name, root=root, **options)
    return ParallelEngine(inner, crew, size=size, batch_size=chosen.batch_size)


def alone(root, requests):
    return list(make_engine("scripted:", root=root).generate(requests, Sampling()))


def workers(below):
    return [
        process
        for process in psutil.Process(below).children(recursive=True)
        if any("spawn_main" in part for part in process.cmdline())
    ]


def test_workers_give_the_replies_of_one_engine_and_stay_for_the_next_call(pictures):
    engine = parallel(pictures, "scripted:?delay=0.01", 2, batch_size=3)
    try:
        for count in (50, 1, 7):
            assert list(engine.generate(ask(count), Sampling())) == alone(pictures, ask(count))
        assert len(workers(os.getpid())) == 2
    finally:
        engine.close()
    assert not workers(os.getpid())


def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_doubled(pictures, caplog):
    """SIGKILL is what the kernel sends when memory is short."""
    engine = parallel(pictures, "scripted:?delay=0.02", 2, batch_size=2)
    requests, replies = ask(80), {}
    try:
        for batch in engine.batches(Ask(one, Sampling()) for one in requests):
            assert not replies.keys() & dict(batch).keys()
            if len(replies) < 20 <= len(replies) + len(batch):
                workers(os.getpid())[0].kill()
            replies.update(batch)
    finally:
        engine.close()
    assert [replies[n] for n in range(80)] == alone(pictures, requests)
    assert "code -9, as the kernel does when memory is short" in caplog.text


def test_a_request_that_kills_its_worker_is_found_and_set_aside(pictures):
    """The stand-in dies of one request only; halving finds it, everything else is answered."""
    (pictures / "poison.json").write_text('{"x": 1}')
    engine = parallel(pictures, "scripted:", 2, batch_size=4)
    engine._crew = PoisonCrew(pictures, poison=13)
    replies = list(engine.generate(ask(40), Sampling()))
    assert [n for n, reply in enumerate(replies) if reply.finish == "error"] == [13]
    assert replies[13].reason.startswith("engine-died: asked alone, the worker ended twice")
    assert max(engine._crew.answered.values()) == 1
    assert len(engine._crew.answered) == 39


class PoisonCrew:
    """Workers in this process that die, after a part of the chunk, of one request."""

    def __init__(self, root, poison):
        from augment.engines.parallel import Event

        self.event, self.root, self.poison = Event, root, poison
        self.events, self.number, self.answered, self.depth = [], 0, Counter(), 1

    def start(self):
        self.number += 1
        self.events.append(self.event(self.number, "ready"))
        return self.number

    def give(self, worker, chunk):
        requests = [ask.request for _, ask in chunk]
        for (number, ask), reply in zip(chunk, alone(self.root, requests), strict=True):
            if ask.request.item_id == f"1:{self.poison}":
                self.events.append(self.event(worker, "died", reason="killed"))
                return
            self.answered[ask.request.item_id] += 1
            self.events.append(self.event(worker, "replies", [(number, reply)]))

    def wait(self):
        events, self.events = self.events, []
        return events

    def stop(self):
        self.events.clear()


def test_a_model_that_dies_everywhere_ends_the_run(pictures):
    engine = parallel(pictures, "scripted:?die_after=0", 2)
    with pytest.raises(EngineError, match=r"3 workers ended in a row.*scripted death"):
        list(engine.generate(ask(10), Sampling()))
    assert not workers(os.getpid())


@pytest.mark.slow
def test_transformers_on_two_devices_gives_the_texts_of_one(pictures):
    """Two processes, each with its copy of a real model; here both devices are the CPU."""
    options = {"root": pictures, "batch_size": 4, "threads": 1}
    engine = make_engine("flagland-vlm", device="cpu,cpu", **options)
    one = make_engine("flagland-vlm", device="cpu", **options)
    split = make_engine("flagland-vlm", device="split", **options)
    requests = ask(12)
    assert (engine.model, engine.revision) == (one.model, one.revision)
    try:
        together = list(engine.generate(requests, Sampling(12)))
    finally:
        engine.close()
    expected = list(one.generate(requests, Sampling(12)))
    assert together == expected
    assert list(split.generate(requests, Sampling(12))) == expected
    with pytest.raises(EngineError, match="no device 'tpu'"):
        make_engine("flagland-vlm", device="cpu,tpu", root=pictures)


@pytest.mark.slow
def test_ray_on_two_machines_of_which_one_is_killed(pictures, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(HOME))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    quiet = {"num_cpus": 0, "include_dashboard": False}
    try:
        cluster = Cluster(initialize_head=True, head_node_args=quiet)
    except Exception as error:  # noqa: BLE001  # Ray's own word for a machine that is too slow
        pytest.skip(f"no Ray cluster on this machine: {error}")
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
        engine = make_engine("ray:scripted:?delay=0.05", root=pictures, batch_size=2, replicas=2)
        requests, replies = ask(120), {}
        for batch in engine.batches(Ask(one, Sampling()) for one in requests):
            assert not replies.keys() & dict(batch).keys()
            if len(replies) < 30 <= len(replies) + len(batch):
                for info in nodes[0].all_processes["raylet"]:
                    os.kill(info.process.pid, signal.SIGKILL)
            replies.update(batch)
        assert [replies[n] for n in range(120)] == alone(pictures, requests)
        engine.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
