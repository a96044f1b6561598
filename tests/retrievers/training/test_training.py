"""Training on the tiny root: chunks under Lightning, hard negatives, readable errors, speed."""

import csv
import math
import os
import subprocess
from pathlib import Path

import lightning
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from augment.data import DataRoot, write_queries
from augment.errors import DataError, MismatchError
from augment.records import Query
from retrievers.data.examples import NO_ID, Example, hash_id
from retrievers.data.module import LoaderConfig, MBeirData, ValidationConfig
from retrievers.data.negatives import COLUMNS, NegativesConfig
from retrievers.data.samplers import SamplingConfig
from retrievers.models.clip import ClipFeatureFusion, ClipScoreFusion
from retrievers.models.fusion_layers import FusionLayers
from retrievers.models.inputs import Inputs
from retrievers.training.callbacks import Throughput, hint
from retrievers.training.module import Contrastive, Loaders
from retrievers.training.objective import Distillation, Objective
from retrievers.training.optim import AdamWCosine
from tests.retrievers.models.test_blip import BlipFeatureFusion, BlipScoreFusion, folder  # noqa: F401
from tests.retrievers.models.test_retriever import loader_for, make_root


def make_training(config, truncate_dim=None, compile=False, **settings):  # noqa: A002
    torch.manual_seed(0)
    encoder = ClipScoreFusion(config, truncate_dim=truncate_dim, compile=compile)
    return Contrastive(encoder, optimizer=AdamWCosine(lr=1e-3), **settings)


class Watch(lightning.Callback):
    """Keeps every logged value of a fit."""

    def __init__(self):
        self.seen = {}

    def on_train_batch_end(self, trainer, *args):
        self.seen.update({k: float(v) for k, v in trainer.callback_metrics.items()})


def fit(training, root, steps=2, watch=None, **options):
    data = MBeirData(str(root), batch_size=8, validation=ValidationConfig(queries=0))
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, max_steps=steps,
        callbacks=[watch] if watch else None, limit_val_batches=0, log_every_n_steps=2, **options,
    )  # fmt: skip
    trainer.fit(training, datamodule=Loaders(data))
    return {name: value.clone() for name, value in training.state_dict().items()}


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}, 1e-5),
        ({"precision": "bf16-mixed"}, 2e-3),
    ],
)
def test_chunks_train_like_whole_batches(config, root, options, tolerance):
    whole = fit(make_training(config), root, **options)
    chunked = fit(make_training(config, chunk=3, keep_chunks=1), root, **options)
    start = make_training(config).state_dict()
    assert any(not torch.equal(start[name], value) for name, value in whole.items())
    for name, value in whole.items():
        torch.testing.assert_close(chunked[name], value, rtol=0, atol=tolerance)


def test_speed_and_memory_are_logged(config, root):
    watch = Watch()
    fit(make_training(config), root, steps=5, watch=watch)
    assert watch.seen["speed/pairs_per_s"] > 0
    assert 0 <= watch.seen["speed/data_wait"] <= 1
    assert watch.seen["speed/peak_mib"] > 10
    assert "data.loader.workers" in hint(0.5, torch.device("cpu"))
    assert hint(0.0, torch.device("cpu")) == "the model is the bottleneck"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_speed_reaches_the_loggers(config, root, tmp_path, accumulate):
    logger = lightning.pytorch.loggers.CSVLogger(tmp_path, "logs")
    data = MBeirData(str(root), batch_size=8, validation=ValidationConfig(queries=0))
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, logger=logger, enable_checkpointing=False, max_steps=6,
        enable_model_summary=False, enable_progress_bar=False, limit_val_batches=0,
        log_every_n_steps=3, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(make_training(config), datamodule=Loaders(data))
    with Path(logger.log_dir, "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows if float(row["speed/pairs_per_s"]) > 0] == ["2", "5"]


def test_waiting_for_data_is_measured(config, root):
    import time

    class Slow(lightning.Callback):
        def on_train_start(self, trainer, pl_module):
            data = trainer.train_dataloader.dataset
            plain = type(data).__getitem__
            self.patch = pytest.MonkeyPatch()
            self.patch.setattr(
                type(data), "__getitem__", lambda own, key: time.sleep(0.01) or plain(own, key)
            )

        def on_train_end(self, trainer, pl_module):
            self.patch.undo()
            self.share = trainer.callback_metrics["speed/data_wait"]

    slow = Slow()
    fit(make_training(config), root, steps=5, watch=slow)
    assert slow.share > 0.2
    assert sum(isinstance(c, Throughput) for c in make_training(config).configure_callbacks()) == 1


def test_other_objectives_train(config, root):
    for objective in (
        Objective("siglip"),
        Objective(matryoshka=(4, 8), several="average", margin=0.1),
        Objective(distillation=Distillation("kl")),
    ):
        training = make_training(config, objective=objective)
        before = training.encoder.clip.visual.proj.clone()
        fit(training, root, steps=1)
        assert not torch.equal(before, training.encoder.clip.visual.proj)
    plain, sigmoid = make_training(config), make_training(config, objective=Objective("siglip"))
    assert sigmoid.encoder.logit_bias.item() == -10
    sigmoid.load_state_dict(plain.state_dict())
    plain.load_state_dict(sigmoid.state_dict())


def test_blocks_compile_in_place(config):
    compiled = make_training(config, compile=True)
    assert list(compiled.state_dict()) == list(make_training(config).state_dict())
    blocks = [
        *compiled.encoder.clip.visual.transformer.resblocks,
        *compiled.encoder.clip.transformer.resblocks,
    ]
    assert all(block._compiled_call_impl is not None for block in blocks)


def loader_of(config, root, **settings):
    encoder = make_training(config).encoder
    return loader_for(encoder, MBeirData(str(root), batch_size=8, **settings))


def test_not_finite_names_the_pairs(config, root):
    training = make_training(config)
    retriever = training.encoder
    batch = next(iter(loader_of(config, root)))
    qid, did = batch.names[2]
    with torch.no_grad():
        if 2 in batch.queries.text_rows.tolist():
            place = batch.queries.text_rows.tolist().index(2)
            batch.queries.images.zero_()
            tokens = batch.queries.texts[place]
            retriever.clip.token_embedding.weight[tokens[2]] = float("nan")
        else:
            place = batch.queries.image_rows.tolist().index(2)
            batch.queries.images[place] = float("nan")
    with pytest.raises(DataError, match=r"not finite at step 0 .*pairs without.*") as caught:
        training.training_step(batch, 0)
    assert f"{qid} with {did}" in str(caught.value)
    with torch.no_grad():
        retriever.clip.logit_scale.fill_(float("nan"))
    with pytest.raises(DataError, match="logit_scale nan"):
        training.training_step(batch, 0)


def test_empty_batches_and_wrong_sizes_are_told(config, root):
    training = make_training(config)
    retriever = training.encoder
    batch = next(iter(loader_of(config, root)))
    empty = retriever.collator()([], "query")
    with pytest.raises(DataError, match=r"no pair .* readable .*augment validate"):
        training.training_step(batch._replace(queries=empty), 0)
    large = Inputs(1, torch.zeros(0, 1), torch.zeros(0), torch.zeros(1, 3, 32, 24), torch.zeros(1))
    with pytest.raises(MismatchError, match="32 x 24 pixels for a model that takes 16 x 16"):
        retriever.encode(large, "query")
    two = [Example(0, None, torch.zeros(3, 8, 8), id="1:1"),
           Example(1, None, torch.zeros(3, 8, 9), id="1:2")]  # fmt: skip
    with pytest.raises(DataError, match=r"1:2: .*\(3, 8, 9\).* 1:1 .*\(3, 8, 8\)"):
        retriever.collator()(two, "query")


def mined_table(path, rows):
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    parquet.write_table(pa.table({name: list(column) for name, column in columns.items()}), path)
    return str(path)


def test_mined_negatives_join_the_batch(config, root, tmp_path):
    # The positive of 7:3 is 7:3 itself; 7:999 is in no pool.
    rows = [
        (f"7:{n + 1}", [f"7:{n + 1}"], [0.9], [f"7:{(n + 5) % 20 + 1}", "7:999", f"7:{n + 1}"],
         [0.7, 0.6, 0.9]) for n in range(20)
    ]  # fmt: skip
    path = mined_table(tmp_path / "negatives.parquet", rows)
    for given in (path, str(tmp_path)):
        loader = loader_of(config, root, negatives=NegativesConfig(given, per_query=2), tasks=[0])
        batch = next(iter(loader))
        assert (batch.queries.size, batch.candidates.size) == (8, 16)
        ids = batch.labels.candidates
        for row, (qid, did) in enumerate(batch.names):
            positive, negative = batch.groups.rows[row].tolist()
            assert ids[positive] == hash_id(did) == hash_id(qid)
            assert ids[negative] == hash_id(f"7:{(int(qid[2:]) + 4) % 20 + 1}")
            assert batch.groups.scores[row].tolist() == pytest.approx([0.9, 0.7])
    few = loader_of(config, root, negatives=NegativesConfig(path), tasks=[0, 3])
    batch = next(iter(few))
    assert 8 <= batch.candidates.size <= 16
    assert (batch.groups.rows == NO_ID).any() == (batch.candidates.size < 16)


def test_published_negatives_and_further_positives(config, tmp_path):
    root = make_root(tmp_path / "root", items=10)
    (file,) = DataRoot(root).query_files("train")
    from augment.data.pools import open_queries

    queries = [
        Query(q.item, q.task, (*q.positives, "7:9"), ("7:10", "7:9"))
        for q in open_queries(file.path)
        if q.task == 0
    ]
    write_queries(file.path, queries)
    batch = next(
        iter(loader_of(config, root, positives=2, negatives=NegativesConfig(None, True), tasks=[0]))
    )
    for row, (_, did) in enumerate(batch.names):
        ids = [batch.labels.candidates[n].item() for n in batch.groups.rows[row] if n >= 0]
        assert hash_id(did) == ids[0]
        assert ids[-1] == hash_id("7:10")  # 7:9 is a known positive and no negative
        assert hash_id("7:9") in ids[:2]


def test_negatives_that_are_not_there_are_told(config, root, tmp_path):
    with pytest.raises(DataError, match="none of the training queries has a hard negative"):
        loader_of(config, root, negatives=NegativesConfig(published=True))
    parquet.write_table(pa.table({"qid": ["7:1"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="no table of mined negatives"):
        loader_of(config, root, negatives=NegativesConfig(str(tmp_path / "other.parquet")))


def test_homogeneous_batches_by_name(config, root):
    for by in ("task", "dataset", "modality"):
        loader = loader_of(config, root, sampling=SamplingConfig(by, True),
                           loader=LoaderConfig(cache_mib=0))  # fmt: skip
        kinds = [len(batch.queries.image_rows) for batch in loader]
        assert set(kinds) <= {0, 4, 8}  # eight from one task; what is left of both makes one more
        assert sum(kind in (0, 8) for kind in kinds) == 4


def test_pairs_about_one_picture_and_a_validation_in_the_union(config, root):
    loader = loader_of(config, root, sampling=SamplingConfig(together=True))
    about = [(int(did[2:]) - 1) % 20 for batch in loader for _, did in batch.names]
    assert len(about) == 40
    assert about[::2] == about[1::2]  # the query for a picture and that for its text
    assert sorted(about[::2]) == list(range(20))
    data = MBeirData(str(root), validation=ValidationConfig(queries=4, pool=3, union=True))
    plan = data.validation_plan()
    assert {task.pool for task in plan.tasks} == {"all"}
    assert {item.modality for item in map(plan.item, plan.pools["all"])} == {"text", "image"}
    assert len(plan.pools["all"]) == len(plan)


def test_prefixes_of_vectors(config, root, tmp_path):
    training = make_training(config, truncate_dim=4)
    whole, short = make_training(config).encoder, training.encoder
    short.load_state_dict(whole.state_dict())
    inputs = whole.collator()([Example(0, "red", None), Example(1, "blue square", None)], "query")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(
            whole.encode(inputs, "query").vectors[:, :4], dim=-1
        )
        torch.testing.assert_close(short.encode(inputs, "query").vectors, expected)
    assert "truncate_dim" not in whole.settings()
    assert short.settings()["truncate_dim"] == 4
    with pytest.raises(DataError, match=r"--model\.objective\.matryoshka="):
        fit(training, root)
    with pytest.raises(MismatchError, match="truncate_dim is 17, and vectors have 16 numbers"):
        make_training(config, truncate_dim=17).encoder.encode(inputs, "query")


@pytest.mark.parametrize("kind", ["score", "feature"])
def test_the_logit_scale_is_held(config, root, kind):
    torch.manual_seed(0)
    made = {"max_logit_scale": 20.0, "random_init": True}
    encoder = (
        ClipScoreFusion(config, **made) if kind == "score"
        else ClipFeatureFusion(config, FusionLayers(1, 2, 8, 16), **made)
    )  # fmt: skip
    training = Contrastive(encoder, optimizer=AdamWCosine(lr=1e-3))
    with torch.no_grad():
        encoder.clip.logit_scale.fill_(5.0)  # exp(5) = 148
    fit(training, root, steps=1)
    assert encoder.clip.logit_scale.item() == pytest.approx(math.log(20.0))
    with torch.no_grad():
        encoder.clip.logit_scale.fill_(1.0)
    fit(training, root, steps=1)
    assert 0.9 < encoder.clip.logit_scale.item() < 1.1  # below the limit it is free


@pytest.mark.parametrize("kind", [BlipScoreFusion, BlipFeatureFusion])
@pytest.mark.parametrize(("start", "end"), [(0.9, 0.5), (0.0005, 0.001), (0.1, None)])
def test_blips_temperature_is_held(folder, root, kind, start, end):  # noqa: F811
    torch.manual_seed(0)
    encoder = kind(str(folder))
    with torch.no_grad():
        encoder.temp.fill_(start)
    fit(Contrastive(encoder, optimizer=AdamWCosine(lr=1e-5)), root, steps=1)
    assert encoder.temp.item() == pytest.approx(start if end is None else end, abs=2e-5)


@pytest.mark.parametrize(("chunk", "keep", "again"), [(3, 0, 6), (3, 1, 4), (3, 2, 2), (3, 9, 0)])
def test_only_chunks_that_are_not_kept_are_encoded_again(
    config, root, monkeypatch, chunk, keep, again
):
    torch.manual_seed(0)
    encoder = ClipScoreFusion(config, random_init=True)
    batch = next(iter(loader_for(encoder, MBeirData(str(root), batch_size=8))))
    whole, seen = type(encoder).whole, []

    def watched(self, inputs, side):
        seen.append(inputs.size)
        return whole(self, inputs, side)

    monkeypatch.setattr(type(encoder), "whole", watched)
    plain = Contrastive(encoder).loss(batch)["loss"]
    assert seen == [8, 8]
    seen.clear()
    loss = Contrastive(encoder, chunk=chunk, keep_chunks=keep).loss(batch)["loss"]
    assert seen == [3, 3, 2, 3, 3, 2]
    loss.backward()
    assert len(seen) - 6 == again  # three chunks a side, but for the last ``keep``
    torch.testing.assert_close(loss, plain)


SLURM = Path(__file__).parents[3] / "docs" / "slurm.sh"


def test_the_fused_optimiser_takes_the_same_steps():
    # On given gradients: in training, AdamW makes steps of full size out of gradients near zero.
    ends = []
    for fused in (False, True):
        random = torch.Generator().manual_seed(0)
        named = [(str(n), torch.nn.Parameter(torch.ones(3, 4))) for n in range(3)]
        named.append(("bias", torch.nn.Parameter(torch.ones(4))))
        optimizer, schedule = AdamWCosine(lr=1e-2, fused=fused).build(named, 8)
        for _ in range(8):
            for _, parameter in named:
                parameter.grad = torch.randn(parameter.shape, generator=random)
            optimizer.step()
            schedule.step()
        ends.append([parameter.detach() for _, parameter in named])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        assert (one - 1).abs().max() > 1e-2


def test_the_slurm_script_resumes(tmp_path):
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_NNODES": "2",
        "SLURM_NTASKS_PER_NODE": "8",
    }  # fmt: skip

    def arguments():
        command = ["bash", str(SLURM), "DATA", str(tmp_path / "out"), "--data.batch_size=52"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.splitlines()

    first = arguments()
    assert first[:6] == ["python", "-m", "retrievers", "fit", "--config", "clip_sf_large"]
    assert {"--trainer.num_nodes=2", "--trainer.devices=8", "--data.batch_size=52"} <= set(first)
    latest = tmp_path / "out" / "checkpoints" / "latest.ckpt"
    latest.parent.mkdir(parents=True)
    latest.touch()
    assert set(arguments()) - set(first) == {f"--ckpt_path={latest}"}


def test_the_rate_rises_holds_and_falls_along_a_cosine():
    schedule = AdamWCosine(warmup_steps=10, hold=0.7, floor=0.1)
    assert [schedule.factor(n, 110) for n in (0, 4, 9, 10, 80)] == [0.1, 0.5, 1, 1, 1]
    at = 0.1 + 0.9 * (1 + math.cos(math.pi / 3)) / 2  # a third of the decay
    assert schedule.factor(90, 110) == pytest.approx(at)
    assert schedule.factor(110, 110) == pytest.approx(0.1)
    plain = AdamWCosine(warmup_steps=10)
    assert plain.factor(60, 110) == pytest.approx(0.5)
