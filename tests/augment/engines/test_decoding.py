"""Decoding of batches against ``generate`` of transformers, on untrained models."""

import random
from types import SimpleNamespace

import pytest

from augment.prompts import load_prompt
from augment.records import Item, Request, Sampling
from tests import tiny_vlms

torch = pytest.importorskip("torch")

from augment.engines import decoding  # noqa: E402
from augment.engines.transformers import HFEngine  # noqa: E402

SIZES = [(96, 96), (64, 128), (200, 120), (40, 40), (128, 64), (96, 96), (300, 300)]
TEXTS = ["describe the picture", "a flag of three bands", "which country has this flag?"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tiny_vlms.pictures(tmp_path_factory.mktemp("pictures"), SIZES)


@pytest.fixture(scope="module", params=["qwen3", "qwen2_5"])
def engine(request, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model = tiny_vlms.qwen3(folder / "three", TEXTS)
    if request.param == "qwen2_5":
        model = tiny_vlms.qwen2_5(folder / "two", model)
    return HFEngine(str(model), root=pictures, device="cpu")


def captions(pictures):
    prompt = load_prompt("rar/corpus")
    return [
        prompt.render(Item(f"1:{n}", TEXTS[n % 3] if n % 2 else None, (f"{n}.png",), "image"))
        for n in range(len(SIZES))
    ]


def texts_only(pictures):
    start = "You refine search queries about flags, one at a time, in plain words."
    return [Request(str(n), start, " ".join(TEXTS[: n % 3 + 1])) for n in range(5)]


def unlike(pictures):
    """Nothing in common but the head of the template; one shows no picture."""
    return [
        Request("a", "Look.", "one", ("0.png",)),
        Request("b", "No, listen.", "one"),
        Request("c", "What?", "", ("4.png",)),
    ]


def alike(pictures):
    return [Request(str(n), TEXTS[0] * 4, "the same") for n in range(3)]


BATCHES = [captions, texts_only, unlike, alike, lambda pictures: captions(pictures)[:1]]


def encoded(engine, requests):
    return engine._encode([engine._open(n, (one, Sampling())) for n, one in enumerate(requests)])


def plain(model, inputs, count, stops, penalty=1.0):
    """Rows of transformers' own ``generate``, cut behind the first end token."""
    output = model.generate(
        **inputs, max_new_tokens=count, do_sample=False, eos_token_id=stops, pad_token_id=0,
        repetition_penalty=penalty,
    )  # fmt: skip
    rows = output[:, inputs["input_ids"].shape[1] :].tolist()
    ends = [next((n + 1 for n, t in enumerate(row) if t in stops), count) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


def common_ends(model, batches):
    """Tokens that untrained models write somewhere in the middle, to be declared end tokens."""
    written = [row for inputs in batches for row in plain(model, inputs, 24, [299])]
    seen = [token for row in written for token in set(row[2:])]
    return sorted(set(seen), key=lambda token: abs(seen.count(token) - len(written) / 2))[:2]


def test_tokens_equal_those_of_generate_whatever_is_shared(engine, pictures):
    """One decoder for all batches, so that a prefix is kept, cut and replaced on the way."""
    model = engine._load().model
    batches = [encoded(engine, make(pictures)) for make in [*BATCHES, *BATCHES]]
    stops = common_ends(model, batches)
    decode = decoding.decode_with(model, stops, pad=0)
    lengths = set()
    for inputs in batches:
        rows = decode(inputs, Sampling(40))
        assert rows == plain(model, inputs, 40, stops)
        lengths |= {len(row) for row in rows}
    assert len(lengths) > 3, "rows end at different times"
    assert max(lengths) == 40, "and some not at all"


def test_shared_text_is_read_once_and_finished_rows_are_not_read_again(engine, pictures):
    model = engine._load().model
    inputs = encoded(engine, captions(pictures))
    stops = common_ends(model, [inputs])
    decoder = decoding.Decoder(model, stops)
    shapes = []
    watch = model.model.register_forward_pre_hook(
        lambda _, __, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    with torch.inference_mode():
        rows = decoder(inputs, Sampling(40))
        first, shapes[:] = list(shapes), []
        assert decoder(inputs, Sampling(40)) == rows
    watch.remove()
    (one, shared), (all_rows, rest) = first[:2]
    assert (one, all_rows) == (1, len(SIZES))
    assert shared > decoding.SHARED
    assert shared + rest == inputs["input_ids"].shape[1]
    assert shapes == first[1:], "the second batch finds the beginning read"
    left = [count for count, _ in shapes[1:]]
    assert left == sorted(left, reverse=True)
    for step, count in enumerate(left, 1):
        going = sum(len(row) > step for row in rows)
        assert going <= count
        assert count == going or going > decoding.LEFT * count


@pytest.mark.parametrize("seed", range(20))
def test_padding_moves_behind_the_common_beginning(seed):
    dice = random.Random(seed)
    shared = [dice.randrange(1, 9) for _ in range(dice.randrange(1, 6))]
    tails = [[dice.randrange(10, 99) for _ in range(dice.randrange(1, 7))] for _ in range(4)]
    tails[0][0], tails[1][0] = 10, 11
    width = max(map(len, tails)) + len(shared)
    rows = [shared + tail for tail in tails]
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = (tokens != 0).long()
    kinds = (tokens > 90).long()
    assert decoding._common(tokens, mask, kinds) == shared
    moved = decoding._behind(tokens, mask, kinds, skip=len(shared))
    pads = [width - len(row) for row in rows]
    wanted = torch.tensor([shared + [0] * n + t for n, t in zip(pads, tails, strict=True)])
    assert torch.equal(moved[0], wanted)
    assert torch.equal(moved[1], (wanted != 0).long())
    assert torch.equal(moved[2], (wanted > 90).long())
    pictured = torch.ones_like(kinds)
    assert decoding._common(tokens, mask, pictured) == [], "pictures differ behind equal tokens"


def test_sampling_follows_the_distribution_that_generate_draws_from(engine):
    """Temperature and top_p by hand, on logits whose nucleus is known."""
    logits = torch.tensor([[3.0, 2.0, 1.0, -4.0]]).expand(4000, -1)
    torch.manual_seed(0)
    drawn = decoding._choose(logits, Sampling(1, temperature=2.0, top_p=0.8))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    heat = torch.softmax(torch.tensor([1.5, 1.0, 0.5]), dim=0)
    # .506 + .307 exceed .8 of all four, so that the third is out.
    wanted = torch.softmax(torch.tensor([1.5, 1.0]), dim=0)
    assert float(heat[:2].sum()) > 0.8
    assert torch.allclose(shares[:2], wanted, atol=0.03)
    assert shares[2:].sum() == 0


@pytest.mark.parametrize("through_generate", [False, True])
def test_a_penalty_of_the_model_s_own_does_not_slip_in(
    engine, pictures, through_generate, monkeypatch
):
    """Published Qwen2.5-VL checkpoints carry ``repetition_penalty: 1.05``; no key names it."""
    from transformers import GenerationConfig

    model = engine._load().model
    inputs = encoded(engine, captions(pictures))
    free = plain(model, inputs, 12, [0])
    assert free != plain(model, inputs, 12, [0], penalty=5.0)
    monkeypatch.setattr(model, "generation_config", GenerationConfig(repetition_penalty=5.0))
    if through_generate:
        monkeypatch.setattr(decoding, "FAMILIES", frozenset())
    rows = decoding.decode_with(model, [0], pad=0)(inputs, Sampling(12))
    assert [row[: len(kept)] for row, kept in zip(rows, free, strict=True)] == free


def test_only_models_whose_state_is_known_are_decoded_here():
    def model(kind, **text):
        config = SimpleNamespace(model_type=kind, text_config=SimpleNamespace(**text))
        return SimpleNamespace(config=config)

    assert decoding.fits(model("qwen3_vl"))
    assert decoding.fits(model("qwen2_5_vl", layer_types=["full_attention"] * 2))
    assert not decoding.fits(model("qwen2_5_vl", layer_types=["full_attention", "sliding"]))
    assert not decoding.fits(model("gemma3"))
