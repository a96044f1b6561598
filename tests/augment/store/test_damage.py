"""Whatever bit of a store flips: an error, or a text less, never another text; and verify tells."""

import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from augment.errors import StoreError, StoreWriteError, ToolkitError
from augment.records import Enrichment, Sampling
from augment.store import Failure, Judged, Scope, Store, log, runs
from augment.store.keys import Recipe
from augment.store.upkeep import merge, verify

RECIPE = Recipe("corpus", {"p": "p@1"}, "m", "r", {"p": Sampling()}, {"image": "p"})
OTHER = replace(RECIPE, model="other")


def write(folder, items, seal_rows, recipe=RECIPE):
    with Store(folder, seal_rows=seal_rows) as store:
        run = store.begin(recipe, Scope())
        for n in items:
            key = f"{recipe.id}-{n}"
            store.save_picture(f"picture {n}", f"{n:064x}")
            store.append(Enrichment(key, f"1:{n}", f"text {n} of {recipe.id}", "p@1", "m", "r"))
            store.link(recipe.id, f"1:{n}", key)
            store.fail(recipe.id, Failure(f"2:{n}", None, f"corrupt: {n}"))
        store.finish(run, {"total": 3})


def content(folder):
    """What people see of a store: texts and failures by item, hashes of pictures."""
    store = Store(folder)
    seen = {item: text.text for item, text in store.texts("corpus").items()}
    seen |= {item: failure.reason for item, failure in store.failures("corpus").items()}
    seen |= {text.key: text.text for text in store}
    return seen | {f"picture {n}": store.picture(f"picture {n}") for n in range(12)}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A store with segments, their cache, a log, runs, two recipes and a choice."""
    folder = tmp_path_factory.mktemp("damage") / "store"
    write(folder, range(8), 32)
    write(folder, range(2), 8, OTHER)
    runs.choose(folder, RECIPE.id)
    write(folder, range(8, 12), 1_000)
    content(folder)
    return folder


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_store_has_all_that_can_be_damaged(sealed):
    kinds = {path.relative_to(sealed).parts[0] for path in files(sealed)}
    folders = {"texts", "links", "failures", "pictures", "wal", "recipes", "runs", "cache"}
    assert kinds == {*folders, "store.json", "chosen-corpus.json"}
    assert verify(sealed).problems == {}


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_never_gives_another_text(sealed, tmp_path, seed):
    whole, dice = content(sealed), random.Random(seed)
    shutil.copytree(sealed, tmp_path / "s")
    for path in files(tmp_path / "s"):
        data = path.read_bytes()
        for _ in range(24 if len(data) > 64 else 8):
            place, bit = dice.randrange(len(data)), 1 << dice.randrange(8)
            path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
            where = f"{path.relative_to(tmp_path)}, byte {place}, bit {bit}"
            try:
                found = content(tmp_path / "s")
            except ToolkitError:
                found = {}
            wrong = {k for k, v in found.items() if v is not None and v != whole.get(k)}
            assert not wrong, where
            lost = {k for k, v in whole.items() if found.get(k) != v}
            try:
                told = verify(tmp_path / "s").problems
            except StoreError as error:
                told = {"error": [str(error)]}
            assert told or not lost or data[place : place + 1] == b"\n", where
            assert "cache" not in path.parts or not lost, f"{where}: it is made anew"
        path.write_bytes(data)


def test_damaged_scores_are_told_and_refused(sealed, tmp_path):
    from augment.store.scores import load_scores, scores

    shutil.copytree(sealed, tmp_path / "s")
    path = scores(tmp_path / "s", recipe=RECIPE.id)
    assert verify(tmp_path / "s").problems == {}
    data = path.read_bytes()
    path.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    assert list(verify(tmp_path / "s").problems) == ["damaged scores"]
    with pytest.raises(StoreError, match="delete the file"):
        load_scores(tmp_path / "s", "corpus", RECIPE.id)


def test_what_a_killed_writer_left_half_written_is_no_run(sealed, tmp_path):
    shutil.copytree(sealed, tmp_path / "s")
    (tmp_path / "s/scores").mkdir()
    for name in ("runs/.1a2b3c4d.20260101T000000-aa.json", "scores/.1a2b3c4d.corpus-a.parquet"):
        (tmp_path / "s" / name).write_bytes(b"")
    assert verify(tmp_path / "s").problems == {}
    merge(tmp_path / "into", [tmp_path / "s"])
    assert len(runs.load_runs(tmp_path / "s")) == len(runs.load_runs(tmp_path / "into")) == 3


def test_a_run_or_a_choice_that_was_edited_is_told_and_not_merged(sealed, tmp_path):
    for name in ("runs", "chosen"):
        folder = tmp_path / name
        shutil.copytree(sealed, folder)
        path = next(iter(folder.glob(f"{name}*"))) if name == "chosen" else None
        path = path or next(iter((folder / name).iterdir()))
        path.write_text(path.read_text().replace(RECIPE.id, OTHER.id).replace(": null", ": 7"))
        assert list(verify(folder).problems) == [{"runs": "run", "chosen": "choice"}[name]]
        with pytest.raises(StoreError, match="is damaged"):
            merge(tmp_path / "into", [folder])
        assert not (tmp_path / "into" / "runs").exists()


def test_a_merge_that_is_killed_leaves_no_run_that_cannot_be_read(sealed, tmp_path, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("augment.files.publish", dies)
    with pytest.raises(KeyboardInterrupt):
        merge(tmp_path / "into", [sealed])
    monkeypatch.undo()
    merge(tmp_path / "into", [sealed])
    assert verify(tmp_path / "into").problems == {}
    assert len(runs.load_runs(tmp_path / "into")) == len(runs.load_runs(sealed)) == 3


@pytest.mark.parametrize("later", [0.0, 0.2])
def test_a_sync_that_fails_behind_the_last_record_is_told(tmp_path, monkeypatch, later):
    """The system tells a failure once: the next fsync of the same bytes succeeds."""
    real, failed = os.fsync, []

    def fsync(handle):
        if failed or "/wal/" not in os.path.realpath(f"/proc/self/fd/{handle}"):
            return real(handle)
        failed.append(handle)
        time.sleep(0.1)
        raise OSError(5, "Input/output error")

    store = Store(tmp_path, sync_seconds=0.02)
    monkeypatch.setattr(os, "fsync", fsync)
    store.append(Enrichment("k", "1:1", "text", "p", "m", "r"))
    while not failed:
        time.sleep(0.001)
    time.sleep(later)
    with pytest.raises(StoreWriteError, match="Input/output error"):
        store.close()


def test_a_clock_that_was_ahead_changes_no_order(tmp_path, monkeypatch):
    years = 10 * 365 * 86_400
    with monkeypatch.context() as ahead:
        now, exact = time.time, time.time_ns
        ahead.setattr(time, "time", lambda: now() + years)
        ahead.setattr(time, "time_ns", lambda: exact() + years * 10**9)
        with Store(tmp_path) as store:
            store.finish(store.begin(RECIPE, Scope(checks={"limits": "old"})), {})
            store.fail(RECIPE.id, Failure("1:1", None, "corrupt: 1", "k"))
            store.append(Enrichment("k2", "1:2", "refused", "p", "m", "r", rejected="empty"))
            store.append(Enrichment("k3", "1:2", "again", "p", "m", "r", retry_of="k2"))
            store.link(RECIPE.id, "1:3", "k2")
    for rows in (1_000, 1):
        with Store(tmp_path, seal_rows=rows) as store:
            store.finish(store.begin(RECIPE, Scope(checks={"limits": "new"})), {})
            store.append(Enrichment("k", "1:1", "text", "p", "m", "r"))
            store.link(RECIPE.id, "1:1", "k")
            store.link(RECIPE.id, "1:2", "k2", judged=Judged("mark", "", "language: other", ""))
            store.fail(RECIPE.id, Failure("1:3", None, "late: 3"))
        again = Store(tmp_path)
        assert set(again.failures("corpus")) == {"1:3"}
        assert again.texts("corpus")["1:2"].text == "refused", "by the later verdict"
    ran = runs.load_runs(tmp_path)
    assert [run.scope.checks["limits"] for run in ran] == ["old", "new", "new"]
    assert all(run.ended >= run.started for run in ran)


def test_processes_of_a_machine_without_a_network_card_agree_on_its_name():
    code = (
        "import uuid; uuid.getnode = lambda: 1 << 40 | __import__('os').getpid();"
        "from augment.store.log import host; print(host())"
    )
    home = Path(__file__).parents[3]
    told = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=home
        ).stdout.strip()
        for _ in range(2)
    }
    (name,) = told
    known = any(Path(path).exists() for path in log.MACHINE_IDS)
    assert name.endswith("_" + "0" * 12) != known, "two machines of one name would be one"
