"""The store: content-addressed, append-only, and whole after any crash."""

import multiprocessing
import os
import pickle
import random
import resource
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.errors import StoreError, StoreWriteError
from augment.records import Enrichment, Request, Sampling
from augment.store import Failure, Scope, Store, runs
from augment.store.keys import Recipe, text_key
from augment.store.log import Death, suspects
from augment.store.schema import pair_id
from augment.store.segments import RowIndex
from augment.store.upkeep import verify

RECIPE = Recipe("corpus", {"p": "p@1"}, "m", "r", {"p": Sampling()}, {"image": "p"})


def text(key, body="a text", **fields):
    return Enrichment(key, "1:1", body, "p@1", "m", "r", **fields)


def wal(folder):
    return sorted((folder / "wal").glob("*.jsonl"))


def test_what_was_written_is_read_back(tmp_path):
    with Store(tmp_path / "none") as store:
        assert (len(store), store.get("k")) == (0, None)
    assert not (tmp_path / "none").exists()
    written = text("k", 'quotes " and \n lines, ü, 旗, ?', sampling=Sampling(7, 0.5, 0.9, 3))
    written = replace(written, finish="length", rejected="truncated", prompt_tokens=4)
    with Store(tmp_path / "s") as store:
        store.save_recipe(RECIPE)
        # UTF-8 cannot hold half a surrogate pair.
        store.append(replace(written, text=written.text.replace("?", "\ud800")))
        store.link(RECIPE.id, "1:1", "k")
        store.link(RECIPE.id, "1:2", "k")
    again = Store(tmp_path / "s")
    assert again.get("k") == written
    assert dict(again.texts("corpus")) == {"1:1": written, "1:2": written}
    assert again.recipe("corpus") == RECIPE
    assert len(again) == 1
    assert again.damaged == []


def test_knowing_writes_nothing(tmp_path):
    for _ in range(3):
        with Store(tmp_path) as store:
            store.append(text("k"))
            store.append(text("k", "another"))
            store.link(RECIPE.id, "1:1", "k")
    assert len(wal(tmp_path)) == 1
    assert wal(tmp_path)[0].read_text().count("\n") == 2
    assert Store(tmp_path).get("k").text == "a text"


def test_cut_anywhere_every_whole_record_survives(tmp_path):
    with Store(tmp_path / "whole") as store:
        for n in range(2):
            store.append(text(f"k{n}", f"text {n} ü"))
    data = wal(tmp_path / "whole")[0].read_bytes()
    cut = tmp_path / "cut"
    (cut / "wal").mkdir(parents=True)
    torn = cut / "wal" / "a.jsonl"
    for length in range(len(data) + 1):
        torn.write_bytes(data[:length])
        store = Store(cut)
        # A record without its newline may be whole; anything else that is cut is not there.
        whole = data[:length].count(b"\n")
        assert data[:length].count(b"\n") <= whole
        assert {t.key for t in store} == {f"k{n}" for n in range(whole)}
        assert store.damaged == []


def test_what_follows_a_torn_line_is_not_glued_to_it(tmp_path):
    with Store(tmp_path) as store:
        store.append(text("k0"))
        store.append(text("k1"))
    path = wal(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-20])
    with Store(tmp_path) as store:
        assert store.get("k1") is None
        store.append(text("k1"))
    assert {t.key for t in Store(tmp_path)} == {"k0", "k1"}


def test_a_rotten_line_is_named_and_only_its_text_is_lost(tmp_path, caplog):
    with Store(tmp_path) as store:
        for n in range(3):
            store.append(text(f"k{n}"))
    path = wal(tmp_path)[0]
    lines = path.read_bytes().split(b"\n")
    lines[1] = b"\x00" * len(lines[1])
    path.write_bytes(b"\n".join(lines))
    store = Store(tmp_path)
    assert {t.key for t in store} == {"k0", "k2"}
    assert store.damaged == [f"{path}:2"]
    assert f"{path}:2" in caplog.text


def test_two_writers_and_every_reader_agrees(tmp_path):
    with Store(tmp_path) as one, Store(tmp_path) as two:
        one.append(text("k", "earlier"))
        two.append(text("k", "later"))
        one.link(RECIPE.id, "1:1", "old")
        two.link(RECIPE.id, "1:1", "k")
        one.append(text("only one"))
        two.append(text("only two"))
    assert len(wal(tmp_path)) == 2
    for names in (("a", "b"), ("d", "c")):
        for path, name in zip(wal(tmp_path), names, strict=True):
            path.rename(path.with_name(f"x{name}.jsonl"))
        store = Store(tmp_path)
        assert store.get("k").text == "earlier"
        assert store.link_of(RECIPE.id, "1:1").key == "k"
        assert len(store) == 3


def test_recipes_live_side_by_side_and_the_last_one_is_never_guessed(tmp_path):
    other = replace(RECIPE, prompts={"p": "p@2"})
    assert other.id != RECIPE.id
    with Store(tmp_path) as store:
        for recipe, key in ((RECIPE, "k1"), (other, "k2")):
            store.save_recipe(recipe)
            store.append(text(key, key))
            store.link(recipe.id, "1:1", key)
        assert store.texts("corpus", RECIPE.id)["1:1"].text == "k1"
        assert store.texts("corpus", other.id)["1:1"].text == "k2"
        with pytest.raises(StoreError, match="not clear which") as several:
            store.texts("corpus")
        assert RECIPE.id in str(several.value)
        assert other.id in str(several.value)
        # A trial does not count, a complete run does, a choice counts most.
        whole, trial = store.begin(RECIPE, Scope()), store.begin(other, Scope(limit=3))
        store.finish(whole, {})
        store.finish(trial, {})
        assert store.texts("corpus")["1:1"].text == "k1"
        runs.choose(tmp_path, other.id)
        assert store.texts("corpus")["1:1"].text == "k2"
        with pytest.raises(StoreError, match=r"augment\.queries"):
            store.texts("query")
        with pytest.raises(StoreError, match=RECIPE.id):
            store.texts("corpus", "0" * 12)
        with pytest.raises(StoreError, match=RECIPE.id):
            runs.choose(tmp_path, "0" * 12)


def test_shards_make_a_recipe_complete_together(tmp_path):
    store = Store(tmp_path)
    for shard in ("0/2", "1/3", "1/2"):
        assert runs.complete_recipes(tmp_path, "corpus") == set()
        run = store.begin(RECIPE, Scope(shard=shard))
        assert runs.complete_recipes(tmp_path, "corpus") == set(), "it is running"
        store.finish(run, {"incomplete": ""})
    assert runs.complete_recipes(tmp_path, "corpus") == {RECIPE.id}
    assert [run.complete for run in runs.load_runs(tmp_path)] == [True] * 3


def test_a_file_that_may_not_grow_says_so_and_the_next_write_starts_a_new_one(tmp_path):
    """The system refuses in the middle of a line, as on a full disk."""
    store = Store(tmp_path)
    store.append(text("k0"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        size = wal(tmp_path)[0].stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, before[1]))
        with pytest.raises(StoreWriteError, match=r"File too large.*everything before is saved"):
            store.append(text("k1"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert wal(tmp_path)[0].stat().st_size == size + 40, "the line is torn"
    assert "k1" not in store
    store.append(text("k2"))
    store.close()
    assert len(wal(tmp_path)) == 2
    assert {t.key for t in Store(tmp_path)} == {"k0", "k2"}
    assert Store(tmp_path).damaged == []


@pytest.mark.parametrize("seconds", [0.01, 3600])
def test_a_disk_that_fails_to_sync_says_so(tmp_path, monkeypatch, seconds):
    """At the next record, or when the store is closed before the interval is over."""
    store = Store(tmp_path, sync_seconds=seconds)
    store.append(text("k0"))
    monkeypatch.setattr("augment.store.log.os.fsync", _full)
    time.sleep(0.1 if seconds < 1 else 0)
    with pytest.raises(StoreWriteError, match="No space left"):
        store.append(text("k1")) if seconds < 1 else store.close()


def test_what_is_renamed_or_removed_has_reached_the_disk(tmp_path, monkeypatch):
    """A segment before it has its name and its log goes; a log by the interval, or each record."""
    done = []
    sync, rename, unlink = os.fsync, os.replace, os.unlink

    def spy(name, real):
        def call(one, *more, **options):
            path = f"/proc/self/fd/{one}" if isinstance(one, int) else os.fspath(one)
            done.append((name, os.path.realpath(path)))
            return real(one, *more, **options)

        return call

    monkeypatch.setattr(os, "fsync", spy("sync", sync))
    monkeypatch.setattr(os, "replace", spy("rename", rename))
    monkeypatch.setattr(os, "rename", spy("rename", os.rename))
    monkeypatch.setattr(os, "unlink", spy("remove", unlink))
    store = Store(tmp_path, sync_seconds=0, seal_rows=2)
    store.append(text("k0"))
    (path,) = wal(tmp_path)
    assert done[-1] == ("sync", str(path)), "each record, where no interval is given"
    store.append(text("k1"))
    assert not path.exists()
    renamed = [place for what, place in done if what == "rename" and "/texts/" in place]
    assert len(renamed) == 1
    order = [
        done.index(("sync", renamed[0])),
        done.index(("rename", renamed[0])),
        done.index(("sync", str(tmp_path / "texts"))),
        done.index(("remove", str(path))),
    ]
    assert order == sorted(order)
    store.save_recipe(RECIPE)
    recipe = next(place for what, place in done if what == "rename" and "/recipes/" in place)
    assert done.index(("sync", recipe)) < done.index(("rename", recipe))


def test_whatever_the_log_accepts_can_be_sealed(tmp_path):
    odd = {"prompt_tokens": 2**40, "output_tokens": 2**70, "checks": {"words": float("nan")}}
    with Store(tmp_path, seal_rows=3) as store:
        store.append(text("k0", "a\x00b\ud800", **odd))
        store.append(text("k1", ["no", "text"], lengths={"short": "s"}))
        store.fail(RECIPE.id, Failure("1:2", None, "server: 5", "k2"))
        assert [len(list(tmp_path.glob(f"{kind}/*.parquet"))) for kind in ("wal", "texts")] == [
            0,
            1,
        ]
        assert store.get("k0").output_tokens == 2**63 - 1
    again = Store(tmp_path)
    assert again.get("k0").prompt_tokens == 2**40
    assert again.get("k0").text == "a\x00b?"
    assert again.get("k1").text == '["no", "text"]'
    assert verify(tmp_path).problems == {}


def test_texts_of_pairs_stand_beside_those_of_items(tmp_path):
    pair = pair_id("9:1", "1:1")
    for rows in (1_000, 1):
        with Store(tmp_path / str(rows), seal_rows=rows) as store:
            store.save_recipe(RECIPE)
            for owner, key in (("1:1", "k"), (pair, "k2"), (pair_id("9:2", "1:1"), "k3")):
                store.append(text(key, f"for {key}"))
                store.link(RECIPE.id, owner, key)
            store.fail(RECIPE.id, Failure(pair_id("9:3", "1:1"), None, "engine: gone"))
        texts = Store(tmp_path / str(rows)).texts("corpus")
        assert (texts["1:1"].text, texts[pair].text) == ("for k", "for k2")
        assert len(texts) == 3
        assert pair_id("9:3", "1:1") in Store(tmp_path / str(rows)).failures("corpus")


def _full(_):
    raise OSError(28, "No space left on device")


def content(store):
    links = {r.id: dict(store.texts("corpus", r.id)) for r in store.recipes("corpus")}
    failures = {r.id: store.failures("corpus", r.id) for r in store.recipes("corpus")}
    return {t.key: t for t in store}, links, failures


def fill(store, numbers, recipe=RECIPE):
    store.save_recipe(recipe)
    for n in numbers:
        if n % 5 == 4:
            store.fail(recipe.id, Failure(f"1:{n}", f"{n}.jpg", "corrupt: broken", f"k{n}"))
            continue
        store.append(text(f"k{n % 30}", f"text {n % 30}", checks={"words": 2.0}))
        store.link(recipe.id, f"1:{n}", f"k{n % 30}", "picture")


def test_sealed_or_not_a_store_reads_the_same(tmp_path):
    other = replace(RECIPE, model="other")
    with Store(tmp_path / "log") as log, Store(tmp_path / "sealed", seal_rows=19) as sealed:
        for store in (log, sealed):
            fill(store, range(40))
            fill(store, range(20, 30), other)
            store.fail(RECIPE.id, Failure("1:7", None, "late: after its link"))
            store.append(text("k4", "mended"))
            store.link(RECIPE.id, "1:4", "k4")
        assert content(log) == content(sealed), "while writing"
    assert len(wal(tmp_path / "log")) == 1
    assert sum(path.read_bytes().count(b"\n") for path in wal(tmp_path / "sealed")) < 19
    assert len(list((tmp_path / "sealed" / "texts").iterdir())) > 3
    one, two = Store(tmp_path / "log"), Store(tmp_path / "sealed")
    assert content(one) == content(two)
    assert len(one) == len(two) == 25
    for recipe in (RECIPE, other):
        assert len(one.texts("corpus", recipe.id)) == len(two.texts("corpus", recipe.id))
        assert len(two.texts("corpus", recipe.id)) == len(list(two.texts("corpus", recipe.id)))
    assert two.failures("corpus", RECIPE.id)["1:7"].reason.startswith("late")
    assert "1:4" not in two.failures("corpus", RECIPE.id), "it was mended"
    assert two.failures("corpus", RECIPE.id)["1:9"].reason == "corrupt: broken"
    again = pickle.loads(pickle.dumps(two.texts("corpus", RECIPE.id)))  # noqa: S301 - our own
    assert dict(again) == dict(one.texts("corpus", RECIPE.id))


def test_a_crash_while_sealing_doubles_nothing(tmp_path):
    """Every state that sealing passes through: segments there, the log still there."""
    with Store(tmp_path / "a") as store:
        fill(store, range(40))
    before = content(Store(tmp_path / "a"))
    log = wal(tmp_path / "a")[0]
    data = log.read_bytes()
    for _ in range(3):  # three processes seal the same log
        store = Store(tmp_path / "a", seal_rows=1)
        store.adopt()
        assert not log.exists()
        assert content(store) == content(Store(tmp_path / "a")) == before
        log.write_bytes(data)
        assert content(Store(tmp_path / "a")) == before
    assert len(Store(tmp_path / "a")) == len(before[0])
    log.unlink()
    assert content(Store(tmp_path / "a")) == before
    for segment in sorted((tmp_path / "a").rglob("*.parquet")):  # the same under another name
        segment.with_name(f"copy-{segment.name}").write_bytes(segment.read_bytes())
    assert content(Store(tmp_path / "a")) == before
    assert len(Store(tmp_path / "a")) == len(before[0])


def test_the_log_of_a_living_writer_is_never_taken(tmp_path):
    one, two = Store(tmp_path, seal_rows=1_000), Store(tmp_path, seal_rows=1)
    fill(one, range(30))
    two.adopt()
    assert len(wal(tmp_path)) == 1
    fill(one, range(30, 60))
    one.close()
    assert len(Store(tmp_path)) == 24
    foreign = wal(tmp_path)[0]
    foreign = foreign.rename(foreign.with_name("elsewhere_0.1.aa.jsonl"))
    Store(tmp_path, seal_rows=1).adopt()
    assert foreign.exists(), "locks of another host cannot be trusted"


def test_many_processes_writing_and_sealing_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(tmp_path, n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    store = Store(tmp_path)
    assert {t.key: t.text for t in store} == {f"k{n}": f"text {n}" for n in range(120)}
    assert len(store) == len(list(store)) == 120
    assert set(store.texts("corpus")) == {f"1:{n}" for n in range(120)}
    assert len(store.texts("corpus")) == 120


def _work(folder, seed):
    dice = random.Random(seed)
    numbers = list(range(120))
    dice.shuffle(numbers)
    for start in range(0, 120, 40):
        with Store(folder, seal_rows=23) as store:
            store.save_recipe(RECIPE)
            store.adopt()
            for n in numbers[start : start + 40]:
                store.append(text(f"k{n}", f"text {n}"))
                store.link(RECIPE.id, f"1:{n}", f"k{n}")


def test_a_refused_text_is_replaced_by_the_accepted_one_of_a_retry(tmp_path):
    for sealed in (1_000, 1):
        folder = tmp_path / str(sealed)
        with Store(folder, seal_rows=sealed) as store:
            store.save_recipe(RECIPE)
            store.append(text("k", "a a a a", rejected="repetition"))
            store.link(RECIPE.id, "1:1", "k")
            assert store.texts("corpus")["1:1"].rejected
            store.append(text("k2", "b b b b", rejected="repetition", retry_of="k"))
            assert store.texts("corpus")["1:1"].text == "a a a a"
            store.append(text("k3", "good", retry_of="k"))
            assert store.texts("corpus")["1:1"].text == "good"
        assert Store(folder).texts("corpus")["1:1"].text == "good"


def test_a_store_of_another_format_is_refused(tmp_path):
    (tmp_path / "store.json").write_text('{"format": 2}')
    with pytest.raises(StoreError, match="format 2"):
        Store(tmp_path)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 9))), st.booleans())
def test_the_index_finds_the_row_that_counts(rows, latest):
    codes = np.array([(high, low) for high, low, _ in rows], np.uint64).reshape(-1, 2)
    at = np.array([time for *_, time in rows], np.int64)
    index = RowIndex(codes, at, latest)
    best = max if latest else min
    for high in range(7):
        for low in range(4):
            times = [time for h, low_, time in rows if (h, low_) == (high, low)]
            wanted = np.array([[high, low]], np.uint64)
            row = index.find(wanted.tobytes())
            assert (row >= 0) == bool(times)
            if times:
                assert at[row] == best(times)
    assert len(index) == len({tuple(pair) for pair in codes.tolist()})


def test_evidence_needs_a_witness_or_a_repetition():
    def never(key, at):
        return False

    def death(name, keys, seen):
        return Death(name, frozenset(keys), seen, 0)

    assert suspects([death("a", "abcd", False)], never).groups == ()
    assert suspects([death("a", "abcd", True)], never).groups == (frozenset("abcd"),)
    twice = [death("a", "abcd", False), death("b", "cdef", False)]
    assert set().union(*suspects(twice, never).groups) == set("abcdef")
    halved = [death("a", "abcd", True), death("b", "ab", True)]
    assert suspects(halved, never).groups == (frozenset("cd"), frozenset("ab"))
    assert suspects(halved, lambda key, at: key != "b").groups == (frozenset("b"),)
    alone = [death(str(n), "b", True) for n in range(2)]
    assert suspects(alone, never).aside == {"b"}
    unseen = [death(str(n), "b", False) for n in range(4)]
    assert suspects(unseen, never).aside == set()
    assert suspects([*unseen, death("x", "b", False)], never).aside == {"b"}


def test_everything_that_changes_the_answer_counts_and_item_and_path_do_not():
    base = (Request("1:1", "s", "t", ("a",)), "hash", "m", "r", Sampling(), {})
    changed = [
        (0, Request("1:1", "s2", "t", ("a",))),
        (0, Request("1:1", "s", "t2", ("a",))),
        (1, "other"),
        (1, None),
        (2, "m2"),
        (3, "r2"),
        (4, Sampling(max_new_tokens=2)),
        (4, Sampling(temperature=0.1)),
        (4, Sampling(top_p=0.1)),
        (4, Sampling(temperature=0.1, seed=1)),
        (5, {"max_pixels": 9}),
    ]
    keys = [text_key(*base[:at], value, *base[at + 1 :]) for at, value in changed]
    assert len({text_key(*base), *keys}) == len(changed) + 1
    assert text_key(Request("1:2", "s", "t", ("b",)), *base[1:]) == text_key(*base)
    seeded = text_key(*base[:4], Sampling(seed=1), {})
    assert seeded == text_key(*base), "greedy decoding draws no numbers"
