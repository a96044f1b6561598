"""Rerankers on untrained models, against transformers' own logits and slow loops."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from augment.errors import DataError
from retrievers.data.examples import Example
from retrievers.models.load import build
from retrievers.models.mllm.layout import LAYOUTS, CrossLayout, Layout
from retrievers.models.reranker import Listwise, Pointwise, permutation, scorer
from tests.retrievers.mllms import FAMILIES, make, mixed, picture, vectors

WORDS = CrossLayout("<Query>:", yes="a", no="e")
JINA = CrossLayout("\nQ:", "D:", corpus_first=True, yes="", no="", end=(100,))


def reranker(folder, cross=WORDS, **more):
    return make(folder, layout=Layout(cross=cross), **more)


def logits(model, batch):
    """By transformers alone: its own positions and its own head."""
    with torch.inference_mode():
        return model.vlm(
            input_ids=batch.tokens, attention_mask=batch.mask, mm_token_type_ids=batch.kinds,
            **batch.pictures(),
        ).logits[:, -1]  # fmt: skip


@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_is_the_difference_of_two_logits_in_any_batch(folders, family, pictures):
    model = reranker(folders[family])
    query, *candidates = [e for e in mixed(model.collator()) if e.text or pictures]
    judge = Pointwise(model, pictures)
    found = judge.score(query, candidates)
    assert found.dtype == torch.float32
    yes, no = (model.collator().processor.tokenizer.convert_tokens_to_ids(w) for w in "ae")
    for score, candidate in zip(found, candidates, strict=True):
        seen = [e if pictures else e._replace(image=None) for e in (query, candidate)]
        plain = logits(model, model.collator().together(seen[:1], [seen[1:]]))[0]
        assert float(score) == pytest.approx(float(plain[yes] - plain[no]), abs=1e-5)
        assert float(score) == pytest.approx(float(judge.score(query, [candidate])), abs=1e-5)
    assert found.std() > 1e-3, "candidates differ at all"
    with torch.autocast("cpu", torch.bfloat16):  # one step of bfloat16 would tie
        assert judge.score(query, candidates).dtype == torch.float32


def test_presets_write_their_publishers_prompts(folders):
    """Qwen3-VL-Reranker's words stand where its code has them, jina's before the query."""
    asked = Example(0, "red", None, id="q")
    shown = {}
    for name in ("qwen3-vl-reranker", "jina-reranker-m0"):
        cross = LAYOUTS[name].cross
        cross = replace(cross, yes=cross.yes and "a", no="e")
        collator = make(folders["qwen2"], layout=replace(LAYOUTS[name], cross=cross)).collator()
        one = Example(0, "white", picture(collator, 56, 56), id="d")
        batch = collator.together([asked], [[one]])
        places = int(batch.grids.prod()) // 4
        assert places == (4 if cross.corpus_first else 9), "its own limits of pixels"
        end = -1 if cross.end else None
        shown[name] = collator.processor.tokenizer.decode(batch.tokens[0, :end])
        assert batch.tokens[0, -1] == 100 or not cross.end
    four, nine = (f"<|vision_start|>{'<|image_pad|>' * n}<|vision_end|>" for n in (4, 9))
    assert shown["jina-reranker-m0"] == f"**Document**:\n{four}white\n**Query**:\nred"
    assert shown["qwen3-vl-reranker"] == (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n<Instruct>: Given a search query, retrieve relevant candidates that "
        f"answer the query.<Query>:red\n<Document>:{nine}white<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_head_of_layers_scores_the_last_state_and_comes_with_the_weights(folders, tmp_path):
    model = reranker(folders["qwen2"], JINA)
    query, *candidates = mixed(model.collator())
    found = scorer(model).score(query, candidates)
    batch = model.collator().together([query] * 3, [[c] for c in candidates])
    state = model.states(batch)[:, -1]
    first, _, last = model.vlm.score
    slow = functional.relu(state @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(found, slow[:, 0].detach(), atol=1e-5, rtol=0)
    model.vlm.save_pretrained(tmp_path)  # as the published checkpoint: score.0 and score.2
    model.collator().processor.save_pretrained(tmp_path)
    again = scorer(reranker(tmp_path, JINA)).score(query, candidates)
    torch.testing.assert_close(again, found)
    rebuilt = build("Mllm", model.settings(), "here")
    rebuilt.load_state_dict(model.state_dict())
    torch.testing.assert_close(scorer(rebuilt).score(query, candidates), found)


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("[2] > [1] > [3]", [1, 0, 2]), ("3", [2, 0, 1]), ("", [0, 1, 2]),
        ("[2] > [2] > [9] > [0] > [3]", [1, 2, 0]), ("1 2 3 1", [0, 1, 2]),
        ("the best is 3, not 2" + "9" * 30, [2, 0, 1]),
    ],
)  # fmt: skip
def test_orders_are_repaired(text, order):
    assert permutation(text, 3) == order


def test_a_window_goes_from_the_end_to_the_beginning(folders, monkeypatch):
    model = reranker(folders["qwen3"], CrossLayout("Q", "[{n}]", "Rank.", yes="", no=""))
    candidates = [Example(n, f"flag {n}", None, id=str(n)) for n in range(7)]
    judge = Listwise(model, window=4, stride=2)
    assert sorted(judge.score(candidates[0], candidates).tolist()) == [1, 2, 3, 4, 5, 6, 7]
    seen = []

    def backwards(query, given):
        seen.append([int(c.id) for c in given])
        return " > ".join(f"[{n}]" for n in range(len(given), 0, -1)), 7

    monkeypatch.setattr(judge, "_written", backwards)
    scores = judge.score(candidates[0], candidates)
    assert seen == [[3, 4, 5, 6], [1, 2, 6, 5], [0, 5, 6, 2]]
    assert scores.argsort(descending=True).tolist() == [2, 6, 5, 0, 1, 4, 3]


def test_what_no_score_can_be_made_of_is_refused(folders):
    model = reranker(folders["qwen3"])
    query, *candidates = mixed(model.collator())
    judge = Pointwise(model)
    with pytest.raises(DataError, match="1:1: has no candidate to score"):
        judge.score(query, [])
    with pytest.raises(DataError, match="1:4: has no text or picture"):
        Pointwise(model, pictures=False).score(query, candidates)
    with pytest.raises(DataError, match="has no vector of either"):
        vectors(model, [query])
    for cross, message in (
        (CrossLayout(yes="which"), "layout.cross.yes 'which' is 2 tokens"),
        (CrossLayout(yes="a", no=""), "layout.cross.no '' is 0 tokens"),
        (CrossLayout(yes="a", no="a"), "the same token"),
    ):
        with pytest.raises(DataError, match=message):
            reranker(folders["qwen3"], cross)
    with pytest.raises(DataError, match="not that of a pointwise reranker"):
        scorer(make(folders["qwen3"]))
    with pytest.raises(DataError, match="reads each item alone"):
        make(folders["qwen3"]).collator().together([query], [candidates])
    with pytest.raises(DataError, match="pooling to last"):
        Layout(cross=WORDS, pooling="at", mark="<|emb|>")
    ordering = reranker(folders["qwen3"], CrossLayout(ask="Rank.", yes="", no=""))
    with pytest.raises(DataError, match="stride 3"):
        Listwise(ordering, window=2, stride=3)
    processor = model.collator().processor
    kept, processor.chat_template = processor.chat_template, "{{ messages[0].role }}"
    with pytest.raises(DataError, match="1:1 with 1:2: pictures and their places"):
        judge.score(query, candidates[:1])
    processor.chat_template = kept
    with torch.no_grad():
        model.vlm.lm_head.weight[processor.tokenizer.convert_tokens_to_ids("a")] = torch.nan
    with pytest.raises(DataError, match="1:1: its score with 1:2, 1:3, 1:4 is no number"):
        judge.score(query, candidates)
