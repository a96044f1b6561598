"""Chains: their form, who gets one, and whether the target bears them out."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from transformers import AutoTokenizer

from augment import queries
from augment.__main__ import main
from augment.checks import Limits, checks_of, judge
from augment.checks.judge import mark
from augment.checks.rewrite import Forbidden
from augment.data.items import RootItems
from augment.engines.base import PACKAGED
from augment.engines.scripted import ScriptedEngine
from augment.enrichment.pipeline import Options
from augment.enrichment.routing import verdict
from augment.errors import DataError
from augment.files import read_ids
from augment.prompts import load_prompt
from augment.records import Reply
from augment.store import Store
from retrievers.data.texts import WrittenConfig
from tests.retrievers.models.test_retriever import make_root

LONG = (
    "A plain square in one colour, with a thin border, seen from the front. Nothing else is there, "
    "and no writing."
)
GOOD = f"<reasoning>{LONG}</reasoning>\n<answer>a red square with a border</answer>"
FLAG = "red, white and blue bands, a small yellow star in the canton, a green ring at the fly"
#: The answer says again what the reasoning said, and must.
AGAIN = (
    f"<reasoning>The flag has {FLAG}. The bands become red squares. All else stays as it is."
    f"</reasoning><answer>A flag with {FLAG} and red squares.</answer>"
)
CHAIN = {"image_prompt": "trace/visual", "question_prompt": "trace/knowledge",
         "modification_prompt": "trace/composed"}  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (GOOD, ""),
        (f"<think>a draft <answer>x</answer></think>{GOOD}", ""),
        (AGAIN, ""),
        (AGAIN.replace("A flag with", "The flag has").replace(" and red squares", ""), "unchanged"),
        (AGAIN.replace("it is.", " ".join(["it is as it is."] * 9)), "repetition"),
        (
            GOOD.replace(
                "a red square with a border", "I'm sorry, but I can't tell red from blue."
            ),
            "refusal",
        ),
        (GOOD.replace("</reasoning>", ""), "tags"),
        (f"{GOOD}{GOOD}", "tags"),
        (f"So: {GOOD}", "tags"),
        ("<answer>a red square</answer><reasoning>because</reasoning>", "tags"),
        ("<reasoning>too short</reasoning><answer>a red square</answer>", "reasoning_tokens"),
        (GOOD.replace("a red square with a border", "square"), "answer_tokens"),
        (GOOD.replace("a red square with a border", "red and blue squares " * 20), "answer_tokens"),
        (GOOD.replace("a red square with a border", "two dogs on a lawn"), "unrelated"),
        (GOOD.replace("a red square with a border", "make the SQUARE red!"), "repeated request"),
        (
            f"<reasoning>{'one two three four. ' * 60}</reasoning><answer>a red square</answer>",
            "reasoning_tokens",
        ),
    ],
)
def test_chains_are_held_to_the_papers_rules(reply, reason):
    prompt = load_prompt("trace/composed")
    target = Forbidden(texts=["A red square."])
    found = judge(Reply(reply, "stop", 1, 1), prompt, "Make the square red.", target)
    assert found.rejected.startswith(reason)
    assert bool(found.rejected) == bool(reason), found.rejected
    if not reason and reply is not AGAIN:
        assert found.text == f"{LONG.strip()}\na red square with a border"
        assert found.lengths["final"] == "a red square with a border"


def test_a_chains_tokens_are_counted_by_the_tokenizer_that_is_named():
    """The packaged model's small vocabulary needs more tokens for the same words."""
    folder, prompt = str(PACKAGED["flagland-vlm"]), load_prompt("trace/composed")
    own, clips = (judge(Reply(GOOD, "stop", 1, 1), prompt, limits=Limits(tokenizer=name))
                  for name in (folder, ""))  # fmt: skip
    theirs = AutoTokenizer.from_pretrained(folder)
    assert own.scores["reasoning_tokens"] == len(theirs(LONG.strip())["input_ids"])
    assert own.scores["reasoning_tokens"] > clips.scores["reasoning_tokens"]
    assert mark(Limits(tokenizer=folder), prompt) != mark(Limits(), prompt)
    plain = load_prompt("rar/corpus")
    assert mark(Limits(tokenizer=folder), plain) == mark(Limits(), plain)
    assert "tokenizer" not in checks_of(Limits(), [prompt])["limits"], "as in older records"


def test_a_tokenizer_that_is_none_is_refused_before_a_model_is_asked(root, tmp_path):
    engine = ScriptedEngine([GOOD], root=root)
    none = Options(limits=Limits(tokenizer="/no/such/folder"))
    with pytest.raises(DataError, match=r"limits\.tokenizer: .* holds no tokenizer"):
        queries.run(root, tmp_path / "chains", engine=engine, options=none, **CHAIN)
    assert not engine.calls


@pytest.mark.parametrize(
    ("text", "found"),
    [("Yes 0.9", ("yes", 0.9)), ("no, 80 %", ("no", 0.8)), ("Reason: 1", ("reason", 1.0)),
     ("yes", ("yes", 0.0)), ("direct 7", ("direct", 0.0)), ("perhaps", None)],
)  # fmt: skip
def test_verdicts_are_read(text, found):
    assert verdict(text) == found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("routing") / "root")


@pytest.fixture(scope="module")
def trained(root):
    return [item.id for item in RootItems(root, "query") if item.image]


def answers(folder, said):
    path = folder / "answers.json"
    path.write_text(json.dumps(said))
    return f"scripted:{path}"


def test_queries_are_routed_by_data_set_judge_margin_and_chance(root, tmp_path, capsys):
    out = tmp_path / "ids.txt"

    def route(*more):
        code = main(["route", "--root", str(root), "--out", str(out), *map(str, more)])
        return code, read_ids(out) if code == 0 and out.read_text() else frozenset()

    assert route("--by", "dataset") == (0, frozenset()), "squares are none of the paper's"
    renamed = tmp_path / "named"
    for name in ("query/train", "cand_pool/local"):
        (renamed / name).mkdir(parents=True)
    for path in (root / "query" / "train").glob("*.jsonl"):
        (renamed / "query" / "train" / path.name.replace("squares", "cirr")).write_bytes(
            path.read_bytes()
        )
    every = {q["qid"] for p in (renamed / "query" / "train").glob("*.jsonl")
             for q in map(json.loads, p.read_text().splitlines())}  # fmt: skip
    assert main(["route", "--root", str(renamed), "--out", str(out)]) == 0
    assert read_ids(out) == every
    _, half = route("--by", "random", "--share", 0.5)
    assert 0 < len(half) < len(every)
    assert route("--by", "random", "--share", 0.5)[1] == half
    # By need: those whose positive is not first.
    order = sorted(every)
    positives = {q.item.id: q.positives[0] for q in _train(root)}
    run = tmp_path / "run.trec"
    lines = []
    for place, qid in enumerate(order[:-1]):
        own = 0.5 if place % 2 else 0.3
        lines += [f"{qid} Q0 {positives[qid]} 1 {own} t", f"{qid} Q0 9:9 2 0.4 t"]
    lines.append(f"{order[0]} Q0 9:8 3 0.1 t")
    run.write_text("\n".join(lines) + "\n")
    _, need = route("--by", "margin", "--run", run)
    assert need == {qid for place, qid in enumerate(order[:-1]) if place % 2 == 0}
    assert "nothing is known of 1" in capsys.readouterr().out
    for by in ("judge", "margin"):
        assert route("--by", by)[0] == 2
    store = tmp_path / "judged"
    model = answers(tmp_path, {qid: "reason 0.9" if qid in half else "direct 0.8" for qid in every})
    judge_all = dict.fromkeys(("image_prompt", "question_prompt", "modification_prompt",
                               "text_prompt"), "trace/complexity")  # fmt: skip
    queries.run(root, store, split=("train",), options=Options(model=model), **judge_all)
    assert route("--by", "judge", "--store", store)[1] == half


def _train(root):
    from augment.data import DataRoot
    from augment.data.pools import open_queries

    return [q for file in DataRoot(root).query_files("train") for q in open_queries(file.path)]


def test_only_routed_queries_are_asked_and_unborne_chains_are_refused(root, trained, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"{one}\n" for one in trained[:3]))
    store, verdicts = tmp_path / "chains", tmp_path / "chains-verdicts"
    reply = GOOD.replace("a red square", "the number on a square")
    model = answers(tmp_path, dict.fromkeys(trained, reply))
    queries.run(root, store, only=ids, options=Options(model=model), **CHAIN)
    chains = Store(store).texts("query")
    assert set(chains) == set(trained[:3])
    accepted = [name for name in chains if not chains[name].rejected]
    assert accepted, [one.rejected for one in chains.values()]
    assert len(accepted) == 3
    said = dict(zip(accepted, ("yes 0.9", "yes 0.6"), strict=False))  # and none of the third
    model = answers(tmp_path, said)
    assert main(["confirm", "--root", str(root), "--store", str(store), "--model", model]) == 3
    assert Store(verdicts).recipe("query").target_seen
    after = Store(store).texts("query")
    for name in accepted:
        told = said.get(name, "no verdict")
        reason = "" if told == "yes 0.9" else f"not borne out: {told}"
        assert after[name].rejected == reason
        assert after[name].text == chains[name].text
    shown = tmp_path / "page"
    assert main(["report", str(store), "--root", str(root), "--out", str(shown)]) == 0
    page = "".join(file.read_text() for file in shown.rglob("*.html"))
    assert "not borne out" in page
    assert accepted[1] in page
    # The same as tables beside a root, for others and for fit.
    out = tmp_path / "out"
    told = [f"--root={root}", f"--out={out}", f"--traces={store}", f"--only={ids}"]
    assert main(["export", *told]) == 0
    rows = load_dataset(str(out), "trace", split="train", cache_dir=str(tmp_path / "cache"))
    assert {row["id"] for row in rows} > set(trained)
    for row in rows:
        one = after.get(row["id"])
        assert row["text"] == ("" if one is None else one.text)
        assert row["refused"] == ("" if one is None else one.rejected)
        assert row["writes"] == (one is not None and not one.rejected)
        assert not one or row["answer"] == one.lengths["final"]
    card = (out / "README.md").read_text()
    assert "| traces of queries | replace | 72 | 3 (4.2 %) | 6 |" in card, "ids stand in all splits"
    assert "Refused among the traces of queries: not borne out 6." in card
    assert CHAIN["image_prompt"] in card
    read = WrittenConfig(str(out), refused="skip").open()
    same = WrittenConfig(str(store), only=str(ids), refused="skip").open()
    for name in trained:
        assert read.of(name) == same.of(name)
        assert read.leaves_out(name) == same.leaves_out(name)
    assert read.name != same.name, "whom it lets write is another table"
    odd = rows.to_pandas().assign(text=[["a", "list"]] * len(rows))
    table = pa.Table.from_pandas(odd).replace_schema_metadata({"recipe": "{}"})
    pq.write_table(table, out / "trace" / "train-00000.parquet")
    with pytest.raises(DataError, match="is no table of traces"):
        WrittenConfig(str(out)).open()
    (out / "trace" / "train-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is no table of traces"):
        WrittenConfig(str(out)).open()
    # Another run writes nothing anew and lets the refusals stand.
    model = answers(tmp_path, dict.fromkeys(trained, reply))
    queries.run(root, store, only=ids, options=Options(model=model), **CHAIN)
    again = Store(store).texts("query")
    assert {n: again[n].rejected for n in again} == {n: after[n].rejected for n in after}
