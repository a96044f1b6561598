"""Mixtures of views and sentence sampling: frequencies, repeatable draws, fingerprints."""

from collections import Counter
from itertools import combinations
from random import Random

import pytest

from augment.data import DataRoot
from augment.errors import DataError, MismatchError
from augment.records import Enrichment, Item, Query, Sampling
from augment.store import Store
from augment.store.keys import Recipe
from augment.views import open_view
from retrievers.cli import USER_ERROR, main
from retrievers.data.mixtures import (
    SentenceSampling,
    make_mixture,
    named_views,
    sample_sentences,
)
from retrievers.data.module import MBeirData
from retrievers.data.texts import TextRecipe, ViewConfig, check_recipe
from retrievers.models.load import load, open_recipe
from tests.retrievers.test_cli_retrievers import options
from tests.worlds import World

RECIPE = Recipe("corpus", {"p": "p@1"}, "m", "r", {"p": Sampling()}, {"image": "p"})
ITEM = Item("1:1", "Old.", ("a.jpg",), "image,text")
TEXTS = {"Old.": "raw", "Old.\nOne. Two.": "dense", "Old.\nbrief": "short", "One. Two.": "replaced"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("store")
    lengths = {"dense": "One. Two.", "short": "brief", "sentences": "One.\nTwo."}
    with Store(path) as store:
        store.save_recipe(RECIPE)
        store.append(Enrichment("k", "1:1", "One. Two.", "p@1", "m", "r", lengths=lengths))
        store.link(RECIPE.id, "1:1", "k")
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("mixtures"))


def config(folder, **given):
    return ViewConfig("append", str(folder), **given)


def mixture(folder, **given):
    made = config(folder, **given)
    return made.mixture("corpus", made.open("corpus"))


def drawn(mixed, item=ITEM, times=4000):
    return Counter(mixed.draw(item, Random(f"0:{n}:{item.id}")) for n in range(times))


def test_frequencies(folder):
    mix = {"dense": 5, "short": 2, "raw": 1, "replace:dense": 2}
    found = drawn(mixture(folder, mix=mix, dropout=0.2))
    # Dropout takes its share of everything, and is the published text alone.
    expected = {"raw": 0.2 + 0.08, "dense": 0.4, "short": 0.16, "replaced": 0.16}
    assert {TEXTS[text] for text in found} == set(expected)
    for text, count in found.items():
        share = expected[TEXTS[text]]
        assert abs(count / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5  # four sigma


def test_dropout_alone(folder):
    found = drawn(mixture(folder, dropout=0.25))
    assert set(map(TEXTS.__getitem__, found)) == {"raw", "dense"}
    assert 0.22 < found["Old."] / 4000 < 0.28
    alone = Item("1:1", None, ("a.jpg",), "image")
    assert set(drawn(mixture(folder, dropout=0.5), alone)) == {None, "One. Two."}
    # An item that would be left with nothing keeps its text.
    assert set(drawn(mixture(folder, dropout=0.5), Item("1:1", None, (), "text"))) == {"One. Two."}


@pytest.mark.parametrize("view", ["raw", "append"])
def test_a_mark_stands_before_every_drawn_text(folder, view):
    mix = {"raw": 1, "append:dense": 2, "replace:dense": 1}
    plain = ViewConfig(view, str(folder), mix=mix)
    marked = ViewConfig(view, str(folder), mix=mix, mark="short")
    one, other = (made.mixture("corpus", made.open("corpus")) for made in (plain, marked))
    assert one.name != other.name
    want = {f"[image,text] {text}": count for text, count in drawn(one).items()}
    assert drawn(other) == want
    assert len(want) == 3


def test_order_of_settings_changes_no_draw_and_no_name(folder):
    one = mixture(folder, mix={"dense": 0.5, "short": 0.3, "raw": 0.2})
    other = mixture(folder, mix={"raw": 2, "short": 3, "dense": 5})
    assert one.name == other.name
    for n in range(50):
        assert one.draw(ITEM, Random(n)) == other.draw(ITEM, Random(n))


def test_name_covers_every_setting(folder):
    base = {"mix": {"dense": 1, "short": 1}, "dropout": 0.1}
    variants = [
        base,
        {**base, "mix": {"dense": 1, "short": 2}},
        {**base, "mix": {"dense": 1, "sentences": 1}},
        {**base, "dropout": 0.2},
        {**base, "length": "short"},
        *({**base, "sentences": SentenceSampling(*given)} for given in (
            (0.5,), (0.6,), (0.5, 2), (0.5, None, 0.5), (0.5, None, 1.0, True))),
    ]  # fmt: skip
    assert len({mixture(folder, **given).name for given in variants}) == len(variants)
    assert mixture(folder) is None
    assert mixture(folder, sentences=SentenceSampling(0.5)).name.startswith("mix(append:")


def test_unusable_mixtures(folder):
    for given, message in [
        ({"mix": {"long": 1}}, "unknown text 'long'"),
        ({"mix": {"short": 1}}, r"\(append, dense\) has no share"),
        ({"mix": {"dense": -1}}, "0 or more"),
        ({"mix": {"dense": 0}}, "sum to 0"),
        ({"dropout": 1.0}, "below 1"),
    ]:
        with pytest.raises(DataError, match=message):
            mixture(folder, **given)
    raw = ViewConfig(mix={"raw": 1, "append:dense": 1})
    with pytest.raises(DataError, match="name the store"):
        raw.mixture("corpus", raw.open("corpus"))
    with pytest.raises(DataError, match="write append:dense"):
        make_mixture(open_view("corpus"), {"raw": 1, "dense": 1})
    with pytest.raises(DataError, match=r"sentences\.share"):
        SentenceSampling(1.5)
    with pytest.raises(DataError, match=r"sentences\.most"):
        SentenceSampling(1, 0)


def test_published_text_can_be_the_named_view(folder):
    made = ViewConfig("raw", str(folder), mix={"raw": 1, "append:short": 1})
    found = drawn(made.mixture("corpus", made.open("corpus")))
    assert {TEXTS[text] for text in found} == {"raw", "short"}


def test_a_view_of_the_mixture_may_be_shown_and_no_other(folder):
    mixed = config(folder, mix={"dense": 1, "short": 1}, dropout=0.1)
    view = mixed.open("corpus")
    query = open_view("query")
    recipe = TextRecipe(query, view, "plain", None, {"corpus": mixed.mixture("corpus", view)})
    trained = recipe.trained
    assert trained["corpus"] != recipe.fingerprint["corpus"]
    assert named_views(trained["corpus"])[0] == view.name
    known = (view, view.other("raw"), view.other("append", "short"))
    for shown in known:
        check_recipe(trained, TextRecipe(query, shown, "plain", None).fingerprint, allow=False)
    for foreign in (view.other("replace"), view.other("append", "sentences")):
        with pytest.raises(MismatchError, match="corpus: trained on mix"):
            check_recipe(trained, TextRecipe(query, foreign, "plain", None).fingerprint, False)
    # Going on with training needs the mixture itself.
    check_recipe(trained, recipe.trained, allow=False, exact=True)
    with pytest.raises(MismatchError):
        check_recipe(trained, recipe.fingerprint, allow=False, exact=True)


def test_nothing_is_drawn_outside_training(world):
    mixed = ViewConfig("append", str(world.store), mix={"dense": 1}, dropout=0.5)
    data = MBeirData(str(world.root), corpus=mixed, seed=3)
    pairs, plan = data.training(world.retriever.collator())
    size = len(pairs)
    texts = {key: pairs[key].positive.example.text for key in range(4 * size)}
    again = {key: pairs[key].positive.example.text for key in reversed(range(4 * size))}
    assert texts == again, "a draw depends on the key alone"
    epochs = [[texts[n * size + row] for row in range(size)] for n in range(4)]
    assert len(set(map(tuple, epochs))) == 4, "each epoch draws anew"
    for item in map(plan.item, range(len(plan))):
        shown = data.recipe.corpus_view.text(item)
        assert data.recipe.candidate(item) == shown.strip()
    query, target = plan.queries[0]
    assert isinstance(query, Query)
    assert data.recipe.query(query, target) == data.recipe.query(query, target, None, "")


@pytest.mark.parametrize("mark", ["none", "words"])
def test_a_checkpoint_of_a_mixture_is_searched_with_the_named_view(world, mark):
    mixed = ViewConfig("append", str(world.store), mix={"dense": 1, "short": 1}, mark=mark)
    raw = ViewConfig(mark=mark)
    path = world.checkpoint(f"mixed-{mark}", raw, mixed)
    retriever = load(path)
    retriever.trained_on = {
        **retriever.trained_on,
        "corpus": mixed.mixture("corpus", mixed.open("corpus")).name,
    }
    recipe = open_recipe(retriever.trained_on, DataRoot(world.root), world.store)
    assert recipe.corpus_view.name == mixed.open("corpus").name
    assert recipe.query_view.name == raw.open("query").name


def test_fit_and_test_from_the_command_line(world, tmp_path, capsys):
    folder = (world.root, world.config, None)
    stored = [f"--data.corpus.store={world.store}", "--data.corpus.view=append"]
    mixed = ["--data.corpus.mix.dense=2", "--data.corpus.mix.short=1", "--data.corpus.dropout=0.2"]
    few = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.on_bad_image=skip"]
    assert main(["fit", *options(folder, tmp_path / "fit", *stored, *mixed, *few)]) == 0
    checkpoint = f"--ckpt_path={tmp_path / 'fit' / 'checkpoints' / 'last.ckpt'}"
    for name, given in {
        "same": [*stored, *mixed], "named": stored, "raw": [],
        "short": [*stored, "--data.corpus.length=short"],
    }.items():  # fmt: skip
        arguments = options(folder, tmp_path / name, *given, *few, checkpoint)
        assert main(["test", *arguments]) == 0, name
    same, named = (tmp_path / name / "squares_task0.local.trec" for name in ("same", "named"))
    assert same.read_text() == named.read_text(), "the same text and the same fingerprint"
    foreign = options(folder, tmp_path / "foreign", *stored, *few, checkpoint)
    assert main(["test", *foreign, "--data.corpus.view=replace"]) == USER_ERROR
    assert "trained on mix(append:" in capsys.readouterr().err
    assert main(["fit", *options(folder, tmp_path / "on", *stored, *few, checkpoint)]) == USER_ERROR


def test_bm25_refuses_what_only_training_knows(world, tmp_path):
    arguments = [f"--root={world.root}", f"--out={tmp_path}", "--corpus.dropout=0.5"]
    assert main(["bm25", "--config=bm25", *arguments]) == USER_ERROR


def reference(first, second, sampling):
    """All texts that sampling may give, by enumeration over what it may drop."""
    sentences = [(0, s) for s in first] + [(1, s) for s in second]
    summary = (1, second[0]) if second else (0, first[0])
    texts = set()
    for dropped in {sampling.summary_drop > 0, sampling.summary_drop == 1}:
        left = [s for s in sentences if not (dropped and s == summary and len(sentences) > 1)]
        most = min(sampling.most or len(left), len(left))
        for number in range(1, most + 1):
            for kept in combinations(left, number):
                lines = [" ".join(s for place, s in kept if place == n) for n in (0, 1)]
                texts.add("\n".join(line for line in lines if line))
    return texts


@pytest.mark.parametrize(
    ("published", "generated"),
    [(["A a.", "B b."], ["C c.", "D d.", "E e."]), (["A a.", "B b.", "C c."], []), ([], ["A a."])],
)
@pytest.mark.parametrize(
    "sampling",
    [SentenceSampling(1), SentenceSampling(1, 2, 0.5), SentenceSampling(1, 1, 0)],
)
def test_sampled_sentences_are_all_that_may_be_and_nothing_else(published, generated, sampling):
    def draw(n):
        parts = (" ".join(published) or None, " ".join(generated) or None)
        return sample_sentences(*parts, sampling, Random(n))

    found = {draw(n) for n in range(1500)}
    assert found == reference(published, generated, sampling)


def test_sampling_leaves_the_rest_whole():
    text = "A a. B b.\nC c."
    half = SentenceSampling(0.5)
    whole = sum(sample_sentences(text, None, half, Random(n)) == text for n in range(2000))
    assert 0.45 < whole / 2000 < 0.55
    assert sample_sentences(None, None, SentenceSampling(1), Random(0)) is None
    shuffled = SentenceSampling(1, None, 0, shuffle=True)
    found = {sample_sentences("A a. B b.", None, shuffled, Random(n)) for n in range(200)}
    assert found == {"A a.", "B b.", "A a. B b.", "B b. A a."}
