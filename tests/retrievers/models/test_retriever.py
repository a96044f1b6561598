"""The retriever on a tiny M-BEIR root: coloured squares, a random two-layer CLIP."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional

from augment.data import (
    DataRoot,
    InstructionRow,
    write_candidates,
    write_instructions,
    write_qrels,
    write_queries,
)
from augment.errors import DataError, ImageError
from augment.records import Item, Qrel, Query, one_picture
from retrievers.data.examples import Example
from retrievers.data.module import LoaderConfig, MBeirData, SearchConfig
from retrievers.data.pictures import ImageLoader
from retrievers.data.plan import plan_test
from retrievers.evaluation.compare import scores_from_run
from retrievers.evaluation.run_files import read_run
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.inputs import Processor
from retrievers.models.long_text import count_tokens
from retrievers.models.towers import encode_text, load_clip
from retrievers.training.module import Contrastive
from retrievers.training.optim import AdamWCosine
from retrievers.vectors.search import test as evaluate

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    # CLIP's own tokenizer; the context is short so that steps are quick.
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
COLOURS = ("red", "green", "blue", "white", "black")

#: Marks of tokenizers, and the words that each is as ordinary text.
MARKS = {
    "<end_of_text>": "< end _ of _ text >", "<START_OF_TEXT>": "< start _ of _ text >",
    "&lt;end_of_text&gt;": "< end _ of _ text >", "<|endoftext|>": "<| endoftext |>",
}  # fmt: skip


def make_config(folder, config=CONFIG, name="squares-clip"):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return str(path)


def make_root(root, items=20):
    """Task 0 (text to image) and task 3 (image to text); one positive each; all splits."""
    images = root / "mbeir_images" / "squares_images"
    images.mkdir(parents=True)
    pictures, texts = [], []
    for n in range(items):
        path = f"mbeir_images/squares_images/{n}.png"
        shade = np.array([n * 12, 255 - n * 9, (n * 53) % 256], dtype=np.uint8)
        Image.fromarray(np.broadcast_to(shade, (16, 16, 3))).save(root / path)
        pictures.append(Item(f"7:{n + 1}", None, one_picture(path), "image"))
        texts.append(Item(f"7:{items + n + 1}", f"{COLOURS[n % 5]} number {n}", (), "text"))
    local = root / "cand_pool" / "local"
    write_candidates(local / "mbeir_squares_task0_cand_pool.jsonl", pictures)
    write_candidates(local / "mbeir_squares_task3_cand_pool.jsonl", texts)
    to_image = [
        Query(Item(f"7:{n + 1}", texts[n].text, (), "text"), 0, (pictures[n].id,))
        for n in range(items)
    ]
    to_text = [
        Query(Item(f"7:{items + n + 1}", None, pictures[n].images, "image"), 3, (texts[n].id,))
        for n in range(items)
    ]
    write_queries(root / "query" / "train" / "mbeir_squares_train.jsonl", to_image + to_text)
    for split in ("val", "test"):
        for task, queries in ((0, to_image[:8]), (3, to_text[:8])):
            stem = f"mbeir_squares_task{task}_{split}"
            write_queries(root / "query" / split / f"{stem}.jsonl", queries)
            qrels = [Qrel(q.item.id, q.positives[0], 1, task) for q in queries]
            write_qrels(root / "qrels" / split / f"{stem}_qrels.txt", qrels)
    rows = [
        InstructionRow("text", "image", "squares", "7", ("Find it.", "Show it.", "Which one?")),
        InstructionRow("image", "text", "squares", "7", ("Name it.", "What is it?")),
    ]
    write_instructions(root / "instructions" / "query_instructions.tsv", rows)
    return root


def keep_apart(root):
    """Takes the queries of other splits out of those of training."""
    train = root / "query/train/mbeir_squares_train.jsonl"
    held = {f"7:{n}" for n in [*range(1, 9), *range(15, 23)]}
    lines = train.read_text().splitlines(keepends=True)
    train.write_text("".join(line for line in lines if json.loads(line)["qid"] not in held))
    return root


@pytest.fixture
def retriever(config):
    torch.manual_seed(0)
    return ClipScoreFusion(config)


def loader_for(retriever, data):
    """Batches of training pairs."""
    pairs, _ = data.training(retriever.collator())
    return data.pairs_loader(pairs, retriever.collator())


def checkpoint_of(retriever):
    """What fit would write after no step."""
    module = Contrastive(retriever)
    saved = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(saved)
    return saved


def batch_of(retriever, kinds):
    random = torch.Generator().manual_seed(1)
    examples = [
        Example(
            n,
            f"number {n} " + "word " * n if "t" in kind else None,
            torch.randn(3, 16, 16, generator=random) if "i" in kind else None,
        )
        for n, kind in enumerate(kinds)
    ]
    return examples, retriever.collator()(examples, "query")


@pytest.mark.parametrize("kinds", [["t", "i", "it", "t"], ["t", "t"], ["i"], ["it"]])
@pytest.mark.parametrize("normalise", [False, True])
def test_routed_towers_equal_masked_towers(config, kinds, normalise):
    torch.manual_seed(0)
    retriever = ClipScoreFusion(config, normalize_towers=normalise)
    examples, inputs = batch_of(retriever, kinds)
    clip = retriever.clip
    texts = clip.encode_text(retriever.collator().tokenize([e.text or "" for e in examples]))
    blank = torch.zeros(3, 16, 16)
    images = clip.encode_image(
        torch.stack([blank if e.image is None else e.image for e in examples])
    )
    if normalise:
        texts, images = functional.normalize(texts, dim=-1), functional.normalize(images, dim=-1)
    mask_t = torch.tensor([[float("t" in kind)] for kind in kinds])
    mask_i = torch.tensor([[float("i" in kind)] for kind in kinds])
    want = functional.normalize(mask_t * texts + mask_i * images, dim=-1)
    torch.testing.assert_close(
        retriever.encode(inputs, "query").vectors, want, rtol=1e-5, atol=1e-6
    )


def test_training_text_has_a_random_instruction_and_test_text_the_first(root):
    data = MBeirData(str(root), text_rule="uniir")
    query = Query(Item("7:1", "a thing", (), "text"), 0, ("7:1",))
    assert data.recipe.query(query, "image") == "Find it. a thing."
    from random import Random

    drawn = {data.recipe.query(query, "image", Random(n)) for n in range(20)}
    assert drawn == {"Find it. a thing.", "Show it. a thing.", "Which one? a thing."}
    assert MBeirData(str(root), instructions=False).recipe.query(query, "image") == "a thing"
    with pytest.raises(DataError, match="no instruction for dataset 7, text -> text"):
        data.recipe.query(query, "text")


def test_pairs_are_drawn_anew_per_epoch_and_the_same_in_any_process(retriever, root):
    loader = loader_for(retriever, MBeirData(str(root)))
    size = len(loader.dataset)
    assert size == 40
    first = [loader.dataset[key].query.text for key in range(size)]
    assert first == [loader.dataset[key].query.text for key in range(size)]
    assert first != [loader.dataset[size + key].query.text for key in range(size)]
    batch = next(iter(loader))
    assert batch.queries.size == batch.candidates.size == len(batch.labels.candidates)


def test_image_cache_is_bounded_and_changes_nothing(root):
    calls = []

    def transform(image):
        calls.append(image)
        return torch.from_numpy(np.array(image)).float().repeat(32, 32, 1)  # 3 MiB

    images = ImageLoader(root, Processor(None, transform), cache_mib=7)
    paths = [f"mbeir_images/squares_images/{n}.png" for n in (0, 1, 2, 2, 1, 0)]
    tensors = [images(path) for path in paths]
    assert len(calls) == 4  # 0 was pushed out by 2
    assert torch.equal(tensors[0], tensors[-1])


def test_evaluate_writes_runs_that_give_the_same_numbers(retriever, root, tmp_path):
    data = MBeirData(str(root), loader=LoaderConfig(eval_batch_size=7))
    first, again = (evaluate(retriever, data, tmp_path / name, device="cpu") for name in "ab")
    assert [row.metrics for row in first.rows] == [row.metrics for row in again.rows]
    assert first.made_by == again.made_by
    saved = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert {(r["task"], r["pool"], r["candidates"]) for r in saved["rows"]} == {
        (0, "local", 20), (3, "local", 20), (0, "union", 40), (3, "union", 40),
    }  # fmt: skip
    for row in first.rows:
        stem = tmp_path / "a" / f"squares_task{row.task}"
        scores = scores_from_run(f"{stem}.{row.pool}.trec", f"{stem}.qrels", "success@5")
        assert np.mean(list(scores.values())) == row.metrics["success@5"]
        assert len(read_run(f"{stem}.{row.pool}.trec")) == row.queries == 8
        positive = f"7:{1 if row.task == 0 else 21}"
        assert stem.with_suffix(".qrels").read_text().split()[:4] == [positive, "0", positive, "1"]
    mean = np.mean([row.metrics["mrr@10"] for row in first.rows if row.pool == "local"])
    assert first.mean["local"]["mrr@10"] == pytest.approx(mean)
    assert "mean" in first.table()


def test_local_search_equals_a_plain_one(retriever, root, tmp_path):
    data = MBeirData(str(root), test=SearchConfig(union=False, depth=5))
    (tmp_path / "squares_task3.union.trec.gz").write_bytes(b"an earlier test's")
    evaluate(retriever, data, tmp_path, device="cpu")
    assert not [*tmp_path.glob("*.union.trec*")], (
        "who reads the folder would take it for this one's"
    )
    plan = plan_test(DataRoot(root), "test", False, [0], None)
    with torch.no_grad():
        retriever.eval()
        collator, vectors = retriever.collator(), {}
        for side, size, example in (
            ("c", 20, lambda n: data.reader(collator).candidate(plan.item(n))),
            ("q", 8, lambda n: data.reader(collator).query(*plan.queries[n])),
        ):
            inputs = retriever.collator()([example(n) for n in range(size)], "query")
            vectors[side] = retriever.encode(inputs, "query").vectors
    best = (vectors["q"] @ vectors["c"].T).argmax(1).tolist()
    run = read_run(tmp_path / "squares_task0.local.trec")
    assert [hits[0].did for hits in run.values()] == [plan.ids[row].as_py() for row in best]
    assert {len(hits) for hits in run.values()} == {5}


def test_bad_pictures_stop_or_are_counted(retriever, tmp_path):
    root = make_root(tmp_path / "root", items=10)
    (root / "mbeir_images" / "squares_images" / "9.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"item 7:10: .*on_bad_image=skip"):
        evaluate(retriever, MBeirData(str(root)), tmp_path / "a", device="cpu")
    data = MBeirData(str(root), on_bad_image="skip", batch_size=20)
    results = evaluate(retriever, data, tmp_path / "b", device="cpu")
    row = next(row for row in results.rows if (row.task, row.pool) == (0, "local"))
    assert (row.failed_candidates, row.candidates, row.dangling) == (1, 9, 0)
    assert "candidates without a vector" in results.notes()
    batch = next(iter(loader_for(retriever, data)))
    assert batch.dropped == 2  # the picture is a query once and a candidate once
    assert batch.queries.size == 18


def test_an_id_for_two_things_is_refused(tmp_path):
    root = make_root(tmp_path, items=10)
    path = root / "cand_pool" / "local" / "mbeir_squares_task3_cand_pool.jsonl"
    write_candidates(path, [Item("7:1", "another", (), "text")])
    with pytest.raises(DataError, match="another candidate"):
        plan_test(DataRoot(root), "test", True, None, None)


def test_a_local_folder_brings_weights_and_tokenizer(retriever, tmp_path):
    preprocess = open_clip.get_model_preprocess_cfg(retriever.clip)
    config = {"model_cfg": CONFIG, "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    from safetensors.torch import save_file

    state = {name: value.contiguous() for name, value in retriever.clip.state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    loaded, processor = load_clip(f"local-dir:{tmp_path}")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in state.items())
    assert torch.equal(processor.tokenize(["a b"]), retriever.collator().tokenize(["a b"]))
    torch.manual_seed(1)
    fresh, _ = load_clip(f"local-dir:{tmp_path}", random_init=True)
    assert not torch.equal(fresh.visual.proj, loaded.visual.proj)


def test_what_decays(retriever):
    optimizer, _ = AdamWCosine().build(retriever.named_parameters(), 20)
    decayed, kept = optimizer.param_groups
    assert kept["weight_decay"] == 0
    assert decayed["weight_decay"] == 0.2
    assert any(p is retriever.clip.logit_scale for p in kept["params"])
    assert all(p.ndim >= 2 for p in decayed["params"])


@pytest.mark.parametrize("mark", MARKS)
def test_a_tokenizers_marks_in_a_text_are_ordinary_text(tmp_path, mark):
    clip, processor = load_clip(make_config(tmp_path))
    texts = [f"a red{mark}square", f"a red {MARKS[mark]} square"]
    found = processor.tokenize(texts)
    assert torch.equal(found[0], found[1])
    assert count_tokens(processor.tokenize, texts[:1]) == [int((found[0] != 0).sum())]
    # What stands behind the mark is read.
    behind = processor([Example(0, f"a red{mark}{word}", None) for word in ("square", "circle")])
    first, second = encode_text(clip.eval(), behind.texts)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("mark", ["<end>", "<start>", "<pad>"])
def test_marks_of_the_packaged_model_are_ordinary_text(mark):
    tokenize = ClipScoreFusion().collator().tokenize
    special = tokenize.tokenizer.all_special_ids
    plain, marked = tokenize(["a flag", f"a {mark} flag"])
    ours = [[int(n) for n in ids if n in special and n != 0] for ids in (plain, marked)]
    assert ours[0] == ours[1]  # one start, one end
    assert mark in tokenize.tokenizer.decode(marked.tolist(), skip_special_tokens=True)
    assert count_tokens(tokenize, [f"a {mark} flag"]) == [int((marked != 0).sum())]
