"""Before a run: what a dry run counts and measures, and what a preview chooses and shows."""

from collections import Counter

import pytest
from PIL import Image

from augment.engines.scripted import ScriptedEngine
from augment.enrichment.estimate import (
    Survey,
    Timing,
    choose,
    describe,
    measure,
    show,
    survey,
)
from augment.enrichment.jobs import Job
from augment.prompts import load_prompt
from augment.records import Enrichment, Item, Reply, Sampling
from augment.store import Store
from augment.store.keys import Recipe
from augment.store.runs import Prices

PROMPT = load_prompt("rar/corpus")


@pytest.fixture
def root(tmp_path):
    for n in range(6):
        Image.new("RGB", (8, 8), (n // 2, 0, 0)).save(tmp_path / f"{n}.png")  # three contents
    return tmp_path


def jobs():
    """Six pictures of three contents, one missing, one text alone, one id twice."""
    items = [Item(f"1:{n}", None, (f"{n}.png",), "image") for n in range(7)]
    alone = Item("1:9", "text", (), "text")
    return [*(Job(item, PROMPT, "picture") for item in items), Job(alone, None, "no picture"),
            Job(items[0], PROMPT, "picture")]  # fmt: skip


def recipe_of(engine):
    return Recipe("corpus", {PROMPT.name: PROMPT.id}, engine.model, engine.revision,
                  {PROMPT.name: Sampling()}, {"image": PROMPT.name}, {})  # fmt: skip


def test_a_survey_counts_what_a_run_then_does(root):
    from augment.enrichment.enrich import enrich_jobs

    engine, folder = ScriptedEngine(root=root), root / "store"
    recipe = recipe_of(engine)
    found = survey(jobs(), engine, Store(folder), recipe, root, sample=8)
    assert (found.items, found.asked, found.requests, found.pictures) == (9, 6, 3, 3)
    assert found.skipped == {"no picture": 1, "listed again": 1}
    assert found.failing == {"missing": 1}
    assert not engine.calls
    assert not folder.exists(), "a dry run writes nothing"
    with Store(folder) as store:
        done = enrich_jobs(jobs(), engine, store, recipe, root)
    assert done.generated == found.requests == len(engine.calls)
    assert done.generated + done.duplicates == found.asked
    assert done.failed == found.failing
    again = survey(jobs(), engine, Store(folder), recipe, root, sample=8)
    assert (again.cached, again.asked, again.sample) == (6, 0, [])


def test_the_estimate_is_the_sample_times_the_requests(root):
    replies = [Reply("a", "stop", 100, 10), Reply("b", "length", 100, 30)]
    found = Survey(1000, Counter(), 0, Counter(), 1000, 720, 700)
    said = describe(found, Timing(1.0, 10.0, replies), Prices(read=1.0, written=10.0, gpu_hour=3.0))
    assert "72,000 read, 14,400 written" in said
    # 720 * 5 s; tokens: 0.072 + 0.144; one hour of the device at 3
    assert "1 h 00 min on this machine, 1 hours" in said
    assert "0.22 for tokens, 3.00 for device" in said
    # 1.96 * 720 * sqrt(200 / 2)
    assert "± 14,112" in said
    assert "1 reached the token limit" in said
    engine = ScriptedEngine(root=root, delay=0.01, batch_size=2)
    todo = survey(jobs(), engine, Store(root / "none"), recipe_of(engine), root, sample=3)
    timing = measure(engine, todo.sample)
    assert len(timing.replies) == len(todo.sample)
    assert timing.seconds >= 0.01
    assert "nothing to generate" in describe(Survey(), measure(engine, []), Prices())


def test_a_preview_chooses_uniformly_and_shows_both_texts():
    many = [Job(Item(f"1:{n}", None, (), "text"), PROMPT, "") for n in range(50)]
    many += [Job(Item("1:90", None, (), "text"), None, "left alone"), *many[:10]]
    counts = Counter(job.item.id for seed in range(400) for job in choose(many, 5, seed))
    assert "1:90" not in counts
    assert len(counts) == 50
    # 400 * 5 / 50 = 40 each; six standard deviations
    assert all(4 < number < 76 for number in counts.values())
    chosen = choose(many, 5, 3)
    places = [int(job.item.id[2:]) for job in chosen]
    assert places == sorted(set(places))
    job = Job(Item("1:1", "before\x1b[2J", ("a.png",), "image,text"), PROMPT, "")
    text = Enrichment("k", "1:1", "after", "p", "m", "r", rejected="filler")
    shown = show([job], {"1:1": text})
    assert "published  before\ufffd[2J" in shown
    assert "generated  after" in shown
    assert "refused    filler" in shown
