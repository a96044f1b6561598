"""MMEB: files as published, ranking of own lists, means; and the command, on coloured squares."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from augment.data.mmeb import CATEGORIES, IN_DISTRIBUTION, Target, read_subset, subset_names
from augment.errors import DataError
from retrievers.cli import main
from retrievers.evaluation.mmeb import Score, rank_lists, score_subset, summary
from retrievers.models.clip import ClipScoreFusion
from retrievers.vectors.embed import embed_contents
from tests.retrievers.models.test_retriever import checkpoint_of, make_config


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def make_mmeb(folder):
    """One classification set (picture to text) and one retrieval set (text to picture)."""
    shades = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    for name, shade in shades.items():
        path = folder / "images" / "squares" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), shade).save(path)
    names = list(shades)
    write_rows(
        folder / "ImageNet-1K" / "test-00000-of-00001.parquet",
        [
            {
                "qry_text": "<|image_1|>\nRepresent the given image for classification\n",
                "qry_img_path": f"squares/{name}.png",
                "tgt_text": [name, *(other for other in names if other != name)],
                "tgt_img_path": ["", "", ""],
            }
            for name in names
        ],
    )
    lines = [
        {
            "qry_inst": "<|image_1|> Find the square.",
            "qry_text": f"a {name} square",
            "qry_img_path": "",
            "tgt_inst": "<|image_1|> Represent it.",
            "tgt_text": ["", "", ""],
            "tgt_img_path": [f"squares/{n}.png" for n in (name, *(o for o in names if o != name))],
        }
        for name in names
    ]
    (folder / "MSCOCO_t2i.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_the_published_tasks_are_all_there():
    assert {name: len(sets) for name, sets in CATEGORIES.items()} == {
        "classification": 10, "vqa": 10, "retrieval": 12, "grounding": 4,
    }  # fmt: skip
    assert len(IN_DISTRIBUTION) == 20


def test_files_of_both_versions_are_read(tmp_path):
    root = make_mmeb(tmp_path)
    assert subset_names(root) == ["ImageNet-1K", "MSCOCO_t2i"]
    first = read_subset(root, "ImageNet-1K")
    assert first.queries[1] == Target(
        "Represent the given image for classification", "squares/green.png"
    )
    assert first.candidates == [Target(name, None) for name in ("red", "green", "blue")]
    assert first.lists == [(0, 1, 2), (1, 0, 2), (2, 0, 1)]
    second = read_subset(root, "MSCOCO_t2i", limit=2)
    assert second.queries == [
        Target("Find the square. a red square", None),
        Target("Find the square. a green square", None),
    ]
    assert second.candidates[0] == Target("Represent it.", "squares/red.png")


def test_each_query_is_ranked_against_its_own_list(tmp_path):
    """A slow loop over the authors' rule: is the best of the list the first of the list?"""
    rng = np.random.default_rng(0)
    row = {"qry_text": "q", "qry_img_path": ""}
    lines = []
    for n in range(30):
        places = rng.choice(40, rng.integers(1, 9), replace=False).tolist()
        own = [f"candidate {place}" for place in places]
        lines.append({**row, "qry_text": f"q{n}", "tgt_text": own, "tgt_img_path": [""] * len(own)})
    (tmp_path / "GQA.jsonl").write_text("\n".join(map(json.dumps, lines)))
    subset = read_subset(tmp_path, "GQA")
    queries = rng.normal(size=(30, 8))
    candidates = rng.normal(size=(len(subset.candidates), 8))
    right = 0
    for n, line in enumerate(lines):
        places = [subset.candidates.index(Target(text, None)) for text in line["tgt_text"]]
        right += int(np.argmax([candidates[place] @ queries[n] for place in places]) == 0)
    score = score_subset(subset, rank_lists(subset, queries, candidates))
    assert score.metrics["success@1"] == pytest.approx(right / 30)
    assert 0 < right < 30
    assert score.category == "vqa"


def test_means_weigh_data_sets_alike_and_leave_others_out():
    def made(name, category, hit, queries=10):
        return Score(name, category, queries, 5, {"success@1": hit})

    scores = [
        made("ImageNet-1K", "classification", 0.5, 1000),
        made("Place365", "classification", 0.1),
        made("GQA", "vqa", 0.3),
        made("mine", "other", 1.0),
    ]
    assert summary(scores) == pytest.approx(
        {
            "classification": 0.3,
            "vqa": 0.3,
            "other": 1.0,
            "in distribution": 0.5,
            "out of distribution": 0.2,
            "all": 0.3,
        }
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tgt_text": ["a"], "tgt_img_path": []}, r"GQA.jsonl:1: 1 texts and 0 pictures"),
        ({"tgt_text": [], "tgt_img_path": []}, "at least one candidate"),
        ({"tgt_text": "a"}, "must be lists"),
        ({"tgt_text": [""], "tgt_img_path": [""]}, "candidate 1: has neither"),
        ({"qry_text": "<|image_1|>", "qry_img_path": ""}, "neither text nor picture"),
        ({"qry_text": 3}, "must be strings"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, change, message):
    row = {"qry_text": "q", "qry_img_path": "", "tgt_text": ["a"], "tgt_img_path": [""]}
    (tmp_path / "GQA.jsonl").write_text(json.dumps({**row, **change}))
    with pytest.raises(DataError, match=message):
        read_subset(tmp_path, "GQA")


@pytest.mark.parametrize("packing", ["parquet", "gzip", "zstd"])
def test_the_row_of_an_error_counts_from_the_first_of_the_file(tmp_path, packing):
    rows = [
        {"qry_text": f"q{n}", "qry_img_path": "", "tgt_text": ["a"], "tgt_img_path": [""]}
        for n in range(1, 71)
    ]
    rows[66]["tgt_text"] = []
    if packing == "parquet":
        write_rows(tmp_path / "GQA" / "test" / "0000.parquet", rows)
    else:
        ending = {"gzip": "gz", "zstd": "zst"}[packing]
        lines = "\n".join(map(json.dumps, rows)).encode()
        packed = pa.compress(lines, codec=packing, asbytes=True)
        (tmp_path / f"GQA.jsonl.{ending}").write_bytes(packed)
    assert subset_names(tmp_path) == ["GQA"]
    assert len(read_subset(tmp_path, "GQA", limit=66).queries) == 66
    with pytest.raises(DataError, match=r"(: row |:)67: 0 texts and 1 pictures"):
        read_subset(tmp_path, "GQA")


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(DataError, match="holds no data set"):
        subset_names(tmp_path)
    write_rows(tmp_path / "GQA" / "test" / "0000.parquet", [{"qry_text": "q"}])
    with pytest.raises(DataError, match="lacks the columns qry_img_path, tgt_img_path, tgt_text"):
        read_subset(tmp_path, "GQA")
    (tmp_path / "GQA" / "test" / "0000.parquet").write_text("no")
    with pytest.raises(DataError, match="is no parquet file"):
        read_subset(tmp_path, "GQA")


@pytest.mark.filterwarnings("ignore")
def test_the_command_leaves_runs_and_scores(tmp_path, capsys):
    root = make_mmeb(tmp_path / "mmeb")
    forged = "odd\x1b[2J\u202eall"
    shutil.copy(root / "MSCOCO_t2i.jsonl", root / f"{forged}.jsonl")
    arguments = [
        "mmeb", f"--root={root}", f"--images={root / 'images'}", f"--out={tmp_path / 'out'}",
        "--model=retrievers.models.clip.ClipScoreFusion",
        f"--model.model_name={make_config(tmp_path)}",
    ]  # fmt: skip
    assert main(arguments) == 0
    assert main(["evaluate", str(tmp_path / "out"), "--metrics", "success@1"]) == 0
    said = "".join(capsys.readouterr())
    assert "| mean: all |" in said
    assert said.count("odd\\x1b[2J\\u202eall") == 3
    assert {letter for letter in said if not letter.isprintable()} <= {"\n", "\r"}
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [row["subset"] for row in told["rows"]] == ["ImageNet-1K", "MSCOCO_t2i", forged]
    assert told["cost"]["items"] == 18
    folder = tmp_path / "out"
    out = tmp_path / "scores.json"
    again = ["evaluate", f"{folder / 'ImageNet-1K.local.trec'}", "--out", f"{out}"]
    assert (
        main([*again, "--qrels", f"{folder / 'ImageNet-1K.qrels'}", "--metrics", "success@1"]) == 0
    )
    row = json.loads(out.read_text())["rows"][0]
    assert row["metrics"]["success@1"] == told["rows"][0]["metrics"]["success@1"]
    assert len(list((folder / "embeddings" / "ImageNet-1K" / "query").glob("*.arrow"))) == 1
    assert main([*arguments, "--subsets=[nothing]"]) == 2
    assert "has no data set nothing" in capsys.readouterr().err


DIES_AT_NINE = """
import os, signal, sys
from retrievers.cli import main
from retrievers.commands import mmeb

kept, calls = mmeb.embed_contents, []

def dies(*args):
    calls.append(args)
    if len(calls) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return kept(*args)

mmeb.embed_contents, mmeb.SHARD_SECONDS = dies, 0.0
main(sys.argv[1:])
"""


@pytest.mark.filterwarnings("ignore")
def test_a_killed_run_goes_on_and_ends_with_the_same_scores(tmp_path, monkeypatch, capsys):
    root = make_mmeb(tmp_path / "mmeb")
    config = make_config(tmp_path)

    def arguments(out):
        return [
            "mmeb", f"--root={root}", f"--images={root / 'images'}", f"--out={out}",
            "--model=retrievers.models.clip.ClipScoreFusion", f"--model.model_name={config}",
            "--batch_size=1",
        ]  # fmt: skip

    torch.manual_seed(0)
    weights = tmp_path / "weights.ckpt"
    torch.save(checkpoint_of(ClipScoreFusion(str(config))), weights)
    given = [f"--ckpt_path={weights}"]
    assert main([*arguments(tmp_path / "whole"), *given]) == 0
    calls = []

    def counted(*args):
        calls.append(args)
        return embed_contents(*args)

    monkeypatch.setattr("retrievers.commands.mmeb.embed_contents", counted)
    monkeypatch.setattr("retrievers.commands.mmeb.SHARD_SECONDS", 0.0)
    out = tmp_path / "out"
    # A process of its own, not a fork: torch's threads don't live on in one.
    killed = subprocess.run([sys.executable, "-c", DIES_AT_NINE, *arguments(out), *given])
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "metrics.json").exists()
    capsys.readouterr()
    assert main([*arguments(out), *given]) == 0
    assert len(calls) == 12 - 8
    assert "ImageNet-1K query: 3 of 3 vectors were there" in capsys.readouterr().err
    both = [json.loads((f / "metrics.json").read_text())["rows"] for f in (tmp_path / "whole", out)]
    assert both[0] == both[1]
    for name in ("ImageNet-1K", "MSCOCO_t2i"):
        runs = [(f / f"{name}.local.trec").read_bytes() for f in (tmp_path / "whole", out)]
        assert runs[0] == runs[1]
    # One shard rots: it is named, and its item alone is embedded.
    shard = min((out / "embeddings" / "MSCOCO_t2i" / "corpus").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    del calls[:]
    assert main([*arguments(out), *given]) == 0
    assert len(calls) == 1
    assert f"shard {shard.stem} of" in capsys.readouterr().err
    # Other weights never mix with these.
    torch.save(checkpoint_of(ClipScoreFusion(str(config))), weights)
    assert main([*arguments(out), *given]) == 2
    assert "holds vectors made by" in capsys.readouterr().err
