"""Conversations that are rehearsed beside the pairs: their cost, their draw, what is refused."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from augment.engines.inputs import chat
from augment.errors import DataError, MismatchError
from retrievers.data.module import MBeirData
from retrievers.models.mllm.conversations import IGNORED
from retrievers.models.tuning import Tuning
from retrievers.training.module import Contrastive, fit
from retrievers.training.objective import TokenLoss
from retrievers.training.optim import AdamWCosine
from retrievers.training.rehearsal import Rehearsal, Rehearsed
from tests.retrievers.mllms import make
from tests.retrievers.training.test_mllm import WRITTEN, Keep, gradients, pairs


def again(folder, *rows):
    """A file of conversations: what is told, asked, said, and given of that."""
    path = folder / "rows.jsonl"
    lines = [
        {"messages": [{"role": role, "content": text} for role, text in
                      zip(("system", "user", "assistant"), row, strict=False)], "given": row[3]}
        for row in rows
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Rehearsal(str(path), rows=4, weight=0.5)


def test_what_is_rehearsed_costs_what_the_model_itself_says(folders, tmp_path):
    encoder = make(folders["qwen3"])
    rows = [("Be brief.", "What is red?", "A flag is red.", "A flag"), ("", "Why?", "which", "")]
    training = Contrastive(encoder, rehearsal=again(tmp_path, *rows)).eval()
    training.setup("fit")
    tokenizer, costs = encoder.collator().processor.tokenizer, {}
    for *told, said, given in rows:
        roles = zip(("system", "user"), told, strict=True)
        told = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in roles]
        prompt = chat(encoder.collator().processor, told) + given
        ids = [tokenizer(text)["input_ids"] for text in (prompt, said.removeprefix(given))]
        whole = torch.tensor([[*ids[0], *ids[1], tokenizer.eos_token_id]])
        labels = whole.clone()
        labels[:, : len(ids[0])] = -100
        costs[said] = float(encoder.vlm(input_ids=whole, labels=labels).loss.detach())
    drawn = training._rehearsed.draw(3, 5, 1)
    told = tokenizer.batch_decode(drawn.tokens)
    seen = [next(said for said in costs if said.split()[-1] in text) for text in told]
    assert set(seen) == set(costs)
    first, rest = encoder.taught(drawn)[1:]
    want = torch.tensor([costs[said] for said in seen])
    torch.testing.assert_close((first + rest) / (drawn.targets != IGNORED).sum(1), want)
    training._trainer = SimpleNamespace(
        global_rank=1, fit_loop=SimpleNamespace(total_batch_idx=5),
        datamodule=SimpleNamespace(data=SimpleNamespace(seed=3)),
    )  # fmt: skip
    batch = pairs(encoder)
    parts = training.loss(batch)
    alone = Contrastive(encoder).eval().loss(batch)["loss"]
    torch.testing.assert_close(parts["rehearsed"], want.mean())
    torch.testing.assert_close(parts["loss"], alone + 0.5 * want.mean())


def test_rows_that_are_rehearsed_follow_seed_batch_and_process(folders, tmp_path):
    rows = [("", f"q{n}", f"word {n}", "") for n in range(60)]
    collator = make(folders["qwen3"]).collator()
    drawn = Rehearsed(again(tmp_path, *rows), collator)
    first = drawn.draw(3, 5, 1).tokens
    assert torch.equal(first, Rehearsed(again(tmp_path, *rows), collator).draw(3, 5, 1).tokens)
    for place in ((4, 5, 1), (3, 6, 1), (3, 5, 0)):
        assert not torch.equal(first, drawn.draw(*place).tokens), place
    with pytest.raises(DataError, match=r"rows\.jsonl:1: has \d+ tokens; shorten it"):
        Rehearsed(replace(again(tmp_path, *rows), max_tokens=5), collator)


@pytest.mark.parametrize("size", [1, 3])
def test_chunks_of_what_is_rehearsed_and_of_candidates_that_write_are_the_whole(
    folders, tmp_path, size
):
    found = {}
    for chunk in (None, size):
        encoder = make(folders["qwen3"], head=True)
        training = Contrastive(
            encoder, tuning=Tuning("image"), tokens=TokenLoss(0.5), chunk=chunk,
            rehearsal=again(tmp_path, ("Be brief.", "What?", "A flag.", ""), ("", "Why?", "so", ""))
        )  # fmt: skip
        training.setup("fit")
        training._trainer = SimpleNamespace(
            global_rank=0, fit_loop=SimpleNamespace(total_batch_idx=2),
            datamodule=SimpleNamespace(data=SimpleNamespace(seed=1)),
        )  # fmt: skip
        found[chunk] = gradients(training, pairs(encoder, WRITTEN, ("two", "", "a star", "of it")))
    torch.testing.assert_close(found[None][0], found[size][0])
    for name, one in found[None][1].items():
        torch.testing.assert_close(one, found[size][1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("line", "told"), [
    ("[]", "expected a JSON object"), ("{", "not a line of JSON"), ("{}", "no conversation"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "no conversation"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}', "texts"),
    ('{"messages": [{"role": "user", "content": ["a"]}, {"role": "assistant", "content": "b"}]}',
     "texts alone"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], '
     '"images": ["a.png"]}', "texts alone"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], '
     '"given": "c"}', "how the last message begins"),
    ('{"messages": [{"role": "user", "content": "<|emb|>"}, '
     '{"role": "assistant", "content": "b"}]}', "the control token"),
    ("", "holds no row"),
])  # fmt: skip
def test_what_cannot_be_rehearsed_is_refused_at_its_line(folders, tmp_path, line, told):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n" if line else "")
    where = re.escape(str(path)) + (":1" if line else "")
    training = Contrastive(make(folders["qwen3"]), rehearsal=Rehearsal(str(path)))
    with pytest.raises(DataError, match=f"{where}.*{told}"):
        training.setup("fit")
    training.setup("test")  # which rehearses nothing
    path.unlink()
    with pytest.raises(DataError, match=f"{re.escape(str(path))}"):
        training.setup("fit")


def test_a_killed_training_goes_on_with_the_rows_that_it_would_have_had(folders, root, tmp_path):
    rows = [("", f"q{n}", f"word {n}", "") for n in range(30)]
    data, half = MBeirData(str(root), batch_size=4), tmp_path / "half.ckpt"

    def train(out, rehearsal, resume=None, callbacks=()):
        training = Contrastive(
            make(folders["qwen3"]), optimizer=AdamWCosine(lr=1e-2), rehearsal=rehearsal,
            tuning=Tuning("image", lora_rank=2),
        )  # fmt: skip
        return fit(
            training, data, tmp_path / out, max_steps=4, resume=resume, device="cpu",
            callbacks=callbacks,
            enable_progress_bar=False, enable_model_summary=False,
        ).state_dict()  # fmt: skip

    whole = train("a", again(tmp_path, *rows), callbacks=[Keep(half)])
    rest = train("b", again(tmp_path, *rows), resume=half)
    assert all(torch.equal(value, rest[name]) for name, value in whole.items())
    other = train("c", Rehearsal())
    assert not all(torch.equal(value, other[name]) for name, value in whole.items())
    for changed in (Rehearsal(), again(tmp_path, *rows[1:])):
        with pytest.raises(MismatchError, match=r"rehearsal\.sha256: trained with"):
            train("d", changed, resume=half)
