"""Flagland: every wording carries its facts, every world is what it says it is."""

import hashlib
import itertools
import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from augment import corpus, queries
from augment.data import DataRoot, read_qrels
from augment.data.pools import open_candidates, open_queries
from augment.engines.base import PACKAGED
from augment.engines.scripted import ScriptedEngine
from augment.enrichment.routing import confirm_by
from augment.records import TASKS
from augment.store import Store
from augment.views import open_view
from benchmarks.flagland import atlas, language, recall
from benchmarks.flagland.edits import families, random_edit, twins
from benchmarks.flagland.grammar import (
    COLOURS,
    FACT_TYPES,
    Charge,
    Flag,
    is_valid,
)
from benchmarks.flagland.oracle import (
    flags_of,
    oracle_engine,
    score_facts,
    told_by_targets,
    true_texts,
    write_mmeb,
)
from benchmarks.flagland.render import draw_flat
from benchmarks.flagland.world import (
    EDITS,
    RECALL,
    WORLD_TASKS,
    WorldConfig,
    build_countries,
    picture_path,
    recalled,
    split_of,
    write_world,
)
from benchmarks.trace import judge
from retrievers.cli import main
from retrievers.data.module import MBeirData
from retrievers.data.texts import WrittenConfig
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.mllm.encoder import Mllm
from retrievers.papers.trace import CHAIN_PROMPTS
from retrievers.training.rehearsal import Rehearsal, Rehearsed
from retrievers.vectors.search import test


def flags(count: int, seed: int = 0) -> list[Flag]:
    return list(itertools.islice(families(random.Random(seed)), count))


def test_a_description_states_exactly_the_facts_and_tells_all_flags_apart() -> None:
    many = flags(3000)
    for flag in many:
        assert language.parse(language.caption(flag)) == flag.facts(), flag
        assert Flag.from_dict(json.loads(json.dumps(flag.to_dict()))) == flag
    assert len({language.describe(flag) for flag in many}) == len(many)
    assert {kind for flag in many for kind, _ in flag.facts()} == set(FACT_TYPES)


def test_an_edit_changes_one_thing_and_its_request_names_it() -> None:
    rng = random.Random(4)
    for flag in flags(500, seed=4):
        edit, twin = random_edit(rng, flag)
        assert is_valid(twin)
        assert twin.facts() != flag.facts()
        request = language.modification_request(rng, flag, edit)
        if edit.kind in ("field colour", "part colour"):
            assert edit.after in request
            assert edit.before in request
        # One thing: no other part than the edited one differs.
        parts = ("layout", "colours", "proportion", "edging", "triangle", "canton", "border",
                 "charges")  # fmt: skip
        assert sum(getattr(flag, part) != getattr(twin, part) for part in parts) == 1


def test_streams_repeat_no_flag_and_many_are_twins() -> None:
    stream = list(itertools.islice(twins(random.Random(5)), 2000))
    assert len({flag.facts() for flag, _ in stream}) == 2000
    share = sum(edit is not None for _, edit in stream) / 2000
    assert 0.4 < share < 0.6


def test_a_resolved_question_answers_nothing_and_points_nowhere() -> None:
    for country in itertools.islice(atlas.countries(6), 200):
        rng = random.Random(country.index)
        for fact, answer in country.facts.items():
            asked, frame = language.question(rng, fact, "this country")
            alone = language.resolved(frame, country.flag)
            assert answer not in re.findall(r"\w+", alone)
            assert not any(words in alone for words in language.REFERENCES)
            assert asked != alone


def colour_at(picture: np.ndarray, x: float, y: float) -> str:
    height, width, _ = picture.shape
    pixel = picture[int(y * (height - 1)), int(x * (width - 1))].astype(float)
    return min(COLOURS, key=lambda name: np.abs(pixel - np.array(COLOURS[name])).sum())


@pytest.mark.parametrize(
    ("flag", "seen"),
    [
        (Flag("horizontal", ("red", "white", "blue")),
         {(0.5, 0.1): "red", (0.5, 0.5): "white", (0.5, 0.9): "blue"}),
        (Flag("vertical", ("green", "black"), "first wide"),
         {(0.6, 0.5): "green", (0.75, 0.5): "black"}),
        (Flag("cross", ("red", "white"), edging="blue"),
         {(0.5, 0.5): "white", (0.1, 0.1): "red", (0.7, 0.62): "blue"}),
        (Flag("quarters", ("yellow", "purple")),
         {(0.1, 0.1): "yellow", (0.9, 0.1): "purple", (0.1, 0.9): "purple"}),
        (Flag("plain", ("white",), triangle="green", border=None,
              charges=(Charge("disc", "black", 1, "large", "fly"),)),
         {(0.05, 0.5): "green", (0.78, 0.5): "black", (0.6, 0.05): "white"}),
        (Flag("plain", ("orange",), canton="maroon", border=None,
              charges=(Charge("star", "yellow", 1, "small", "canton"),)),
         {(0.02, 0.02): "maroon", (0.21, 0.27): "yellow", (0.9, 0.9): "orange"}),
    ],
)  # fmt: skip
def test_pictures_show_the_scene_graph(flag: Flag, seen: dict[tuple[float, float], str]) -> None:
    picture = np.asarray(draw_flat(flag, 180, random.Random(0)))
    assert {at: colour_at(picture, *at) for at in seen} == seen


def test_rings_are_hollow_and_counts_are_countable() -> None:
    ring = Flag("plain", ("white",), charges=(Charge("ring", "red", 1, "large", "centre"),))
    picture = np.asarray(draw_flat(ring, 200, random.Random(1)))
    assert colour_at(picture, 0.5, 0.5) == "white"
    areas = []
    for count in (2, 3, 4, 5):
        charge = Charge("disc", "black", count, "small", "centre")
        picture = np.asarray(draw_flat(Flag("plain", ("white",), charges=(charge,)), 300,
                                       random.Random(2)))  # fmt: skip
        areas.append((picture.sum(2) < 200).mean() / count)
    assert max(areas) / min(areas) < 1.4


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("worlds") / "world"
    write_world(root, WorldConfig(200, seed=3, width=48))
    return root


def test_a_world_is_its_seed(world: Path, tmp_path: Path) -> None:
    """Today, with more processes, and ever since the results under benchmarks/results were made."""
    write_world(tmp_path / "again", WorldConfig(200, seed=3, width=48), workers=2)
    found = digest(tmp_path / "again")
    assert found == digest(world)
    # Of pictures another Pillow may write other bytes; how they look is tested above.
    # Whom to write for was listed later.
    later = (".jpg", "truth/reasoning.txt")
    lines = [f"{path} {sha}\n" for path, sha in found.items() if not path.endswith(later)]
    assert len(found) - len(lines) == 401
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == (
        "5186ec59143c8aefbffbbc7cac834738a6475a1f2780cb0dafb32b2aea6ee967"
    )


def test_a_world_is_a_complete_root(world: Path) -> None:
    root = DataRoot(world)
    assert {file.task for file in root.pools()} == set(WORLD_TASKS)
    instructions = root.instructions()
    for split in ("val", "test"):
        assert {file.task for file in root.query_files(split)} == set(WORLD_TASKS)
        for file in root.query_files(split):
            pool = open_candidates(root.pool_for("flagland", file.task, split))
            qrels = {
                (q.qid, q.did) for q in read_qrels(root.qrels_file("flagland", file.task, split))
            }
            queries = open_queries(file.path)
            assert len(queries) > 0
            for query in queries:
                assert query.task == file.task
                positive = pool[pool.row(query.positives[0])]
                assert (query.item.modality, positive.modality) == TASKS[query.task]
                assert (query.item.id, positive.id) in qrels
                assert len(instructions.get("80", query.item.modality, positive.modality)) == 4
                for item in (query.item, positive):
                    assert item.image is None or (world / item.image).is_file()
    union = open_candidates(root.union_pool("test"))
    local = {item.id for file in root.pools() for item in open_candidates(file.path)}
    assert {item.id for item in union} == local


def test_splits_share_no_country_and_no_family() -> None:
    config = WorldConfig(400, seed=5)
    by_family: dict[int, set[str]] = {}
    for country in build_countries(config):
        by_family.setdefault(country.family, set()).add(split_of(config, country))
    assert all(len(splits) == 1 for splits in by_family.values())
    assert {"train", "val", "test"} == set().union(*by_family.values())


def test_bad_sizes_and_full_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="200 to 200,000"):
        WorldConfig(10)
    (tmp_path / "something").write_text("x")
    with pytest.raises(ValueError, match="not empty"):
        write_world(tmp_path, WorldConfig(200))


def test_the_oracle_engine_writes_the_truth(world: Path, tmp_path: Path) -> None:
    """Its texts state the facts of the wanted picture, and are those of the published results."""
    golden = {
        "query": "37325a8692c21254fdcba7d74aac24fa37e1fc5c42fb12bd1bab8095968c82b9",
        "corpus": "44e9734877a68cf514a15643c09f7aae2ccd30732abd152e8190b6deeee59f50",
    }
    for side, verb in (("corpus", corpus), ("query", queries)):
        assert verb.run(world, tmp_path, engine=oracle_engine(world, side)).exit_code == 0
        texts = Store(tmp_path).texts(side)
        said = {item: text.raw or text.text for item, text in texts.items()}
        written = json.dumps(said, sort_keys=True)
        assert hashlib.sha256(written.encode()).hexdigest() == golden[side]
        found = score_facts(world, side, texts)
        assert found["all"]["precision"] == found["all"]["recall"] == 1.0
    root, flags = DataRoot(world), flags_of(world)
    view = open_view("query", "replace", tmp_path)
    for file in root.query_files("test"):
        pool = open_candidates(root.pool_for("flagland", file.task, "test"))
        for query in open_queries(file.path):
            wanted = pool[pool.row(query.positives[0])]
            if query.item.image is not None and wanted.image is not None:
                text = view.text(query.item) or ""
                assert language.parse(text) == flags[wanted.image].facts()


def test_a_task_in_mmebs_files_is_that_of_the_world(world: Path, tmp_path: Path) -> None:
    """Imported, it has its texts, positives and rationales; hit@1 of its lists is success@1."""
    write_mmeb(world, tmp_path, tasks=(6,))
    data, made = DataRoot(world), DataRoot(tmp_path / "root")
    texts, told = Store(tmp_path / "store").texts("query"), told_by_targets(world)
    assert texts.recipe.target_seen
    prompt = data.instructions().get("80", "image,text", "text")[0]
    pool = open_candidates(data.pool_for("flagland", 6, "test"))
    for split in ("train", "test"):
        asked = [query for file in data.query_files(split) for query in open_queries(file.path)
                 if query.task == 6]  # fmt: skip
        (file,) = made.query_files(split)
        found = open_candidates(made.pool_for(file.dataset, file.task, split))
        for query, own in zip(asked, open_queries(file.path), strict=True):
            assert own.item.text == f"{prompt} {query.item.text}"
            wanted, positive = (
                pool[pool.row(query.positives[0])],
                found[found.row(own.positives[0])],
            )
            assert (positive.text, positive.modality) == (wanted.text, "text")
            assert told[query.item.id] in texts[own.item.id].text
    test_of, lists = tmp_path / "run", tmp_path / "lists"
    test(ClipScoreFusion("flagland-clip"), MBeirData(str(made.path), instructions=False), test_of)
    of = ["--model=retrievers.models.clip.ClipScoreFusion", "--model.model_name=flagland-clip"]
    main(["mmeb", f"--root={tmp_path / 'test'}", f"--images={world}", f"--out={lists}", *of])
    hit = json.loads((lists / "metrics.json").read_text())["rows"][0]["metrics"]["success@1"]
    scores = json.loads((test_of / "metrics.json").read_text())
    assert 0 < hit == pytest.approx(scores["rows"][0]["metrics"]["success@1"])


def test_several_changes_are_asked_for_at_once_of_different_parts(tmp_path: Path) -> None:
    config = WorldConfig(200, seed=3, twin_share=0.9, width=48, edits=3)
    countries = write_world(tmp_path / "world", config)
    root = DataRoot(tmp_path / "world")
    for name, (count, number) in EDITS.items():
        asked = [query for path in sorted(root.path.rglob(f"query/*/mbeir_{name}_*.jsonl"))
                 for query in open_queries(path)]  # fmt: skip
        wanted = {
            f"{number}:{n + 1}" for n in range(count, 200)
            if all(countries[m].edit for m in range(n - count + 1, n + 1))
            and len({countries[m].edit.part for m in range(n - count + 1, n + 1)}) == count
        }  # fmt: skip
        assert {query.item.id for query in asked} == wanted
        assert len(wanted) > 20
        pool = open_candidates(root.pool_for(name, 7, "test"))
        for query in asked:
            country = countries[pool.row(query.positives[0])]
            assert query.item.image == picture_path(country.index - count)
            text = query.item.text or ""
            assert text.count("; besides that, ") == count - 1
            # Every changed colour, in words, is in the request: of what it becomes, for additions.
            for n in range(country.index - count + 1, country.index + 1):
                edit = countries[n].edit
                assert edit.kind == "proportion" or (edit.after or edit.before) in text
    told = {row["qid"] for row in map(json.loads, (
        root.path / "truth" / "queries.jsonl").read_text().splitlines())}  # fmt: skip
    assert {"83", "84"} <= {qid.partition(":")[0] for qid in told}
    with pytest.raises(ValueError, match="1 to 3 changes"):
        WorldConfig(edits=4)


def test_what_must_be_recalled_is_asked_of_every_country_and_shown_nowhere(tmp_path: Path) -> None:
    """By name and by capital; a model reads the facts of all, the answers of trained ones."""
    from transformers import AutoProcessor

    config = WorldConfig(200, seed=3, width=48, recall=True)
    countries = write_world(tmp_path / "world", config)
    root = DataRoot(tmp_path / "world")
    known = recall.countries_of(root.path)
    assert [(one.name, one.capital, one.flag) for one in sorted(known)] == sorted(
        (one.name, one.facts["capital"], one.flag) for one in countries
    )
    for dataset, told in (("onehop", "name"), ("twohop", "capital")):
        pool = open_candidates(root.pool_for(dataset, 0, "test"))
        assert len(pool) == 200
        for query in open_queries(root.query_file(dataset, 0, "test")):
            country = countries[pool.row(query.positives[0])]
            assert split_of(config, country) == "test"
            said = {"name": country.name, "capital": country.facts["capital"]}
            assert said.pop(told) in (query.item.text or "")
            assert said.popitem()[1] not in (query.item.text or "")
    twin = replace(countries[1], facts=countries[1].facts | countries[0].facts)
    asked_for = [
        list(recalled(config, [countries[0], twin, countries[2]], name)) for name in RECALL
    ]
    assert [len(some) for some in asked_for] == [3, 1], "a capital of two countries asks none"
    processor = AutoProcessor.from_pretrained(PACKAGED["flagland-vlm"])
    facts = recall.Facts(known, processor, seed=0)
    names = {one.name: one.split for one in known}
    rows = [recall.chain_row(one, random.Random(n)) for n, one in enumerate(facts.shown)]
    assert {names[name] for row in rows for name in names if name in row.answer} == {"train"}
    for batch in facts.draw(3, 32):
        learnt = [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
        asked = processor.tokenizer.batch_decode(batch["inputs"]["input_ids"])
        for whole, answer in zip(asked, learnt, strict=True):
            assert answer in whole
            # Which country is meant cannot be told where the prompt does not say it.
            assert ("about a country" in whole) == answer.startswith(" Its flag")
    again = tmp_path / "facts.jsonl"
    recall.rows(root.path, again, each=2)
    rehearsed = Rehearsed(Rehearsal(str(again), rows=64), Mllm().collator())
    told = [json.loads(line) for line in again.read_text().splitlines()]
    assert len(told) == 2 * 3 * len(known)
    assert {name for name in names if any(name in row["messages"][-1]["content"] for row in told)
            } == set(names)  # fmt: skip
    assert rehearsed.draw(0, 0).tokens.shape[0] == 64
    engine = oracle_engine(root.path, "query")
    done = queries.run(root.path, tmp_path / "store", engine=engine, text_prompt="rar/recall")
    assert done.exit_code == 0
    found = score_facts(root.path, "query", Store(tmp_path / "store").texts("query"))
    assert found["all"]["recall"] == 1.0


def test_a_judge_is_scored_by_what_it_refuses(tmp_path: Path) -> None:
    """With true descriptions it is never wrong; with those of other pictures, nearly always."""
    root = tmp_path / "world"
    write_world(root, WorldConfig(200, seed=3, width=48, recall=True))
    true = true_texts(root, "corpus")
    names = sorted(true)
    others = dict(zip(names, (true[name] for name in [*names[40:], *names[:40]]), strict=True))
    found = {}
    for word, texts in (("true", true), ("others", others)):
        engine = ScriptedEngine(texts, root=root)
        corpus.run(root, tmp_path / word, engine=engine)
        found[word] = judge.score(root, tmp_path / word, count=100)
    assert 80 <= found["true"]["chains"] <= 100
    assert 30 <= found["true"]["wrong"] <= 70
    assert found["true"]["precision"] == found["true"]["recall"] == 100
    assert found["true"]["true_refused"] == 0
    assert found["others"]["true_refused"] > 90
    assert found["others"]["precision"] < 65
    assert judge.compared("A flag with a plain red field.", "") == "no 0.9", "layout and colour"
    bands = "A flag with horizontal bands of red, white and blue"
    verdict = judge.compared(f"{bands}.", f"{bands}, one large green star in the canton.")
    assert verdict.startswith("yes 0.")
    assert float(verdict.split()[1]) < 0.7, "true of many: not sure"


def test_the_oracles_chains_in_tags_pass_rules_and_verifier_and_are_what_is_taught(
    tmp_path: Path,
) -> None:
    root, store = tmp_path / "world", tmp_path / "chains"
    write_world(root, WorldConfig(200, seed=3, width=48))
    prompts = {f"{kind}_prompt": name for kind, name in CHAIN_PROMPTS.items()}
    engine = oracle_engine(root, "query", tagged=True)
    queries.run(root, store, split=("train",), engine=engine, **prompts)
    chains, true = Store(store).texts("query"), true_texts(root, "query")
    refused = [name for name in chains if chains[name].rejected]
    assert len(refused) < 0.05 * len(chains), Counter(chains[n].rejected for n in refused)
    changes = {row["qid"] for row in map(json.loads, (root / "truth" / "queries.jsonl").open())
               if row["kind"] == "modification"} & chains.keys() - {*refused}  # fmt: skip
    assert changes
    written = WrittenConfig(str(store)).open()
    for name in chains.keys() - {*refused}:
        assert chains[name].lengths["final"] == true[name]
        assert written.of(name) == chains[name].text
        assert "<" not in chains[name].text
    corpus.run(root, tmp_path / "seen", engine=oracle_engine(root, "corpus"))
    confirm_by(judge.comparing(root, tmp_path / "seen"), root, store)
    after = Store(store).texts("query")
    assert not any(after[name].rejected for name in changes)
