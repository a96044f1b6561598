"""A thought and a final text: whatever marks are missing; each side's text from itself alone."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment import corpus, queries
from augment.checks import judge
from augment.checks.ecr import parse_ecr
from augment.data import write_candidates
from augment.engines.scripted import ScriptedEngine
from augment.prompts import load_prompt
from augment.records import Item, Reply
from augment.store import Store
from augment.views import open_view
from tests.fakes import write_root

THOUGHT, FINAL = "Three bands, red above.\nA star in the middle.", "A red flag with a star."


@pytest.mark.parametrize(
    ("answer", "text", "final", "mended", "refused"),
    [
        (f"<think>{THOUGHT}</think>\n{FINAL}", f"{THOUGHT}\n{FINAL}", FINAL, 0, ""),
        (f"Sure!\n<THINK>{THOUGHT}</Think> {FINAL}", f"{THOUGHT}\n{FINAL}", FINAL, 0, ""),
        (f"{THOUGHT}</think>{FINAL}", f"{THOUGHT}\n{FINAL}", FINAL, 1, ""),
        (f"<think>{THOUGHT}\n\n{FINAL}", f"{THOUGHT}\n{FINAL}", FINAL, 1, ""),
        (FINAL, FINAL, FINAL, 2, ""),
        (f"<think></think>{FINAL}", FINAL, FINAL, 0, ""),
        (f"<think>{THOUGHT}</think>  ", THOUGHT, "", 0, "no final text"),
        ("", "", "", 2, "no final text"),
        (f"<think>a<think>b</think></think>{FINAL}", None, "", 0, "nested thoughts"),
        (f"<think>a</think>b<think>c</think>{FINAL}", None, "", 0, "nested thoughts"),
        (f"</think>a<think>{FINAL}", None, "", 0, "nested thoughts"),
    ],
)
def test_a_thought_and_a_final_text_are_read(answer, text, final, mended, refused):
    found = parse_ecr(answer)
    assert (found.final, len(found.mended), found.refused) == (final, mended, refused)
    assert text is None or found.text == text
    verdict = judge(Reply(answer), load_prompt("tte/corpus"))
    assert verdict.scores["mended"] == mended
    assert verdict.rejected.startswith(refused)
    assert refused or (verdict.lengths, verdict.text) == ({"final": final}, text)


@given(st.text(alphabet="<>/think \nab", max_size=60))
def test_no_answer_breaks_the_reader(answer):
    found = parse_ecr(answer)
    assert found.refused or found.final


def test_views_show_all_of_it_the_end_or_it_alone_and_the_published_text_where_it_is_refused(
    tmp_path,
):
    both, bad, plain = write_root(
        tmp_path / "root",
        Item("1:1", "entry", ("1.png",), "image,text"),
        Item("1:2", "other", ("2.png",), "image,text"),
        Item("1:3", "a passage", ("3.png",), "image,text"),
    )
    alone = Item("1:4", "a passage alone", (), "text")
    pool = next((tmp_path / "root/cand_pool/local").glob("*.jsonl"))
    write_candidates(pool, [both, bad, plain, alone])
    answers = {"1:1": f"<think>{THOUGHT}</think>{FINAL}", "1:2": f"<think>{THOUGHT}</think>"}
    engine = ScriptedEngine(
        {**answers, "1:3": FINAL, "1:4": f"<think>{THOUGHT}</think>{FINAL}"}, root=tmp_path / "root"
    )
    corpus.run(tmp_path / "root", tmp_path / "s", prompt="tte/corpus", engine=engine)

    def shown(item, *view):
        return open_view("corpus", view[0], tmp_path / "s", length=view[1]).text(item)

    assert shown(both, "append", "dense") == f"entry\n{THOUGHT}\n{FINAL}"
    assert shown(both, "append", "final") == f"entry\n{FINAL}"
    assert shown(both, "replace", "dense") == f"{THOUGHT}\n{FINAL}"
    assert {shown(bad, view, "dense") for view in ("append", "replace")} == {"other"}
    assert shown(plain, "append", "final") == shown(plain, "append", "dense") != "a passage"
    assert shown(alone, "append", "final") == f"{alone.text}\n{FINAL}", "texts alone, too"
    prints = {
        open_view("corpus", "append", tmp_path / "s", length=n).name for n in ("dense", "final")
    }
    assert len(prints) == 2


def test_the_text_of_a_side_depends_on_that_side_alone(tmp_path):
    """Whoever is paired with whom, the same is sent, and so the same keys come out."""
    dids = [f"1:{n}" for n in range(6)]
    kinds = ("tte/query", "tte/question", "tte/change")
    named = dict(
        zip(("image_prompt", "question_prompt", "modification_prompt"), kinds, strict=True)
    )
    made = []
    for number, order in enumerate((dids, random.Random(3).sample(dids, 6))):
        root, store = tmp_path / f"root{number}", tmp_path / f"s{number}"
        write_root(root, *[Item(d, f"entry {d}", (f"{n}.png",), "image,text")
                           for n, d in enumerate(dids)])  # fmt: skip
        (root / "query/train").mkdir(parents=True)
        rows = [
            {"qid": f"9:{n}", "query_txt": "what is this?", "query_img_path": f"{n}.png",
             "query_modality": "image,text", "pos_cand_list": [did], "neg_cand_list": [],
             "query_src_content": None, "task_id": 6}
            for n, did in enumerate(order)
        ]  # fmt: skip
        (root / "query/train/mbeir_x_task6_train.jsonl").write_text(
            "".join(f"{json.dumps(row)}\n" for row in rows)
        )
        engine = ScriptedEngine(root=root)
        corpus.run(root, store, prompt="tte/corpus", engine=engine)
        queries.run(root, store, engine=engine, text_prompt="tte/query", **named)
        made.append({side: {i: t.key for i, t in Store(store).texts(side).items()}
                     for side in ("query", "corpus")})  # fmt: skip
    assert made[0] == made[1]
    assert [len(one) for one in made[0].values()] == [6, 6]
