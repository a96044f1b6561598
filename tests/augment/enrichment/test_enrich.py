"""Enrichment: every item is counted once, equal requests are asked once, nothing is lost."""

import os
import random
import signal
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from augment.checks import Forbidden, Limits
from augment.data.images import content_hash
from augment.engines import Engine
from augment.engines.scripted import ScriptedEngine
from augment.enrichment.account import Summary
from augment.enrichment.enrich import enrich_jobs
from augment.enrichment.jobs import Job, Retry, Share, parse_shard
from augment.enrichment.supervise import draining
from augment.errors import DataError, StoreError
from augment.prompts import load_prompt
from augment.records import Item, Reply, Sampling, one_picture
from augment.store import Store
from augment.store.keys import Recipe
from augment.store.log import decode

CORPUS, HIDDEN = load_prompt("rar/corpus"), load_prompt("rar/modification")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    for n in range(6):
        Image.new("RGB", (8 + n, 8), (40 * n, 9, 9)).save(tmp_path / "root" / f"{n}.png")
    return tmp_path / "root"


def job(n, image="0.png", text="words", prompt=CORPUS, reason="picture"):
    return Job(Item(f"1:{n}", text, one_picture(image), "image,text"), prompt, reason)


def run(jobs, root, engine=None, **options):
    engine = engine or ScriptedEngine(root=root, batch_size=2)
    prompts = (CORPUS, HIDDEN)
    recipe = Recipe(
        "corpus",
        {p.name: p.id for p in prompts},
        engine.model,
        engine.revision,
        {p.name: Sampling(p.max_new_tokens) for p in prompts},
        {"image": CORPUS.name},
    )
    with Store(root.parent / "store") as store:
        return enrich_jobs(jobs, engine, store, recipe, root, **options)


def texts(root):
    return {item: t.text for item, t in Store(root.parent / "store").texts("corpus").items()}


def counts(summary):
    failed, skipped = summary.failed.total(), summary.skipped.total()
    return summary.total, summary.generated, summary.cached, skipped, failed


def test_every_outcome_is_counted(root):
    (root / "bad.png").write_bytes(b"no picture")
    jobs = [
        job(1),
        job(2),  # sends the same as 1
        job(3, "1.png"),
        job(3, "1.png"),  # listed again
        job(3, "2.png"),  # the id of another
        job(4, None, prompt=None, reason="no picture"),
        job(5, "bad.png"),
        job(6, "absent.png"),
    ]
    summary = run(jobs, root)
    assert counts(summary) == (8, 2, 1, 2, 3)
    assert summary.duplicates == 1
    assert summary.skipped == {"listed again": 1, "no picture": 1}
    assert summary.failed == {"duplicate-id": 1, "corrupt": 1, "missing": 1}
    assert summary.exit_code == 3
    assert {f.item_id: f.image for f in summary.failures}["1:5"] == "bad.png"
    again = run(jobs, root)
    assert counts(again) == (8, 0, 3, 2, 3), "failures are tried again, the rest is known"


def test_one_picture_under_many_names_is_asked_once(root):
    (root / "copy.png").write_bytes((root / "0.png").read_bytes())
    engine = ScriptedEngine(root=root)
    summary = run([job(1), job(2, "copy.png"), job(3, text="other")], root, engine)
    assert len(engine.calls) == 2
    assert texts(root)["1:1"] == texts(root)["1:2"] != texts(root)["1:3"]
    # Moving the pictures changes no key.
    (root / "moved").mkdir()
    for name in ("0.png", "copy.png"):
        (root / name).rename(root / "moved" / name)
    assert run([job(1, "moved/0.png")], root).cached == 1
    assert summary.generated == 2


@pytest.mark.parametrize("ahead", [1, 3, 100])
def test_reading_ahead_and_batches_do_not_change_the_texts(root, ahead):
    dice = random.Random(ahead)
    jobs = [job(n, f"{dice.randrange(6)}.png", dice.choice("abc")) for n in range(60)]
    summary = run(jobs, root, ahead=ahead)
    assert summary.generated == len({(j.item.image, j.item.text) for j in jobs})
    assert summary.generated + summary.duplicates == 60
    for one in jobs:
        image = content_hash(root, one.item.image)[:12]
        assert image in texts(root)[one.item.id]


def test_a_changed_prompt_regenerates_only_its_own(root):
    def jobs(corpus):
        return [job(1, prompt=corpus), job(2, text="longer", prompt=HIDDEN)]

    changed = replace(CORPUS, user=CORPUS.user + " Be brief.")
    run(jobs(CORPUS), root)
    before = texts(root)
    assert counts(run(jobs(changed), root))[1:3] == (1, 1)
    assert counts(run(jobs(CORPUS), root))[1:3] == (0, 2)
    assert texts(root) == before


def test_a_prompt_that_withholds_the_picture_never_opens_it(root):
    (root / "0.png").unlink()
    summary = run([job(1, prompt=HIDDEN), job(2, "../outside.png", prompt=HIDDEN)], root)
    assert summary.exit_code == 0
    assert "picture" not in texts(root)["1:1"]


def test_refused_texts_are_kept_with_their_reason_and_not_asked_again(root):
    engine = ScriptedEngine(["I'm sorry, I can't.", "```\nA **red** flag\n```"], root=root)
    jobs = [job(1), job(2, "1.png")]
    summary = run(jobs, root, engine)
    assert summary.rejected == {"refusal": 1}
    stored = Store(root.parent / "store").texts("corpus")
    assert (stored["1:1"].rejected, stored["1:1"].text) == ("refusal", "I'm sorry, I can't.")
    assert (stored["1:2"].rejected, stored["1:2"].text) == ("", "A red flag")
    assert run(jobs, root, engine).cached == 2


def test_a_dead_model_leaves_what_was_done(root):
    jobs = [job(n, text=str(n)) for n in range(7)]
    summary = run(jobs, root, ScriptedEngine(root=root, batch_size=2, die_after=4))
    assert summary.exit_code == 4
    assert (summary.generated, summary.pending) == (4, 3)
    assert "scripted death" in str(summary)
    assert counts(run(jobs, root)) == (7, 3, 4, 0, 0)


def test_items_that_fail_in_the_model_are_tried_again(root):
    jobs = [job(n, text=str(n)) for n in range(6)]
    summary = run(jobs, root, ScriptedEngine(root=root, fail_every=3))
    assert (summary.generated, summary.failed) == (4, {"scripted": 2})
    assert len(Store(root.parent / "store").failures("corpus")) == 2
    assert counts(run(jobs, root)) == (6, 2, 4, 0, 0)
    assert not Store(root.parent / "store").failures("corpus")


def test_stopping_finishes_the_batch_and_reads_no_more(root):
    jobs = (job(n, text=str(n)) for n in range(1000))
    asked = iter([False, True, True])
    summary = run(jobs, root, stop=lambda: next(asked), ahead=10)
    assert (summary.total, summary.generated, summary.pending) == (13, 4, 9)
    assert summary.exit_code == 4
    assert len(texts(root)) == 4


def test_cut_anywhere_the_next_run_ends_with_the_same_texts(root):
    """The write-ahead file cut at many lengths stands for a kill at every moment."""
    jobs = [job(n, f"{n % 6}.png", str(n % 9)) for n in range(24)]
    run(jobs, root)
    whole = texts(root)
    (wal,) = (root.parent / "store" / "wal").glob("*")
    data = wal.read_bytes()
    wal.unlink()
    dice = random.Random(0)
    for _ in range(25):
        wal.write_bytes(data[: dice.randrange(len(data))])
        run(jobs, root)
        assert texts(root) == whole
        keys = Counter(t.key for t in Store(root.parent / "store"))
        written = sum(
            (decode(line + b"\n") or {"kind": "torn"})["kind"] == "text"
            for path in wal.parent.glob("*")
            for line in path.read_bytes().split(b"\n")
        )
        assert written == len(keys), "a text was generated twice"
        for path in wal.parent.glob("*"):
            path.unlink()


def test_an_unwritable_store_ends_the_run(root):
    (root.parent / "store").write_text("a file, not a folder")
    with pytest.raises(StoreError, match="Not a directory"):
        run([job(1)], root)


def test_a_sum_that_does_not_fit_is_a_defect():
    with pytest.raises(RuntimeError, match="do not add up"):
        Summary(total=2, generated=1).verify()


def test_the_first_signal_asks_the_second_stops(capsys, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with draining() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        os.kill(os.getpid(), signal.SIGINT)  # at once: the same Ctrl-C by another way
        monkeypatch.setattr("augment.enrichment.supervise.SAME_SIGNAL_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err.count("once more") == 1


LADDER = ("a a a a. " * 9, "b b b b. " * 9, "A red flag.")


def test_a_retry_climbs_the_ladder_until_a_text_is_accepted(root):
    jobs = [job(1), job(2), job(3, "1.png")]
    engine = ScriptedEngine([LADDER[0], "A blue flag."], root=root, batch_size=1)
    first = run(jobs, root, engine)
    assert first.rejected == {"repetition": 1}
    engine = Climbing(root, engine.revision)
    summary = run(jobs, root, engine, retry=Retry(("repetition",), (0.3, 0.6, 0.9)))
    assert engine.temperatures == [0.3, 0.6]
    assert counts(summary) == (3, 1, 2, 0, 0)
    assert texts(root) == {"1:1": "A red flag.", "1:2": "A red flag.", "1:3": "A blue flag."}
    again = run(jobs, root, engine, retry=Retry(("repetition",)))
    assert counts(again) == (3, 0, 3, 0, 0)
    assert counts(run(jobs, root, engine)) == (3, 0, 3, 0, 0), "a plain run keeps it"
    assert len(engine.temperatures) == 2


class Climbing(Engine):
    """Repeats itself until it is asked at a temperature above one half."""

    def __init__(self, root, revision):
        self.temperatures = []
        self._revision = revision

    model = "scripted"

    @property
    def revision(self):
        return self._revision

    def batches(self, asked):
        for n, (_, sampling) in enumerate(asked):
            self.temperatures.append(sampling.temperature)
            yield [(n, Reply(LADDER[2] if sampling.temperature > 0.5 else LADDER[1]))]


def test_other_limits_judge_stored_texts_again_and_generate_nothing(root):
    jobs = [job(n, f"{n}.png") for n in range(3)]
    engine = ScriptedEngine(["A red flag.", "A flag, all of it green.", "A flag."], root=root)
    strict = Limits(slack=3 / CORPUS.max_words)
    assert run(jobs, root, engine).judged == {}
    summary = run(jobs, root, engine, limits=strict)
    assert (counts(summary), summary.judged) == ((3, 0, 3, 0, 0), {"accepted": 2, "too long": 1})
    stored = Store(root.parent / "store").texts("corpus")
    assert stored["1:1"].rejected == f"too long: 6 words, {CORPUS.max_words} asked for"
    assert not stored["1:0"].rejected
    assert run(jobs, root, engine, limits=strict).judged == {}, "once is enough"
    assert run(jobs, root, engine).judged == {"accepted": 3}
    assert not Store(root.parent / "store").texts("corpus")["1:1"].rejected
    assert len(engine.calls) == 3


def test_a_retry_heeds_the_limits_of_its_own_run(root):
    strict = Limits(slack=3 / CORPUS.max_words)
    jobs = [job(1)]
    long = ScriptedEngine(["A flag, all of it green."], root=root, revision="r")
    short = ScriptedEngine(["A green flag."], root=root, revision="r")
    run(jobs, root, long)
    assert run(jobs, root, short, retry=Retry(("too long",))).generated == 0
    assert run(jobs, root, short, retry=Retry(("too long",)), limits=strict).generated == 1
    assert texts(root) == {"1:1": "A green flag."}
    assert run(jobs, root, long, limits=strict).judged == {}
    assert texts(root) == {"1:1": "A green flag."}
    run(jobs, root, long)
    assert texts(root) == {"1:1": "A flag, all of it green."}, "which these limits accept"


def test_a_verdict_belongs_to_the_item_and_a_text_to_all_that_send_the_same(root):
    rewrite = replace(HIDDEN, kind="rewrite", keeps=False, max_added_words=None)

    def asks(*numbers):
        told = {1: "Paris", 2: "Oslo", 3: "Oslo"}
        return [
            job(n, None, "its capital?", rewrite)._replace(
                forbidden=lambda n=n: Forbidden((), (told[n],))
            )
            for n in numbers
        ]

    engine = ScriptedEngine(["Which city in France is like Paris?"], root=root)
    summary = run(asks(1, 2), root, engine)
    assert counts(summary)[1:3] == (1, 1)
    run(asks(1, 2, 3), root, engine)
    stored = Store(root.parent / "store").texts("corpus")
    assert {item: text.rejected for item, text in stored.items()} == {
        "1:1": "leak: Paris",
        "1:2": "",
        "1:3": "",
    }
    assert len(engine.calls) == 1


def test_a_long_stretch_of_known_items_does_not_hold_finished_replies_back(root):
    """Between two new items lie many known ones; the first reply is saved before these are read."""
    known = [job(n, text=str(n)) for n in range(400)]
    run(known, root)
    saved = []

    def jobs():
        yield job(1000, "1.png")
        for n, one in enumerate(known):
            if n > 300:
                saved.append(len(texts(root)))
            yield one
        yield job(1001, "2.png")

    summary = run(jobs(), root, ScriptedEngine(root=root, batch_size=8), ahead=1)
    assert summary.generated == 2
    assert saved[0] == 401


def test_a_retry_takes_its_reasons_only(root):
    (root / "bad.png").write_bytes(b"no picture")
    jobs = [job(1), job(2, "1.png"), job(3, "bad.png")]
    run(jobs, root, ScriptedEngine(root=root, batch_size=1, fail_every=2))
    summary = run([*jobs, job(4, "2.png")], root, retry=Retry(("scripted",)))
    assert counts(summary) == (4, 1, 1, 1, 1)
    assert summary.skipped == {"not generated yet, nothing to retry": 1}, "new items are left alone"


def test_pictures_are_read_once_over_all_runs(root, monkeypatch):
    jobs = [job(1), job(2, "1.png"), job(3, "2.png")]
    for path in root.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    run(jobs, root)
    read = []
    monkeypatch.setattr(
        "augment.data.images.content_hash",
        lambda *args: read.append(args[1]) or content_hash(*args),
    )
    assert run(jobs, root).cached == 3
    assert read == []
    # The same size and time, another file.
    Image.new("RGB", (8, 8), (200, 9, 9)).save(root / "new.png")
    (root / "new.png").replace(root / "0.png")
    os.utime(root / "0.png", (1_000_000_000, 1_000_000_000))
    assert run(jobs, root).generated == 1
    assert read == ["0.png"]
    # Just changed: the clock may be too coarse to see the next change.
    (root / "1.png").touch()
    run(jobs, root)
    run(jobs, root)
    assert read == ["0.png", "1.png", "1.png"]


def test_a_picture_that_is_replaced_on_the_way_fails_and_is_taken_as_it_is_by_the_next_run(
    root, monkeypatch
):
    """Between hashing and reading, in place and by another file."""

    def starting(engine, requests):
        for n in range(3):
            Image.new("RGB", (8 + n, 8), (7, 7, 7 * n)).save(root / "new.png")
            (root / f"{n}.png").write_bytes((root / "new.png").read_bytes())

    jobs = [job(n, f"{n}.png") for n in range(6)]
    with monkeypatch.context() as patched:
        patched.setattr(ScriptedEngine, "starting", starting)
        summary = run(jobs, root, ScriptedEngine(root=root, batch_size=6))
    assert summary.failed == {"changed": 3}
    assert set(texts(root)) == {"1:3", "1:4", "1:5"}
    assert run(jobs, root).generated == 3
    for item, text in Store(root.parent / "store").texts("corpus").items():
        seen = content_hash(root, f"{item[2:]}.png")
        assert seen[:12] in text.text
        assert text.picture == seen


def test_shards_cover_everything_once_and_keep_pictures_together(root):
    items = [job(n, f"{n % 6}.png").item for n in range(60)]
    shares = [[item for item in items if Share(n, 4).takes(item)] for n in range(4)]
    assert sorted(item.id for share in shares for item in share) == sorted(i.id for i in items)
    pictures = [{item.image for item in share} for share in shares]
    assert sum(map(len, pictures)) == len(set().union(*pictures)) == 6
    assert parse_shard(None) == (0, 1)
    assert parse_shard("auto", {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}) == (3, 8)
    assert parse_shard("auto", {"RANK": "0", "WORLD_SIZE": "2"}) == (0, 2)
    for wrong in ("2/2", "x", "1", "-1/2", "0/0"):
        with pytest.raises(DataError, match="expected i/n"):
            parse_shard(wrong)
    with pytest.raises(DataError, match="srun or torchrun"):
        parse_shard("auto", {})
