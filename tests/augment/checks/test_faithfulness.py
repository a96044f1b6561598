"""Faithfulness by a CLIP model, and scores as a table."""

import json
import random
from itertools import islice
from pathlib import Path

import pandas as pd
import pytest

from augment import corpus
from augment.__main__ import main
from augment.checks.faithful import Faithfulness
from augment.data import write_candidates
from augment.enrichment.pipeline import Options
from augment.errors import EngineError
from augment.records import Item
from augment.store import Store
from augment.store.report import collect, report
from benchmarks.flagland import atlas, language
from benchmarks.flagland.edits import random_edit
from benchmarks.flagland.render import draw_flat

CLIP = Path(__file__).parents[3] / "retrievers/models/weights/flagland-clip"


@pytest.fixture(scope="module")
def world():
    countries = list(islice(atlas.countries(5), 12))
    rng = random.Random(1)
    pictures = [draw_flat(c.flag, 192, random.Random(c.index)) for c in countries]
    true = [f"A flag with {language.human_description(rng, c.flag)}." for c in countries]
    twins = [random_edit(rng, c.flag)[1] for c in countries]
    wrong = [f"A flag with {language.human_description(rng, flag)}." for flag in twins]
    return pictures, true, wrong, Faithfulness(str(CLIP))


def test_true_texts_score_above_texts_of_other_flags_and_wrong_facts(world):
    pictures, true, wrong, judged = world
    ours, others, twins = (
        judged.score(pictures, texts) for texts in (true, true[1:] + true[:1], wrong)
    )
    mean = lambda found, field: sum(getattr(f, field) for f in found) / len(found)  # noqa: E731
    for field in ("cosine", "rank", "word"):
        assert mean(ours, field) > mean(others, field) + 0.1
    assert mean(ours, "word") > mean(twins, "word")
    assert all(-1 <= f.cosine <= 1 and 0 <= f.rank <= 1 and 0 <= f.word <= 1 for f in ours)
    named = {word for f in ours for word, _ in f.words}
    assert named & {"red", "blue", "green", "white", "yellow", "black"}


def test_a_text_without_rivals_or_company(world):
    pictures, _, _, judged = world
    (found,) = judged.score(pictures[:1], ["Something."])
    assert (found.rank, found.word, found.words) == (1.0, 1.0, ())


def test_the_worst_sentence_counts(world):
    pictures, true, _, judged = world
    alone, spoilt = (
        judged.score(pictures[:1], [text])[0] for text in (true[0], f"{true[0]} A dog on a sofa.")
    )
    assert spoilt.cosine < alone.cosine


def test_no_such_model():
    with pytest.raises(EngineError, match="cannot load"):
        Faithfulness("no-such-model")


def test_the_table_has_every_score_as_a_column(tmp_path, world, capsys):
    pictures, true, _, _ = world
    root = tmp_path / "root"
    (root / "i").mkdir(parents=True)
    items = [Item(f"1:{n}", None, (f"i/{n}.png",), "image") for n in range(4)]
    for n, item in enumerate(items):
        pictures[n].save(root / item.image)
    write_candidates(root / "cand_pool/local/mbeir_x_task0_cand_pool.jsonl", items)
    answers = {item.id: text for item, text in zip(items, true, strict=False)}
    answers["1:2"] = "A flag with horizontal bands of purple and maroon, five pink crescents."
    answers["1:3"] = "I'm sorry, I can't help with that."
    (tmp_path / "a.json").write_text(json.dumps(answers))
    store = tmp_path / "s"
    corpus.run(root, store, options=Options(model=f"scripted:{tmp_path / 'a.json'}"))
    out = tmp_path / "t" / "scores.parquet"
    arguments = ["--store", str(store), "--out", str(out)]
    assert main(["scores", *arguments, "--root", str(root), "--clip", str(CLIP)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    table = pd.read_parquet(out)
    assert table["rejected"].to_dict()["1:3"] == "refusal"
    assert {"refusal", "length", "repetition", "clip_cosine", "clip_rank"} <= set(table.columns)
    assert set(table["clip_cosine"].nsmallest(2).index) == {"1:2", "1:3"}
    in_store = ["--store", str(store), "--root", str(root), "--clip", str(CLIP)]
    assert main(["scores", *in_store]) == 0
    texts = Store(store).texts("corpus")
    found = collect(Store(store), root, "corpus")["faithful"]
    assert found["scored"] == 4
    low = (table["clip_rank"] < 0.5) | (table["clip_word"] < 0.05)
    assert 0 < found["doubtful"] == low.sum() < 4
    assert set(found["worst"]) <= set(table.index[low])
    page = report(store, root, tmp_path / "page").read_text(encoding="utf-8")
    assert "doubted by CLIP" in page
    assert f"a sentence of {low.sum()} of the 4 that it scored" in page
    word = table.loc["1:2"]
    assert word["clip_doubted"] in texts["1:2"].text
    assert f"CLIP doubts “{word['clip_doubted']}” ({word['clip_word']:.2g})" in page
    assert main(["scores", *arguments, "--clip", str(CLIP)]) == 2
    assert "--root" in capsys.readouterr().err
    assert main(["scores", "--store", str(store), "--out", "x.txt"]) == 2
    assert "parquet" in capsys.readouterr().err
