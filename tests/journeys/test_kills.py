"""Kills at random moments, items that kill the engine, disks that are full or read-only."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from augment import corpus
from augment.__main__ import main
from augment.data import write_candidates
from augment.enrichment.pipeline import Options, carry_out
from augment.enrichment.supervise import supervise
from augment.records import Item
from augment.store import Store, log
from augment.store.runs import load_runs

HOME = Path(__file__).parents[2]
ITEMS = 60

Image.init()  # here, so that not every forked process imports Pillow's formats again


@pytest.fixture
def root(tmp_path):
    pool = []
    (tmp_path / "root/images").mkdir(parents=True)
    for n in range(ITEMS):
        # Every third picture is a copy of the one before.
        Image.new("RGB", (40, 30), (n - (n % 3 == 2), 9, 9)).save(tmp_path / f"root/images/{n}.png")
        pool.append(Item(f"3:{n}", None, (f"images/{n}.png",), "image"))
    write_candidates(tmp_path / "root/cand_pool/local/mbeir_x_task4_cand_pool.jsonl", pool)
    return tmp_path / "root"


@pytest.fixture(scope="module")
def processes():
    """Forks of a small process that has imported everything, so that a start costs little."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["augment.corpus", "augment.engines.transformers", __name__])
    return context


def _work(root, store, model, options):
    os.setpgrp()
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - as long as it lives
    options = Options(model=model, **options)

    def work(dead):
        plan = corpus.plan(root, (), "rar/corpus")
        return carry_out(plan, root, store, options, seen_dead=dead).exit_code

    sys.exit(supervise(work, store))


def start(processes, root, store, model="scripted:?delay=0.002", **options):
    options = {"batch_size": 3, **options}
    process = processes.Process(target=_work, args=(root, store, model, options))
    process.start()
    return process


def size(store):
    with contextlib.suppress(FileNotFoundError):  # sealed while we look
        return sum(path.stat().st_size for path in store.glob("wal/*.jsonl"))
    return 0


def kill(process, store, after, dice):
    """Kill once so many more bytes are written; whether it was still alive."""
    goal = size(store) + after
    while process.is_alive() and size(store) < goal:
        time.sleep(0.01)
    time.sleep(dice.random() * 0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def rows_written(store):
    """Keys of all texts on the disk, doubles included."""
    found = Counter()
    for path in store.glob("wal/*.jsonl"):
        with path.open("rb") as file:
            records = [line.record for line in log.read(file) if line.record]
        found.update(record["key"] for record in records if record["kind"] == "text")
    for path in store.glob("texts/*.parquet"):
        found.update(pq.read_table(path, columns=["key"])["key"].to_pylist())
    return found


def texts(store):
    return {item: text.text for item, text in Store(store).texts("corpus").items()}


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "writers"), [(40, 1), (10, 2)])
def test_killed_at_random_moments_nothing_is_lost_or_doubled(root, processes, kills, writers):
    calm = root.parent / "calm"
    assert corpus.run(root, calm, options=Options(model="scripted:")).exit_code == 0
    dice = random.Random()
    done = round_ = 0
    while done < kills:
        store = root.parent / f"store{round_}"
        running = [start(processes, root, store) for _ in range(writers)]
        # About 20 kB are written in all; a bit more than a sealed log's worth now and then.
        ended = [kill(one, store, dice.randrange(3_000), dice) for one in running]
        done += sum(ended)
        if not all(ended) or done >= kills:
            last = start(processes, root, store)
            last.join()
            assert last.exitcode == 0
            assert texts(store) == texts(calm)
            written = rows_written(store)
            assert set(written) == set(rows_written(calm))
            if writers == 1:
                assert set(written.values()) == {1}, "finished work was done again"
            assert not Store(store).failures("corpus")
            round_ += 1


@pytest.mark.slow
def test_the_real_engine_killed_and_killed_again(root, processes):
    calm, store = root.parent / "calm", root.parent / "store"
    more = {"batch_size": 4, "threads": 1, "limit": 24, "max_new_tokens": 12}
    undisturbed = start(processes, root, calm, "flagland-vlm", **more)
    undisturbed.join()
    assert undisturbed.exitcode == 0
    dice = random.Random()
    for _ in range(2):
        assert kill(start(processes, root, store, "flagland-vlm", **more), store, 2_000, dice)
    last = start(processes, root, store, "flagland-vlm", **more)
    last.join()
    assert last.exitcode == 0
    assert texts(store) == texts(calm)
    assert set(rows_written(store).values()) == {1}


def test_an_item_that_kills_the_process_is_found_and_set_aside(root, processes):
    calm, store = root.parent / "calm", root.parent / "store"
    corpus.run(root, calm, options=Options(model="scripted:"))
    deadly = "scripted:?kill_on=3:15"
    first = start(processes, root, store, deadly, batch_size=16)
    first.join()
    assert first.exitcode == 3
    failures = Store(store).failures("corpus")
    assert set(failures) == {"3:15"}
    assert failures["3:15"].reason.startswith("engine-died: ")
    kept = texts(calm)
    del kept["3:15"]
    assert texts(store) == kept
    assert set(rows_written(store).values()) == {1}
    again = start(processes, root, store, deadly, batch_size=16)
    again.join()
    assert again.exitcode == 3, "it is not asked again"
    assert load_runs(store)[-1].counts["generated"] == 0
    arguments = ["corpus", "--root", str(root), "--store", str(store), "--model", "scripted:"]
    assert main(["retry", *arguments, "--reason", "engine-died"]) == 0
    assert texts(store) == texts(calm)


def test_an_engine_that_always_dies_condemns_no_item(root, processes):
    everything = ",".join(f"3:{n}" for n in range(ITEMS))
    running = start(processes, root, root.parent / "store", f"scripted:?kill_on={everything}")
    running.join()
    assert running.exitcode == 4
    assert not Store(root.parent / "store").failures("corpus")
    assert (
        corpus.run(root, root.parent / "store", options=Options(model="scripted:")).exit_code == 0
    )


def test_a_worker_killed_from_outside_is_replaced(root, processes):
    """As by the system for lack of memory; the command survives it."""
    store = root.parent / "store"
    running = start(processes, root, store, "scripted:?delay=0.02")
    while running.is_alive() and size(store) < 4_000:
        time.sleep(0.005)
    (path,) = store.glob("wal/*.jsonl")
    worker = log.writer_pid(path.name)
    assert worker != running.pid
    os.kill(worker, signal.SIGKILL)
    running.join()
    assert running.exitcode == 0
    assert len(texts(store)) == ITEMS
    assert set(rows_written(store).values()) == {1}


def test_first_signal_drains_second_stops(root, processes):
    store = root.parent / "store"
    for signals in (1, 2):
        # The second run has a batch that would take a minute.
        model = "scripted:?delay=0.05" if signals == 1 else "scripted:?delay=60"
        running = start(processes, root, store, model)
        goal = size(store) + 1_000
        while running.is_alive() and signals == 1 and size(store) < goal:
            time.sleep(0.005)
        # A run is noted once it heeds signals, however long the machine takes to get there.
        while running.is_alive() and len(list(store.glob("runs/*.json"))) < signals:
            time.sleep(0.005)
        for _ in range(signals):
            os.kill(running.pid, signal.SIGINT)
            time.sleep(0.7 * (signals == 2))
        running.join(30)
        assert running.exitcode == 4
    assert 0 < len(rows_written(store)) < ITEMS


SCRIPT = """
mount -t tmpfs -o size=40k none $STORE || exit 99
$RUN; echo full=$?
mount -o remount,size=8m $STORE; $RUN; echo mended=$?
mount -o remount,ro $STORE; $RUN; echo readonly=$?
"""


UNSHARE = shutil.which("unshare") or ""


@pytest.mark.skipif(not UNSHARE, reason="needs unshare")
def test_disk_full_then_mended_then_read_only(root):
    store = root.parent / "store"
    store.mkdir()
    run = f"{sys.executable} -m augment.corpus --root {root} --store {store} --model scripted:"
    done = subprocess.run(
        [UNSHARE, "-rm", "sh", "-c", SCRIPT],
        cwd=HOME,
        env={**os.environ, "STORE": str(store), "RUN": run, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode in (1, 99):
        pytest.skip(f"may not mount: {done.stderr.strip()}")
    assert "full=5" in done.stdout, done.stderr
    assert "No space left on device; everything before is saved" in done.stderr
    assert "mended=0" in done.stdout, done.stderr
    assert "readonly=5" in done.stdout, done.stderr
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
