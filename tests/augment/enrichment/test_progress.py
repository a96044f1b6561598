"""What a run says of itself while it goes on."""

import itertools
import time

import pytest

from augment import corpus
from augment.enrichment import account
from augment.enrichment.account import Progress
from augment.enrichment.command import guarded
from augment.store.upkeep import duration
from tests.augment.store.test_report import made  # noqa: F401  # a root with pictures


@pytest.fixture
def clock(monkeypatch):
    """Time that goes by when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(account.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_a_line_has_rate_rest_tokens_and_failures(clock, capsys):
    shown = Progress("corpus", 1000, known=400)
    shown.add(400, cached=400)  # costs nothing
    clock(20)
    shown.add(100, new=90, failed=10, tokens=1800)
    assert capsys.readouterr().err == (
        "corpus: 500 of 1,000 items, 4.5/s, 1 min 40 s left, 90 tokens/s, 10 failed\n"
    )
    clock(1)
    shown.add(1)
    assert capsys.readouterr().err == "", "a line every ten seconds, no more"


@pytest.mark.parametrize(
    ("known", "before", "left"),
    [
        (0, {}, "1 min 30 s"),  # one in a second, 90 to come
        (60, {}, "30 s"),  # of which 60 have a text
        (60, {"done": 60, "cached": 60}, "30 s"),  # the first 60 of them
        (0, {"done": 10}, "40 s"),  # every second one is left alone
        (95, {"done": 10}, "0 s"),  # all that come
    ],
)
def test_what_will_not_be_asked_takes_no_time(clock, capsys, known, before, left):
    shown = Progress("corpus", 100, known)
    shown.add(**{"done": 0, **before})
    clock(10.001)
    shown.add(10, new=10)
    assert f", {left} left" in capsys.readouterr().err


def test_it_says_when_the_model_waits_for_images_and_when_no_longer(clock, capsys):
    shown = Progress("corpus", None)
    said = []
    for waited in (1.0, 9.0, 9.5):  # seconds so far, of 12, 24 and 36
        clock(12)
        shown.waited(waited)
        shown.add(10, new=10)
        said.append("the model is waiting for images (67 % of the time)" in capsys.readouterr().err)
    assert said == [False, True, False]


def test_durations():
    assert [*map(duration, (3, 125, 4020))] == ["3 s", "2 min 05 s", "1 h 07 min"]


def test_dry_run_writes_nothing_and_preview_saves(made, tmp_path, capsys):  # noqa: F811
    root, store = made[0], tmp_path / "store"
    arguments = [f"--root={root}", f"--store={store}", "--model=scripted:", "--batch-size=4"]
    assert corpus.command([*arguments, "--dry-run", "--price-written", "1000"]) == 0
    out = capsys.readouterr().out
    assert "39 need a text: 39 requests, 39 different pictures" in out
    assert "1 would fail: 1 missing" in out
    assert "sample: 8 requests" in out
    assert " for tokens" in out
    assert not store.exists()
    assert corpus.command([*arguments, "--preview", "5"]) in (0, 3)
    out = capsys.readouterr().out
    assert out.count("  published") == 5
    shown = [line for line in out.splitlines() if line.startswith("  generated")]
    assert corpus.command(arguments) == 3  # one picture is missing, one is none
    assert f"{len(shown):,} cached" in capsys.readouterr().out
    assert guarded(lambda: corpus.command([*arguments, "--dry-run", "--preview", "5"])) == 2


def test_the_engine_tells_how_long_its_model_waited(tmp_path, monkeypatch):
    from PIL import Image

    from augment.engines import Ask
    from augment.engines import transformers as hf
    from augment.records import Request, Sampling

    for n in range(4):
        Image.new("RGB", (64, 64), (n, 0, 0)).save(tmp_path / f"{n}.png")
    slow = hf.open_image
    monkeypatch.setattr(hf, "open_image", lambda *a, **k: (time.sleep(0.2), slow(*a, **k))[1])
    engine = hf.HFEngine("flagland-vlm", root=tmp_path, batch_size=2, workers=1)
    engine._load()  # not in the time that pictures are opened anyway
    requests = [Request(str(n), "", "Describe.", (f"{n}.png",)) for n in range(4)]
    list(itertools.chain(*engine.batches(Ask(one, Sampling(2)) for one in requests)))
    assert engine.waited >= 0.8  # four pictures, one after the other, before the first batch
