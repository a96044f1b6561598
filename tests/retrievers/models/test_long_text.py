"""Text beyond the context: counted, stretched positions, windows; SigLIP keeps its padding."""

import json
from types import SimpleNamespace

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SigLipTokenizer, SimpleTokenizer
from torch.nn import functional

from augment.checks.lengths import split_sentences
from augment.data import write_candidates
from augment.errors import DataError
from augment.records import Item
from retrievers.cli import main
from retrievers.data.examples import Candidate, Example, PairCollator, PairExample
from retrievers.data.module import MBeirData
from retrievers.models.audit import audit_plan, audit_training
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.load import load, load_weights
from retrievers.models.long_text import (
    LongText,
    count_tokens,
    pool_windows,
    split_windows,
    stretch_positions,
)
from retrievers.models.towers import encode_text, load_clip
from retrievers.training.module import Contrastive
from tests.retrievers.models.test_retriever import CONFIG, checkpoint_of, make_config, make_root
from tests.retrievers.test_cli_retrievers import options, plain_options

LONG = "A red flag. It has four stars. A blue ring stands below. The border is of gold and thin."
SIGLIP = {
    **CONFIG,
    "text_cfg": {**CONFIG["text_cfg"], "no_causal_mask": True, "pool_type": "last"},
    "custom_text": True,
}


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return make_config(tmp_path_factory.mktemp("siglip"), SIGLIP, "squares-padded")


def built(config, **given):
    torch.manual_seed(0)
    return ClipScoreFusion(config, **given).eval()


def embed(retriever, *texts, images=None):
    pictures = images or [None] * len(texts)
    examples = [Example(n, text, pictures[n]) for n, text in enumerate(texts)]
    with torch.no_grad():
        return retriever.encode(retriever.collator()(examples, "query"), "corpus").vectors


def slow_stretch(positions, factor, keep):
    """One position after the other, as a recipe would say it."""
    rows = [positions[n] for n in range(keep)]
    for n in range(keep, len(positions)):
        if n + 1 < len(positions):
            here, there = positions[n], positions[n + 1]
        else:
            here, there = positions[n], 2 * positions[n] - positions[n - 1]
        for part in range(factor):
            rows.append((1 - part / factor) * here + part / factor * there)
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("old", "factor", "keep", "new"),
    [(77, 4, 20, 248), (77, 1, 20, 77), (16, 2, 4, 28), (16, 3, 0, 48), (16, 2, 16, 16),
     (16, 2, 15, 17)],
)  # fmt: skip
def test_stretch_against_a_loop(old, factor, keep, new):
    positions = torch.randn(old, 5, generator=torch.Generator().manual_seed(1))
    found = stretch_positions(positions, factor, keep)
    assert found.shape == (new, 5)
    torch.testing.assert_close(found, slow_stretch(positions, factor, keep))
    assert torch.equal(found[:keep], positions[:keep])
    assert torch.equal(found[keep::factor], positions[keep:])


def test_stretched_model_reads_on_and_knows_short_text_as_before(config):
    plain = built(config)
    stretched = built(config, text=LongText(stretch=2, keep=8))
    assert stretched.collator().tokenize(["a"]).shape == (1, 24)
    assert plain.collator().tokenize(["a"]).shape == (1, 16)
    assert torch.equal(embed(plain, "a red flag"), embed(stretched, "a red flag"))
    other = LONG.replace("border", "margin")  # token 17
    assert torch.equal(embed(plain, LONG), embed(plain, other))
    assert not torch.equal(embed(stretched, LONG), embed(stretched, other))
    # Trimming to the batch is as exact as it was.
    tokens = stretched.collator().tokenize(["a", LONG])
    with torch.no_grad():
        torch.testing.assert_close(
            encode_text(stretched.clip, tokens), stretched.clip.encode_text(tokens)
        )


def test_shorter_context_reads_less_and_the_same(config):
    plain, short = built(config), built(config, text=LongText(context=8))
    assert short.collator().tokenize([LONG]).shape == (1, 8)
    assert torch.equal(embed(short, "a red flag"), embed(plain, "a red flag"))
    torch.testing.assert_close(
        embed(short, LONG), embed(plain, "A red flag. It has"), rtol=1e-5, atol=1e-6
    )
    both = LongText(context=8, stretch=2, keep=4)
    assert built(config, text=both).collator().tokenize(["a"]).shape == (1, 12)


def save(retriever, path):
    retriever.trained_on = {"query": "raw:x"}
    torch.save(checkpoint_of(retriever), path)
    return path


def test_checkpoints(config, tmp_path):
    text = LongText(stretch=2, keep=4, windows=3)
    stretched = built(config, text=text)
    again = load(save(stretched, tmp_path / "a.ckpt"))
    assert torch.equal(embed(stretched, LONG), embed(again, LONG))
    assert again.settings()["text"] == {"context": None, "stretch": 2, "keep": 4, "windows": 3}
    plain = built(config)
    assert "text" not in plain.settings(), "embeddings made before stay valid"
    fresh = ClipScoreFusion(config, text=text, random_init=True)
    load_weights(fresh, save(plain, tmp_path / "b.ckpt"))
    assert torch.equal(
        fresh.clip.positional_embedding, stretch_positions(plain.clip.positional_embedding, 2, 4)
    )
    windows = built(config, text=LongText(windows=2))
    load_weights(windows, tmp_path / "b.ckpt")
    assert windows.fingerprint({}) != plain.fingerprint({})


def test_siglip_is_padded_and_not_stretched(siglip):
    retriever = built(siglip)
    tokens = retriever.collator().tokenize(["a", "a red flag with stars"])
    assert tokens.shape == (2, 16)
    with torch.no_grad():
        whole = encode_text(retriever.clip, tokens)
        assert torch.equal(whole, retriever.clip.encode_text(tokens))
        # Alone or beside a longer text: what is read is the last of all positions.
        torch.testing.assert_close(encode_text(retriever.clip, tokens[:1]), whole[:1])
        padded = functional.pad(tokens[:1, :8], (0, 8))
        torch.testing.assert_close(encode_text(retriever.clip, padded), whole[:1])
    for text in (LongText(stretch=2), LongText(context=8)):
        with pytest.raises(DataError, match="must be padded"):
            built(siglip, text=text)
    windows = built(siglip, text=LongText(windows=4))
    inputs = windows.collator()([Example(0, LONG, None)], "query")
    assert inputs.texts.shape == (2, 16)
    with torch.no_grad():
        check_pooled(windows, LONG)


def check_pooled(retriever, text, image=None):
    """Against a loop over the windows."""
    clip, processor = retriever.clip, retriever.collator()
    vectors = [clip.encode_text(processor.tokenize([part]))[0] for part in processor.windows(text)]
    assert len(vectors) > 1
    mean = sum(vector / vector.norm() for vector in vectors)
    feature = mean / mean.norm() * sum(vector.norm() for vector in vectors) / len(vectors)
    if image is not None:
        feature = feature + clip.encode_image(image[None])[0]
    want = feature / feature.norm()
    found = embed(retriever, "short", text, images=[None, image])[1]
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_windows_against_a_loop(config):
    plain, windows = built(config), built(config, text=LongText(windows=4))
    assert windows.collator().windows(LONG) == [
        "A red flag. It has four stars.",
        "A blue ring stands below. The border is of gold and thin.",
    ]
    image = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(2))
    check_pooled(windows, LONG)
    check_pooled(windows, LONG, image)
    short = ["a red flag", "blue"]
    assert torch.equal(embed(windows, *short), embed(plain, *short))
    # Beside a long text, the rows of the others are untouched.
    batch = embed(windows, *short, LONG)
    torch.testing.assert_close(batch[:2], embed(plain, *short))
    two = built(config, text=LongText(windows=2))
    torch.testing.assert_close(embed(two, f"{LONG} {LONG}"), embed(windows, LONG))


def test_one_window_is_the_plain_vector_to_the_bit():
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    pooled, rows = pool_windows(features, torch.tensor([0, 2, 2, 3, 7]))
    assert rows.tolist() == [0, 2, 3, 7]
    assert torch.equal(pooled[[0, 2, 3]], features[[0, 3, 4]])
    assert pool_windows(features, torch.arange(5))[0] is features


def test_training_reads_one_window(config):
    retriever = built(config, text=LongText(windows=4))
    example = Example(0, LONG, None, id="1:1")
    pair = PairExample(example, Candidate(example, "1:1"), ("1:1",))
    batch = PairCollator(retriever.collator())([pair])
    assert batch.queries.texts.shape == (1, 16)
    assert Contrastive(retriever).loss(batch)["loss"].isfinite()


words = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=6)
texts = st.lists(st.tuples(words, st.sampled_from([" ", ". ", "! ", "\n", ".\n\n"])), max_size=40)


@settings(max_examples=60)
@given(texts, st.integers(1, 12))
def test_windows_fit_and_lose_nothing(parts, room):
    text = "".join(word + gap for word, gap in parts)

    def length(piece):
        # As in a byte-level vocabulary, the first word is dearer than the others.
        return 2 + len(piece.split()) + (piece[:1] in "aeiou")

    def fits(piece):
        return length(piece) <= room + 2

    windows = split_windows(text, lambda pieces: list(map(length, pieces)), room + 2)
    assert " ".join(windows).split() == text.split()
    assert all(fits(window) or len(window.split()) == 1 for window in windows)
    if fits(text):  # the text itself, so that its vector is the plain one
        assert windows == [text]
    # A sentence that fits is in one window.
    for sentence in split_sentences(text):
        if fits(sentence):
            assert any(sentence in window for window in [text, *windows][len(windows) > 1 :])


def test_tokens_are_those_that_the_tokenizer_gives(config):
    texts = ["", "a red flag", LONG, "Ünïcode " * 9]
    simple, flagland = SimpleTokenizer(), load_clip("flagland-clip")[1].tokenize
    assert count_tokens(simple, texts) == (simple(texts, 500) > 0).sum(1).tolist()
    assert count_tokens(flagland, texts) == (flagland(texts, 500) != 0).sum(1).tolist()
    wrapped = object.__new__(SigLipTokenizer)
    wrapped.tokenizer, wrapped.context_length = flagland.tokenizer, 500
    assert count_tokens(wrapped, texts) == (wrapped(texts) != 0).sum(1).tolist()
    assert count_tokens(object(), texts) is None


def row_of(audit, side, modality):
    (row,) = (row for row in audit.rows if (row["side"], row["modality"]) == (side, modality))
    return SimpleNamespace(**row)


def test_audit_against_a_loop(world, config):
    root = make_root(world[2] / "long")
    pool = root / "cand_pool" / "local" / "mbeir_squares_task3_cand_pool.jsonl"
    items = [Item(f"7:{21 + n}", "word " * (n + 1), (), "text") for n in range(20)]
    write_candidates(pool, items)
    data = MBeirData(str(root))
    for text, windows, lost in [
        (LongText(), 1, lambda n: max(0, n - 14)),
        (LongText(windows=2), 2, lambda n: max(0, n - 28)),  # no sentence: full windows
    ]:
        audit = audit_plan(data.test_plan(), data.recipe, built(config, text=text).collator(), None)
        assert (audit.context, audit.windows) == (16, windows)
        row = row_of(audit, "corpus", "text")
        assert (row.texts, row.longest, row.tokens) == (20, 20, sum(range(1, 21)))
        assert row.lost == sum(lost(n) for n in range(1, 21))
        assert row.cut == sum(lost(n) > 0 for n in range(1, 21))
        assert {row["modality"] for row in audit.rows if row["side"] == "corpus"} == {"text"}
    assert "none of 16 queries is cut" in audit.line()
    collator = built(config).collator()
    sampled = audit_plan(data.test_plan(), data.recipe, collator, 10)
    assert sampled.looked == {"corpus": 10, "query": 10}
    assert "(a sample of 40)" in sampled.line()
    trained = audit_training(data.training(collator)[0], data.recipe, collator)
    assert row_of(trained, "corpus", "text").cut == 6


def test_audit_as_a_command_and_in_the_results(world, tmp_path, capsys):
    given = [*options(world, tmp_path), "--model.encoder.text.context=5"]
    short = f"--model.model_name={world[1]}", "--model.text.context=5"
    assert main(["audit", *plain_options(world, tmp_path), "--model=ClipScoreFusion", *short]) == 0
    told = capsys.readouterr().out
    assert "corpus  text" in told
    assert "candidates are cut" in told
    saved = json.loads((tmp_path / "audit.json").read_text())
    assert set(saved) == {"fit", "test"}
    assert main(["test", *given]) == 0
    assert "text beyond 5 tokens: " in capsys.readouterr().err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    found = metrics["settings"]["data"]["cut_text"]
    assert found["rows"] == saved["test"]["rows"]
    assert sum(row["lost"] for row in found["rows"]) > 0
    assert metrics["settings"]["model"]["text"]["context"] == 5


def test_unusable_settings(config):
    for wrong, message in [
        ({"stretch": 0}, "stretch must be at least 1"),
        ({"windows": 0}, "windows must be at least 1"),
        ({"context": 1}, "context must be at least 3"),
    ]:
        with pytest.raises(DataError, match=message):
            LongText(**wrong)
    with pytest.raises(DataError, match="the model has 16 positions"):
        built(config, text=LongText(context=17))
    assert isinstance(built(config).clip, open_clip.CLIP)
