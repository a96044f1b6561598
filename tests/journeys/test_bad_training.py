"""Kinds of bad input to fit, test, mine, embed and export; each ends in an error that says where
and what to do.

The table in docs/bad-input-training.md lists them; a test sees that it lists each kind tried here.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from retrievers.cli import main
from tests.retrievers.models.test_retriever import make_config, make_root
from tests.retrievers.test_cli_retrievers import options, plain_options

DOCS = Path(__file__).parents[2] / "docs" / "bad-input-training.md"
STEP = ["--trainer.max_steps=1", "--data.validation.queries=0", "--trainer.val_check_interval=100"]

#: kind -> (command, further arguments, what the message says); {} is a folder with a spoilt world.
KINDS = {
    "root that is not there": ("fit", ["--data.root={}/none"], "none: no such folder"),
    "out is a file": ("fit", ["--out={}/text.txt"], "text.txt: is a file; name a folder"),
    "misspelt setting": ("fit", ["--data.batchsize=3"], "data.batchsize"),
    "config that is not there": ("fit", ["--config={}/none.yaml"], "none.yaml"),
    "unknown view": ("fit", ["--data.query.view=both"], "both"),
    "view without a store": (
        "fit", ["--data.corpus.view=append"], "'append' shows generated text: name the store",
    ),
    "store that is not there": (
        "fit", ["--data.corpus.view=append", "--data.corpus.store={}/none"], "{}/none",
    ),
    "store without that recipe": (
        "fit",
        ["--data.corpus.view=append", "--data.corpus.store={}/store", "--data.corpus.recipe=abc"],
        "abc",
    ),
    "instructions missing": (
        "fit", ["--data.root={}/no-instructions"], "query_instructions.tsv",
    ),
    "instruction missing for a kind of query": (
        "fit", ["--data.root={}/one-instruction", *STEP], "no instruction",
    ),
    "empty pools": (
        "fit", ["--data.root={}/empty-pools"], "no training query with a positive in a pool (40",
    ),
    "positives of unknown ids": (
        "fit", ["--data.root={}/unknown-ids"], "no training query with a positive in a pool (40",
    ),
    "no training queries": (
        "fit", ["--data.root={}/no-train"], "no query files in query/train",
    ),
    "task that the data lacks": (
        "fit", ["--data.tasks=[7]"], "check data.tasks",
    ),
    "picture missing": (
        "fit", ["--data.root={}/no-pictures", *STEP], "or set data.on_bad_image=skip",
    ),
    "no readable picture in a batch": (
        "fit", ["--data.root={}/no-pictures", "--data.on_bad_image=skip", *STEP],
        "no pair of a training batch has readable pictures",
    ),
    "batch of no pairs": ("fit", ["--data.batch_size=0"], "data.batch_size must be at least 1"),
    "batch of one pair": ("fit", ["--data.batch_size=1", *STEP], "a batch of one pair"),
    "chunk of no items": ("fit", ["--model.chunk=0", *STEP], "a chunk holds at least 1 item"),
    "prefix longer than the vectors": (
        "fit", ["--model.objective.matryoshka=[64]", *STEP], "prefix 64 of vectors with 16",
    ),
    "loss that is not finite": (
        "fit", ["--model.optimizer.lr=1e30", *STEP[1:]], "the loss is not finite at step 1",
    ),
    "unknown open_clip model": (
        "fit", ["--model.encoder.model_name=ViT-B-33"], "cannot load 'ViT-B-33'",
    ),
    "unknown open_clip tag": (
        "fit", ["--model.encoder.model_name=ViT-B-32", "--model.encoder.pretrained=openay"],
        "cannot load 'ViT-B-32' (openay)",
    ),
    "model folder without its config": (
        "fit", ["--model.encoder.model_name=local-dir:{}"],
        "no open_clip_config.json in this folder",
    ),
    "model config that is not there": (
        "fit", ["--model.encoder.model_name={}/none.json"], "none.json: no such model config",
    ),
    "initial weights that are not there": (
        "fit", ["--model.init_from={}/none.ckpt"], "none.ckpt: no such checkpoint",
    ),
    "initial weights of another architecture": (
        "fit", ["--model.init_from={}/other.ckpt"], "does not fit this model",
    ),
    "checkpoint that is not there": (
        "fit", ["--ckpt_path={}/none.ckpt"], "none.ckpt: no such checkpoint; fit writes",
    ),
    "checkpoint of something else": (
        "test", ["--ckpt_path={}/text.txt"], "text.txt: is no checkpoint of this package",
    ),
    "checkpoint cut short": (
        "fit", ["--ckpt_path={}/short.ckpt"], "short.ckpt: is no checkpoint of this package",
    ),
    "checkpoint of another architecture": (
        "test", ["--ckpt_path={}/other.ckpt"], "fit this model: of another shape: clip.vis",
    ),
    "checkpoint of other text": (
        "test", ["--ckpt_path={}/last.ckpt", "--data.text_rule=uniir"],
        "rule: trained on plain, data shows uniir",
    ),
    "checkpoint with a flipped bit": (
        "fit", ["--ckpt_path={}/flipped.ckpt"], "flipped.ckpt: is damaged (checksum of",
    ),
    "strategy that is not known": (
        "fit", ["--trainer.strategy=shards"], "invalid strategy name: `strategy='shards'`",
    ),
    "strategy that shards": (
        "fit", ["--trainer.strategy.class_path=ModelParallelStrategy", *STEP],
        "have no checksums; leave",
    ),
    "resumed with other settings of training": (
        "fit", ["--ckpt_path={}/last.ckpt", "--model.optimizer.lr=0.5", "--trainer.max_steps=9"],
        "optimizer.lr: trained with 0.0005, now 0.5",
    ),
    "config that reads the environment": (
        "fit", ["--data.root=${oc.env:HOME}", *STEP], "oc.env",
    ),
    "resumed with another batch": (
        "fit", ["--ckpt_path={}/last.ckpt", "--data.batch_size=5", "--trainer.max_steps=9"],
        "was trained on 10 pairs per batch over all processes, now it would be 5",
    ),
    "negatives that are not there": (
        "fit", ["--data.negatives.path={}/none"], "write it with `python -m retrievers mine`",
    ),
    "negatives that are something else": (
        "fit", ["--data.negatives.path={}/text.txt"], "no table of mined negatives",
    ),
    "negatives with a flipped bit": (
        "fit", ["--data.negatives.path={}/flipped.parquet"], "could not verify page integrity",
    ),
    "negatives of another root": (
        "fit", ["--data.negatives.path={}/foreign.parquet"],
        "none of the training queries has a hard negative here",
    ),
    "two sources of negatives": (
        "fit", ["--data.negatives.path={}/foreign.parquet", "--data.negatives.published=true"],
        "give a path or published=true, not both",
    ),
    "test without test queries": (
        "test", ["--data.root={}/no-test"], "query/test",
    ),
    "test in several processes": (
        "test", ["--trainer.devices=2", "--trainer.strategy=ddp"], "devices=1",
    ),
    "vectors of other weights": (
        "test", ["--ckpt_path={}/last.ckpt", "--embeddings={}/vectors"], "{}/vectors",
    ),
    "mining in parts": (
        "mine", ["--data.embeddings.parts=2"], "run it without data.embeddings.parts",
    ),
    "mining without training queries": (
        "mine", ["--data.root={}/no-train"], "no query files in query/train",
    ),
}  # fmt: skip

EXPORTS = {
    "export of a checkpoint that is not there": (
        ["--checkpoint={}/none.ckpt"], "no such checkpoint",
    ),
    "export of something else": (["--checkpoint={}/text.txt"], "is no checkpoint of this package"),
    "export of an unknown retriever": (["--checkpoint={}/unknown.ckpt"], "holds a Unknown; known"),
    "export into a folder in use": (
        ["--checkpoint={}/last.ckpt", "--out={}/run"], "is there already; name a new folder",
    ),
    "export with metrics of other weights": (
        ["--checkpoint={}/last.ckpt", "--metrics={}/metrics.json"],
        "was measured with other weights or text",
    ),
    "export with metrics of something else": (
        ["--checkpoint={}/last.ckpt", "--metrics={}/text.txt"], "is no metrics.json of a test",
    ),
    "export to a library that lacks the architecture": (
        ["--checkpoint=flagland-clip", "--to=sentence_transformers"], "96 x 144 pixels, not square",
    ),
    "export pushed in the wrong form": (
        ["--checkpoint={}/last.ckpt", "--to=sentence_transformers", "--push=a/b"],
        "--push uploads the open_clip form",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    world = make_root(folder / "root"), make_config(folder), folder
    assert main(["fit", *options(world, folder / "run", "--trainer.max_steps=4")]) == 0
    shutil.copy(folder / "run" / "checkpoints" / "last.ckpt", folder / "last.ckpt")
    (folder / "text.txt").write_text("no checkpoint\n")
    whole = (folder / "last.ckpt").read_bytes()
    (folder / "short.ckpt").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (folder / "flipped.ckpt").write_bytes(flipped)
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    spoil(folder, saved)
    spoil_roots(folder)
    return world


def spoil(folder, saved):
    unknown = {**saved, "retriever": {**saved["retriever"], "class": "Unknown"}}
    torch.save(unknown, folder / "unknown.ckpt")
    state = {**saved["state_dict"], "encoder.clip.visual.proj": torch.zeros(3, 4)}
    torch.save({**saved, "state_dict": state}, folder / "other.ckpt")
    metrics = {"made_by": "0" * 16, "rows": [], "settings": {"data": {"text": {}}}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_foreign_negatives(folder / "foreign.parquet")
    write_store(folder / "store")
    state = {name: -value if name.endswith("visual.proj") else value
             for name, value in saved["state_dict"].items()}  # fmt: skip
    torch.save({**saved, "state_dict": state}, folder / "turned.ckpt")
    given = [f"--model={folder / 'turned.ckpt'}", f"--data.root={folder / 'root'}"]
    assert main(["embed", *given, f"--embeddings={folder / 'vectors'}"]) == 0


def write_foreign_negatives(path):
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"qid": ["9:1"], "positive_ids": [["9:1"]], "positive_scores": [[0.9]],
               "negative_ids": [["9:2"]], "negative_scores": [[0.5]]}  # fmt: skip
    parquet.write_table(
        pa.table(columns), path, write_page_checksum=True, compression="none",
        use_dictionary=False, write_statistics=False,
    )  # fmt: skip
    whole = path.read_bytes()
    place = whole.index(b"9:2") + 2
    flipped = whole[:place] + b"3" + whole[place + 1 :]
    path.with_name("flipped.parquet").write_bytes(flipped)


def write_store(path):
    from augment.store import Store

    path.mkdir()
    with Store(path):
        pass


def spoil_roots(folder):
    def copy(name, *parts):
        target = folder / name
        shutil.copytree(folder / "root", target)
        for part in parts:
            found = target / part
            shutil.rmtree(found) if found.is_dir() else found.unlink()
        return target

    copy("no-instructions", "instructions")
    copy("no-train", "query/train")
    copy("no-test", "query/test", "qrels/test")
    copy("no-pictures", "mbeir_images")
    table = copy("one-instruction") / "instructions" / "query_instructions.tsv"
    table.write_text("\n".join(table.read_text().splitlines()[:1]) + "\n")
    for pool in (copy("empty-pools") / "cand_pool" / "local").glob("*.jsonl"):
        pool.write_text("")
    (train,) = (copy("unknown-ids") / "query" / "train").glob("*.jsonl")
    train.write_text(train.read_text().replace('["7:', '["7:9'))


def told(arguments, capsys):
    """Exit status and what was written about it."""
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as stopped:  # jsonargparse refuses the arguments themselves
        status = stopped.code
    return status, capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_run_says_where_and_what_to_do(world, tmp_path, capsys, kind):
    command, more, message = KINDS[kind]
    more = [argument.replace("{}", str(world[2])) for argument in more]
    given = plain_options if command == "mine" else options
    status, error = told([command, *given(world, tmp_path / "out"), *more], capsys)
    assert status == 2, error
    assert message.replace("{}", str(world[2])) in error
    assert "Traceback" not in error


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_bad_export_says_so_and_leaves_nothing(world, tmp_path, capsys, kind):
    more, message = EXPORTS[kind]
    more = [argument.replace("{}", str(world[2])) for argument in more]
    status, error = told(["export", f"--out={tmp_path / 'out'}", *more], capsys)
    assert status == 2
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_batch_over_all_processes_may_change_if_asked_for(world, tmp_path):
    more = [f"--ckpt_path={world[2] / 'last.ckpt'}", "--data.batch_size=5"]
    allowed = ["--trainer.max_steps=5", "--model.allow_mismatch=true"]
    assert main(["fit", *options(world, tmp_path, *more, *allowed)]) == 0


def test_the_page_lists_each_kind():
    rows = [line.split(" | ") for line in DOCS.read_text().splitlines() if line.startswith("| ")]
    assert [row[0].removeprefix("| ") for row in rows[1:]] == [*KINDS, *EXPORTS]
