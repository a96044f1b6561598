"""Reason, then embed: against ``generate`` and against reading everything once more."""

import pytest
import torch

from augment.errors import DataError
from retrievers.models.mllm.encoder import Mllm
from retrievers.models.mllm.layout import Layout
from retrievers.models.mllm.reasoning import Reasoning, reason
from tests.retrievers.mllms import make, mixed, vectors

MOST = 12


def behind(encoder):
    """What is read behind all that is written, by the state that is pooled."""
    end = [encoder.mark, encoder.collator().processor.tokenizer.eos_token_id]
    return end[: ("before", "at", "after").index(encoder.layout.pooling)]


@torch.inference_mode()
def generated(encoder, batch, ends=(), suppressed=()):
    """What transformers writes, without the token that ends it."""
    prompts = batch.without_end(len(behind(encoder))) if behind(encoder) else batch
    output = encoder.vlm.generate(
        input_ids=prompts.tokens, attention_mask=prompts.mask, mm_token_type_ids=prompts.kinds,
        **prompts.pictures(), max_new_tokens=MOST, do_sample=False, pad_token_id=0,
        eos_token_id=list(ends) or None, begin_suppress_tokens=list(suppressed) or None,
    )  # fmt: skip
    rows = output[:, prompts.tokens.shape[1] :].tolist()
    stops = [next((n for n, t in enumerate(row) if t in ends), len(row)) for row in rows]
    return [row[:stop] for row, stop in zip(rows, stops, strict=True)]


def taught(folder, pooling):
    """An untrained model that writes mark (and end) where it would have written other tokens."""
    encoder = make(folder, layout=Layout(pooling=pooling, mark="<|emb|>"))
    batch = encoder.collator()(mixed(encoder.collator()), "query")
    rows = generated(encoder, batch)
    end = encoder.collator().processor.tokenizer.eos_token_id
    seen = [token for row in rows for token in set(row[2:]) - {end, encoder.mark}]
    head = encoder.vlm.lm_head.weight
    middle = sorted(set(seen), key=lambda token: (abs(seen.count(token) - 1.4), token))
    tied = head is encoder.vlm.get_input_embeddings().weight  # then the end's row is in prompts
    with torch.no_grad():
        for place, token in zip((encoder.mark, end)[: 2 - tied], middle, strict=False):
            head[place] = 1.01 * head[token]
    return encoder, batch, end


def read_again(encoder, batch, row, tokens):
    """The vector of one row from prompt and chain in one pass, alone."""
    one, end = batch.rows(row, row + 1), behind(encoder)
    one = one.without_end(len(end)) if end else one
    more = torch.tensor([[*tokens, *end]], dtype=torch.int64)
    longer = one._replace(
        tokens=torch.cat([one.tokens, more], 1),
        mask=torch.cat([one.mask, torch.ones_like(more)], 1),
        kinds=torch.cat([one.kinds, torch.zeros_like(more)], 1),
    )
    with torch.inference_mode():
        return encoder.vector(encoder.states(longer)[:, -1])[0]


@pytest.mark.parametrize("pooling", ["before", "at", "after"])
@pytest.mark.parametrize("family", ["qwen3", "qwen2_5"])
def test_chains_are_those_of_generate_and_vectors_those_of_reading_again(folders, family, pooling):
    encoder, batch, end = taught(folders[family], pooling)
    encoder.vlm.generation_config.repetition_penalty = 9.0  # a checkpoint's own; not ours
    found = reason(encoder, batch, Reasoning("always", max_tokens=MOST))
    encoder.vlm.generation_config.repetition_penalty = 1.0
    wanted = generated(encoder, batch, (encoder.mark, end), (encoder.mark, end))
    assert found.tokens == wanted
    assert len(set(found.endings)) > 1, "rows end at different times and in different ways"
    for row, tokens in enumerate(found.tokens):
        again = read_again(encoder, batch, row, tokens)
        torch.testing.assert_close(found.vectors[row], again, atol=1e-5, rtol=0)
        direct = read_again(encoder, batch, row, [])
        torch.testing.assert_close(found.direct[row], direct, atol=1e-5, rtol=0)
        assert tokens == [] or (again - direct).norm() > 1e-3
    forced = [ending == "length" for ending in found.endings]
    assert forced == [len(tokens) == MOST for tokens in found.tokens]
    other = encoder.collator()(mixed(encoder.collator())[1:2], "query")
    reason(encoder, other, Reasoning("always", max_tokens=2))  # another shape in between
    tokenizer = encoder.collator().processor.tokenizer
    assert set(found.endings) - {"length"}, "some rows end by themselves"
    tokenizer.eos_token_id = ends = wanted[0][0]  # which would be written first, and end the row
    least = reason(encoder, batch, Reasoning("always", max_tokens=MOST)).tokens
    assert least == generated(encoder, batch, (encoder.mark, ends), (encoder.mark, ends))
    assert all(least)
    tokenizer.eos_token_id = end
    assert reason(encoder, batch, Reasoning("always", max_tokens=MOST)).tokens == wanted


@pytest.mark.parametrize("pooling", ["before", "at", "after"])
def test_who_writes_is_decided_by_the_mark(folders, pooling):
    encoder, batch, _ = taught(folders["qwen3"], pooling)
    shares = reason(encoder, batch, Reasoning("never")).mark
    middle = float(shares.sort().values[1:3].mean())
    found = reason(encoder, batch, Reasoning("adaptive", middle, max_tokens=3))
    straight = [ending == "direct" for ending in found.endings]
    assert straight == (shares >= middle).tolist()
    assert sorted(straight) == [False, False, True, True]
    torch.testing.assert_close(found.vectors[straight], found.direct[straight])
    every = reason(encoder, batch, Reasoning("always", max_tokens=3))
    writes = [not ending for ending in straight]
    torch.testing.assert_close(found.vectors[writes], every.vectors[writes], atol=1e-5, rtol=0)
    assert reason(encoder, batch, Reasoning("adaptive", 0.0)).endings == ["direct"] * 4
    with torch.no_grad():
        encoder.vlm.lm_head.weight[encoder.mark] = 0
    likely = reason(encoder, batch, Reasoning("adaptive", max_tokens=3))
    assert "direct" not in likely.endings, "the mark is no row's likeliest token"


def test_queries_are_reasoned_about_and_candidates_where_it_is_asked_for(folders):
    layout = Layout(pooling="before", mark="<|emb|>")
    plain = make(folders["qwen3"], layout=layout)
    writing = Mllm(
        str(folders["qwen3"]), layout=layout, reasoning=Reasoning("always", max_tokens=4)
    ).eval()
    assert writing.fingerprint({}) != plain.fingerprint({})
    examples = mixed(plain.collator())
    assert torch.equal(vectors(plain, examples, "corpus"), vectors(writing, examples, "corpus"))
    batch = writing.collator()(examples, "query")
    encoded = writing.encode(batch, "query")
    assert [one.tokens for one in encoded.writings] == [4] * 4
    assert all(one.ending == "length" and one.text for one in encoded.writings)
    torch.testing.assert_close(encoded.direct, vectors(plain, examples), atol=1e-6, rtol=0)
    assert (encoded.vectors - vectors(plain, examples)).norm() > 0.01
    both = Reasoning("always", max_tokens=4, candidates=True)
    both = Mllm(str(folders["qwen3"]), layout=layout, reasoning=both).eval()
    assert both.fingerprint({}) != writing.fingerprint({})
    encoded, pool = both.encode(batch, "query"), writing.collator()(examples, "corpus")
    assert torch.equal(encoded.vectors, writing.encode(batch, "query").vectors)
    found, want = both.encode(pool, "corpus"), reason(both, pool, both.reasoning)
    assert torch.equal(found.vectors, want.vectors)
    assert [one.tokens for one in found.writings] == [4] * 4
    writing.train()
    with torch.no_grad():
        assert not writing.encode(batch, "query").writings


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"when": "often"}, "never, always or adaptive"), ({"threshold": 2.0}, "is a probability"),
     ({"max_tokens": 0}, "must be positive")],
)  # fmt: skip
def test_reasoning_that_cannot_be_meant_is_refused(settings, message):
    with pytest.raises(DataError, match=message):
        Reasoning(**settings)


def test_reasoning_needs_a_mark(folders):
    with pytest.raises(DataError, match=r"set layout\.pooling to before, at or after"):
        Mllm(str(folders["qwen3"]), layout=Layout(), reasoning=Reasoning("always"))
