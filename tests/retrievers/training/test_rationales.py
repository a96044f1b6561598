"""Contrast on what the model writes itself: two sequences a query, and a training left alone."""

import json
from dataclasses import replace

import pytest
import torch

from augment.errors import DataError
from augment.records import Enrichment
from augment.views import TextView
from retrievers.data.module import MBeirData
from retrievers.data.texts import WrittenTexts
from retrievers.models.mllm.conversations import IGNORED
from retrievers.models.mllm.layout import Layout
from retrievers.models.mllm.reasoning import Reasoning, reason
from retrievers.models.tuning import Tuning
from retrievers.training.module import Contrastive, fit
from retrievers.training.objective import TokenLoss
from retrievers.training.optim import AdamWCosine
from retrievers.training.rationales import Diary, Noted, Rationales
from retrievers.vectors.embed import embed
from tests.retrievers.mllms import make, mixed
from tests.retrievers.models.test_retriever import make_root
from tests.retrievers.training.test_mllm import Keep, gradients, pairs

TAUGHT = ("white and red", "a flag of three bands", "which", "a flag")
OTHER = ("red", "which country has this flag", "", "a flag of three bands")


def at(folder, pooling="at"):
    return make(folder, layout=Layout(pooling=pooling, mark="<|emb|>"))


def own(**settings):
    return Rationales("own", max_tokens=5, **settings)


@pytest.mark.parametrize("pooling", ["before", "at"])
@pytest.mark.parametrize("rows", [None, [3, 1]])
def test_other_words_behind_a_prompt_are_those_of_the_collator(folders, pooling, rows):
    encoder = at(folders["qwen2_5"], pooling)
    collator, examples = encoder.collator(), mixed(encoder.collator())

    def written(texts, kept):
        told = [e._replace(written=t) for e, t in zip(examples, texts, strict=True)]
        return collator([told[row] for row in kept], "query", True)

    kept = list(range(4)) if rows is None else rows
    want = written(OTHER, kept)
    ends = [row[row != IGNORED].tolist() for row in want.targets]
    for batch in (written(TAUGHT, range(4)), collator(examples, "query")):
        found = batch.answered(ends, encoder.mark, rows)
        for name, value in want._asdict().items():
            seen = want.mask.bool() if value.shape == want.mask.shape else ...
            assert torch.equal(getattr(found, name)[seen], value[seen]), name
        assert found.targets.equal(want.targets)


@pytest.mark.parametrize("pooling", ["before", "at"])
def test_two_sequences_a_query_one_is_taught_and_the_other_contrasted(folders, pooling):
    """The token loss is that of what is taught; vectors are those of what was written."""
    encoder = at(folders["qwen3"], pooling)
    batch = pairs(encoder, TAUGHT)
    both = Contrastive(encoder, tokens=TokenLoss(0.5), rationales=own()).eval()
    taught = Contrastive(encoder, tokens=TokenLoss(0.5)).eval()
    parts, alone = both.loss(batch), taught.loss(batch)
    assert torch.equal(parts["chain"], alone["chain"])
    assert torch.equal(parts["tokens"], alone["tokens"])
    assert parts["loss"] == parts["contrastive"] + parts["tokens"]
    assert parts["contrastive"] != alone["contrastive"]
    assert parts["forced"] == 1  # an untrained model does not end
    prompts = batch.queries.answered([[encoder.mark]] * 4 if pooling == "at" else [[]] * 4,
                                     encoder.mark)  # fmt: skip
    written = reason(encoder, prompts, Reasoning("always", max_tokens=5))
    asked, _ = both._own(batch)
    torch.testing.assert_close(both._encode(asked, "query"), written.vectors, atol=1e-5, rtol=0)
    # In chunks the gradient of both is that of the whole batch.
    whole = gradients(both, batch)
    chunked = gradients(
        Contrastive(encoder, tokens=TokenLoss(0.5), rationales=own(), chunk=3).eval(), batch
    )
    for name, gradient in whole[1].items():
        torch.testing.assert_close(gradient, chunked[1][name], atol=1e-5, rtol=1e-4, msg=name)


def train(folder, out, data, steps=4, resume=None, callbacks=(), **settings):
    training = Contrastive(
        at(folder), optimizer=AdamWCosine(lr=1e-2), rationales=own(**settings),
        tuning=Tuning("image", lora_rank=2, lora_dropout=0.2),
    )  # fmt: skip
    return fit(
        training, data, out, max_steps=steps, resume=resume, device="cpu", callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False,
    ).state_dict()  # fmt: skip


def lines(out):
    return [json.loads(line) for line in (out / "rationales-0.jsonl").read_text().splitlines()]


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_writing_leaves_the_training_alone_and_goes_on_after_a_kill(folders, tmp_path, monkeypatch):
    """Bitwise: the weights are those of a training that was handed the texts, dropout included."""
    data = MBeirData(str(make_root(tmp_path / "root", 6)), batch_size=4)
    half = tmp_path / "half.ckpt"
    whole = train(folders["qwen3"], tmp_path / "a", data, callbacks=[Keep(half)], refresh_every=2)
    noted = lines(tmp_path / "a")
    assert len({line["weights"] for line in noted}) > 1
    # 12 queries in batches of four; in the fourth step those of the third are not old yet.
    assert [line["step"] for line in noted][:12] == [step for step in range(3) for _ in range(4)]
    third = {line["query"] for line in noted if line["step"] == 2}
    assert 0 < len(noted) - 12 < 4
    assert not third & {line["query"] for line in noted[12:]}

    (tmp_path / "b").mkdir()
    torn = (tmp_path / "a" / "rationales-0.jsonl").read_text()[:-9]  # as a kill leaves it
    (tmp_path / "b" / "rationales-0.jsonl").write_text(torn)
    rest = train(folders["qwen3"], tmp_path / "b", data, resume=half, refresh_every=2)
    assert equal(whole, rest)
    assert lines(tmp_path / "b") == noted

    train(folders["qwen3"], tmp_path / "d", data, steps=5, refresh_every="epoch")
    steps = [line["step"] for line in lines(tmp_path / "d")]
    assert steps == [step for step in range(5) for _ in range(4)]

    known = {(line["query"], line["step"]): line for line in noted}

    def handed(self, encoder, batch, old, end, step):
        for qid in old:
            line = known[qid, step]
            self.noted[qid] = Noted(step, line["tokens"], line["ending"])

    monkeypatch.setattr(Diary, "_write", handed)
    assert equal(whole, train(folders["qwen3"], tmp_path / "c", data, refresh_every=2))


def test_words_are_kept_until_they_are_old(folders):
    encoder = at(folders["qwen3"])
    batch, qids = pairs(encoder).queries, ["a", "b", "c", "d"]
    kept, fresh = Diary(own(refresh_every=None)), Diary(own(refresh_every=3))
    passed = Diary(own(refresh_every="epoch"), epoch=2)
    for step in range(5):
        _, told = kept.behind(encoder, batch, qids, step)
        assert told["age"] == step
        _, told = fresh.behind(encoder, batch, qids, step)
        assert told["age"] == step % 3
        _, told = passed.behind(encoder, batch, qids, step + 1)
        assert told["age"] == (step in (2, 4)), "a pass has two steps, from 0 on"
    assert told["written"] == 5


def test_words_written_in_sight_of_the_target_are_no_contrast(folders, root, tmp_path):
    data = MBeirData(str(root), batch_size=4)
    seen = TextView("query", "replace", {"id": "a", "target_seen": True}, {})
    data.recipe = replace(data.recipe, written=WrittenTexts(seen))
    training = Contrastive(at(folders["qwen3"]), tokens=TokenLoss(1.0))
    with pytest.raises(DataError, match="wanted candidates in sight"):
        fit(training, data, tmp_path, max_steps=1, device="cpu", enable_progress_bar=False)
    for allowed in (own(), Rationales(allow_oracle_contrast=True)):
        training = Contrastive(at(folders["qwen3"]), tokens=TokenLoss(1.0), rationales=allowed)
        fit(training, data, tmp_path, max_steps=1, device="cpu", enable_progress_bar=False)


def test_candidates_that_are_taught_are_to_write_and_unseen(folders, root, tmp_path):
    data = MBeirData(str(root), batch_size=4)
    query = TextView("query", "replace", {"id": "a"}, {})
    fitted = {"max_steps": 1, "device": "cpu", "enable_progress_bar": False}
    both = Reasoning("always", max_tokens=2, candidates=True)
    for recipe, reasoning, told in (
        ({"id": "b"}, Reasoning("always"), r"without model\.encoder\.reasoning\.candidates=true"),
        ({"id": "b", "target_seen": True}, both, "wanted candidates in sight"),
    ):
        written = WrittenTexts(query, corpus_view=TextView("corpus", "replace", recipe, {}))
        data.recipe = replace(data.recipe, written=written)
        encoder = make(
            folders["qwen3"], layout=Layout(pooling="at", mark="<|emb|>"), reasoning=reasoning
        )
        with pytest.raises(DataError, match=told):
            fit(Contrastive(encoder, tokens=TokenLoss(1.0)), data, tmp_path, **fitted)


def test_pairs_whose_text_was_refused_are_left_out_where_it_is_asked_for(root):
    texts = {
        f"7:{n}": Enrichment(f"k{n}", f"7:{n}", "a", "p", "m", "r", rejected="wrong: a" * (n % 2))
        for n in range(40)
    }
    view, data, found = TextView("query", "replace", {"id": "a"}, texts), MBeirData(str(root)), {}
    for name, written in {
        "all": WrittenTexts(view), "skip": WrittenTexts(view, skip=True),
        "only": WrittenTexts(view, frozenset({"7:1", "7:2"}), skip=True),
    }.items():  # fmt: skip
        data.recipe = replace(data.recipe, written=written)
        found[name] = {query.item.id for query in data.training_queries(None)[1]}
    refused = {name for name, one in texts.items() if one.rejected}
    assert found["all"] & refused, "a few of them are trained on"
    assert found["skip"] == found["all"] - refused
    assert found["only"] == found["all"] - {"7:1"}
    names = {one.name for one in (WrittenTexts(view), WrittenTexts(view, skip=True))}
    assert len(names) == 2


def test_what_cannot_be_meant_is_refused(folders):
    with pytest.raises(DataError, match="has candidates write"):
        Reasoning(candidates=True)
    with pytest.raises(DataError, match="stands at a mark"):
        Contrastive(make(folders["qwen3"], layout=Layout()), rationales=own())
    with pytest.raises(DataError, match=r"takes layout\.pooling before or at"):
        Contrastive(at(folders["qwen3"], "after"), rationales=own())
    with pytest.raises(DataError, match="refresh_every must be positive"):
        Rationales("own", refresh_every=0)
    with pytest.raises(DataError, match="max_tokens must be positive, got 'epoch'"):
        Rationales("own", max_tokens="epoch")
    with pytest.raises(DataError, match="by must be taught or own"):
        Rationales("teacher")


def test_given_words_stand_in_a_test_in_place_of_the_models_own(folders, root, tmp_path):
    """The vectors of a test are then those that training contrasts, and remembered as such."""
    encoder = make(folders["qwen3"], layout=Layout(pooling="at", mark="<|emb|>"),
                   reasoning=Reasoning("always", max_tokens=4))  # fmt: skip
    texts = {f"7:{n}": Enrichment(f"k{n}", f"7:{n}", "a flag", "p", "m", "r") for n in range(50)}
    view = TextView("query", "replace", {"id": "a"}, texts)
    data = MBeirData(str(root))
    pool = data.test_plan().catalog
    told = {i.id: Enrichment("c", i.id, "a star", "p", "m", "r") for i in pool.items()}
    corpus = TextView("corpus", "replace", {"id": "b"}, told)
    found = {}
    for given in (True, False):
        written = WrittenTexts(view, given=given, corpus_view=corpus)
        data.recipe = replace(data.recipe, written=written)
        found[given] = embed(encoder, data, device="cpu"), data.recipe.fingerprint
    plan = data.test_plan()
    reader, collator = data.reader(encoder.collator()), encoder.collator()
    query, target = plan.queries[0]
    shown = reader.query(query, target)._replace(written="a flag")
    want = encoder.encode(collator([shown], "query", True), "query").vectors[0]
    vectors = {name: one.queries.vectors.float()[0] for name, (one, _) in found.items()}
    torch.testing.assert_close(vectors[True], want.detach(), atol=1e-5, rtol=0)
    assert (vectors[False] - want).norm() > 1e-2
    assert found[True][1] != found[False][1]
    shown = reader.candidate(next(pool.items()))._replace(written="a star")
    want = encoder.encode(collator([shown], "corpus", True), "corpus").vectors[0]
    own = {name: one.candidates.vectors.float()[0] for name, (one, _) in found.items()}
    torch.testing.assert_close(own[True], want.detach(), atol=1e-5, rtol=0)
    assert (own[False] - want).norm() > 1e-2  # they write nothing unless it is asked for
    assert not found[False][0].candidates.writings
