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

from augment.data.images import frames
from augment.data.mmeb import (
    CATEGORIES,
    IN_DISTRIBUTION,
    PARTS,
    Target,
    read_subset,
    subset_names,
    videos,
)
from augment.errors import DataError, ImageError
from retrievers.cli import main
from retrievers.evaluation.mmeb import Score, rank_lists, score_subset, summary
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.load import load
from retrievers.vectors.embed import embed_contents
from retrievers.vectors.store import EmbeddingStore
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
        "video classification": 5, "video qa": 5, "video retrieval": 5, "moment retrieval": 3,
        "ViDoRe-V1": 10, "ViDoRe-V2": 4, "VisRAG": 6, "VisDoc-OOD": 4,
    }  # fmt: skip
    assert {part: len(names) for part, names in PARTS.items()} == {
        "image": 36, "video": 18, "documents": 24,
    }  # fmt: skip
    assert len(IN_DISTRIBUTION) == 20
    assert set(videos._LAYOUTS) == set(PARTS["video"])


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


CLIP = "Understand the content of the provided video."
ASK = (
    "Given a video and a question, select the most accurate answer from the provided candidates. "
    "Return only the exact text of your chosen answer. Question: "
)
#: Rows with the columns of the published test files, and what their authors' readers make of them:
#: how the query ends, its frames, its candidates, the right one.
VIDEOS = {
    "MSR-VTT": ({"video_id": "v7", "video": "v7.mp4", "caption": "a jump"},
                "visual content: a jump", None, ["video_ret/MSR-VTT/v7"], 0),
    "MSVD": ({"video_id": "v7", "video": "x.avi", "caption": ["a jump", "a leap"]},
             "summary: a jump", None, ["video_ret/MSVD/v7"], 0),
    "DiDeMo": ({"video": "videos/a.b.mp4", "caption": "a jump"},
               "scenes: a jump", None, ["video_ret/DiDeMo/a.b"], 0),
    "YouCook2": ({"id": "x_1", "video_path": "x.mp4", "sentence": "cut"},
                 "recipe: cut", None, ["video_ret/YouCook2/x_1"], 0),
    "VATEX": ({"videoID": "x_1", "enCap": ["cut", "chop"]},
              "provided: cut", None, ["video_ret/VATEX/x_1"], 0),
    "UCF101": ({"video_id": "v7", "pos_text": "Diving"},
               "in the video?", "video_cls/UCF101/v7", ["Diving"], 0),
    "SmthSmthV2": ({"video_id": 7, "pos_text": "Push", "neg_text": ["Pull", "Push"]},
                   "in the video?", "video_cls/SSv2/7", ["Pull", "Push"], 1),
    "Video-MME": ({"videoID": "v7", "question": "Who?", "answer": "B",
                   "options": ["A. He. Indeed.", "B. She.", "C. It.", "the U.S.A. team"]},
                  "Question: Who?\nA. He. Indeed.\nB. She.\nC. It.\nthe U.S.A. team",
                  "video_qa/Video-MME/v7", ["He. Indeed", "She", "It", "the U.S.A. team"], 1),
    "NExTQA": ({"video": 7, "question": "how many", "answer": 3, "a0": "3", "a1": "one",
                "a2": "two", "a3": "four", "a4": "five"},
               "how many\nOptions:\n(A) 3\n(B) one\n(C) two\n(D) four\n(E) five",
               "video_qa/NExTQA/7", ["3", "one", "two", "four", "five"], 3),
    "EgoSchema": ({"video_idx": "v7", "question": "Why?", "answer": "1",
                   "option": ["A. To eat.", "B. To cook."]},
                  "Question: Why?A. To eat. B. To cook.", "video_qa/EgoSchema/v7",
                  ["To eat", "To cook"], 1),
    "MVBench": ({"video": "v7.mp4", "question": "How many?",
                 "candidates": ["2", "1"], "answer": "1"},
                "How many?\nOptions:\n(A) 2\n(B) 1", "video_qa/MVBench/moving_count/v7.mp4",
                ["(A) 2", "(B) 1"], 1),
    "ActivityNetQA": ({"video_name": "x", "question": "is it red", "answer": "no"},
                      "is it red? (A) yes; (B) no.", "video_qa/ActivityNetQA/v_x",
                      ["yes", "no"], 1),
    "QVHighlight": ({"query": "a jump", "video_path": "videos/v7.mp4"},
                    "in the given video: a jump", "video_mret/QVHighlight/v7/query",
                    ["video_mret/QVHighlight/v7/negative_1",
                     "video_mret/QVHighlight/v7/positive"], 1),
    "MomentSeeker": ({"query": "a jump", "input_frames": "d/v7.mp4",
                      "positive_frames": [{"output_path": "d/p.mp4"}],
                      "negative_frames": [{"output_path": "d/n.mp4"}]},
                     "and video segment: a jump", "video_mret/MomentSeeker/video_frames/d_v7",
                     ["video_mret/MomentSeeker/video_frames/d_p",
                      "video_mret/MomentSeeker/video_frames/d_n"], 0),
}  # fmt: skip


#: Where they lie, if elsewhere.
FILES = {
    "MSR-VTT": "test_1k/test-00000-of-00001.parquet",
    "NExTQA": "MC/test-00000-of-00001.parquet",
    "EgoSchema": "Subset/test/0000.parquet",
    "YouCook2": "data/val-00000-of-00001.parquet",
    "MVBench": "moving_count/train/0000.parquet",
}


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_are_read_from_the_columns_that_are_published(tmp_path, name):
    row, said, clip, candidates, right = VIDEOS[name]
    file = tmp_path / name / FILES.get(name, "data/test-00000-of-00001.parquet")
    write_rows(file, [row])
    # Another configuration, another split.
    write_rows(tmp_path / name / "other" / "dev_9k-00000-of-00001.parquet", [{"other": 1}])
    for folder in ("positive", "negative_1", "query"):
        (tmp_path / "frames/video_mret/QVHighlight/v7" / folder).mkdir(parents=True)
    assert subset_names(tmp_path) == [name]
    subset = read_subset(tmp_path, name, images=tmp_path / "frames")
    ((text, shown),) = subset.queries
    assert text.endswith(said)
    assert text.startswith(ASK) == (name in CATEGORIES["video qa"])
    assert shown == clip
    assert [one.image or one.text for one in subset.candidates] == candidates
    assert subset.right == [{right: 1}]
    assert set(subset.lists[0]) == set(range(len(candidates)))
    write_rows(file, [{**row, "query": None, "caption": [], "video_id": None, "question": None,
                       "sentence": None, "enCap": None, "positive_frames": []}])  # fmt: skip
    with pytest.raises(DataError, match=rf"parquet: row 1: is no row of {name} as published"):
        read_subset(tmp_path, name, images=tmp_path / "frames")
    file.unlink()
    with pytest.raises(DataError, match=r"holds no row of .*(test|val|train)"):
        read_subset(tmp_path, name)


def test_where_a_video_has_no_list_all_are_its_candidates(tmp_path):
    rows = [{"video_id": f"v{n}", "pos_text": label} for n, label in enumerate(("a", "b", "a"))]
    write_rows(tmp_path / "HMDB51" / "test-00000-of-00001.parquet", rows)
    subset = read_subset(tmp_path, "HMDB51")
    assert subset.lists == [range(2)] * 3
    assert subset.right == [{0: 1}, {1: 1}, {0: 1}]
    # Fewer queries make no list shorter.
    assert read_subset(tmp_path, "HMDB51", limit=1).lists == [range(2)]
    score = score_subset(subset, rank_lists(subset, np.eye(2)[[0, 1, 1]], np.eye(2)))
    assert score.metrics["success@1"] == pytest.approx(2 / 3)
    rows[0] = {"video_id": "v0", "question": "Who?", "options": ["A. x"], "answer": "B"}
    write_rows(tmp_path / "Video-MME" / "test.parquet", [{**rows[0], "videoID": "v0"}])
    with pytest.raises(DataError, match="answer 'B' is none of 1 options"):
        read_subset(tmp_path, "Video-MME")
    row = {"video_id": 7, "pos_text": "a", "neg_text": ["a", "b"]}
    (tmp_path / "SmthSmthV2.jsonl").write_text(f"{json.dumps(row)}\n" * 1001)
    assert len(read_subset(tmp_path, "SmthSmthV2").queries) == 1000


LONG = "a page with a name that is far too long for some files.jpg"


def make_documents(folder, name="VisRAG_PlotQA", split="train"):
    """Seven pages in BEIR's tables; two queries, of which one has judgements of two grades."""
    pages = [*map(str, range(6)), LONG]
    judged = [(0, "1", 1), (0, "2", 2), (0, "2", 1), (0, "gone", 0), (1, "4", 1), (7, "gone", 1)]
    tables = {
        "corpus": [{"corpus-id": page, "image": {"bytes": b"-", "path": "x"}} for page in pages],
        "queries": [{"query-id": n, "query": f"q{n}", "language": ("english", "french")[n]}
                    for n in range(2)],
        "qrels": [{"query-id": query, "corpus-id": page, "score": grade}
                  for query, page, grade in judged],
    }  # fmt: skip
    for table, rows in tables.items():
        write_rows(folder / name / table / f"{split}-00000-of-00001.parquet", rows)
    return folder


def test_pages_of_documents_are_scored_by_ndcg_with_grades(tmp_path):
    """By hand: 1/log2(3) + 2/log2(4) of 2 + 1/log2(3), and a page found fourth, 1/log2(5)."""
    subset = read_subset(make_documents(tmp_path), "VisRAG_PlotQA")
    assert subset_names(tmp_path) == ["VisRAG_PlotQA"]
    assert subset.queries[1] == Target(
        "Find a document image that matches the given query: q1", None
    )
    assert subset.candidates[3].image == "VisRAG_PlotQA/3_eccbc87e"  # md5 of 3, as of the next
    assert subset.candidates[6].image == f"VisRAG_PlotQA/{LONG[:50]}_cd125419.jpg"
    assert subset.right == [{1: 1, 2: 2}, {4: 1}]
    # Query 0 finds pages 0, 1, 2; query 1 finds 0, 1, 2, 4.
    queries = np.array([[1.0], [1.0]])
    found = np.array([[9.0], [8.0], [7.0], [1.0], [6.0], [0.0], [0.5]])
    score = score_subset(subset, rank_lists(subset, queries, found))
    first = (1 / np.log2(3) + 2 / np.log2(4)) / (2 + 1 / np.log2(3))
    assert score.metric == "ndcg@5"
    assert score.metrics["ndcg@5"] == pytest.approx((first + 1 / np.log2(5)) / 2)
    means = summary([score, Score("ImageNet-1K", "classification", 3, 3, {"success@1": 0.5})])
    assert means["documents"] == pytest.approx(score.metrics["ndcg@5"])
    assert means["image"] == means["in distribution"] == 0.5
    assert means["all"] == pytest.approx((0.5 + score.metrics["ndcg@5"]) / 2)


def test_sets_of_documents_have_their_own_split_folder_and_language(tmp_path):
    make_documents(tmp_path, "ViDoRe_esg_reports_v2", "test")
    shutil.copytree(tmp_path / "ViDoRe_esg_reports_v2", tmp_path / "ViDoRe_docvqa")
    shutil.copytree(tmp_path / "ViDoRe_docvqa", tmp_path / "ViDoRe_esg_reports_v2_multilingual")
    names = ("ViDoRe_esg_reports_v2", "ViDoRe_esg_reports_v2_multilingual", "ViDoRe_docvqa")
    one, all_of_it, first = (read_subset(tmp_path, name) for name in names)
    assert [len(subset.queries) for subset in (one, all_of_it, first)] == [1, 2, 2]
    assert [subset.candidates[6].image for subset in (one, all_of_it, first)] == [
        f"{folder}/{LONG}.png"
        for folder in ("esg_reports_v2", "esg_reports_v2_multilingual", "ViDoRe_docvqa")
    ]
    qrels = tmp_path / "ViDoRe_docvqa/qrels/test-00000-of-00001.parquet"
    for score, message in ((1, "row 1: judges a page that is not in the corpus: 'no'"),
                           (None, "row 1: score must be a number, and is None")):  # fmt: skip
        write_rows(qrels, [{"query-id": 0, "corpus-id": "no", "score": score}])
        with pytest.raises(DataError, match=message):
            read_subset(tmp_path, "ViDoRe_docvqa")
    qrels.rename(qrels.with_name("train.parquet"))
    with pytest.raises(DataError, match=r"qrels: holds no file of test"):
        read_subset(tmp_path, "ViDoRe_docvqa")


def test_frames_are_evenly_spaced_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / "v" / "clip"
    folder.mkdir(parents=True)
    for n in range(20):
        (folder / f"frame{n}.JPG").touch()
    (folder / "notes.txt").touch()
    spaced = np.linspace(0, 19, 8, dtype=int)
    assert frames(tmp_path, "v/clip") == tuple(f"v/clip/frame{n}.JPG" for n in spaced)
    assert frames(tmp_path, "v/clip/", 1) == ("v/clip/frame10.JPG",)
    assert len(frames(tmp_path, "v/clip", 30)) == 20
    # A picture, and what opening refuses, stay as they are.
    for path in ("v/clip/frame3.JPG", "../v", "no.png", "/v"):
        assert frames(tmp_path, path) == (path,)
    with pytest.raises(ImageError, match="folder without pictures"):
        frames(tmp_path, "v")


@pytest.mark.filterwarnings("ignore")
def test_a_video_is_shown_frame_by_frame_and_a_page_as_it_is(tmp_path, capsys):
    name, images = "ViDoRe_docvqa", tmp_path / "images"
    root = make_documents(tmp_path / "mmeb", name, "test")
    rng = np.random.default_rng(0)
    subset = read_subset(root, name)
    paths = [one.image for one in subset.candidates]
    paths += [f"video_ret/MSR-VTT/v{video}/{n}.png" for video in range(2) for n in range(3)]
    for path in paths:
        (images / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(images / path)
    rows = [{"video_id": f"v{n}", "caption": f"caption {n}"} for n in range(2)]
    write_rows(root / "MSR-VTT" / FILES["MSR-VTT"], rows)
    arguments = ["mmeb", f"--root={root}", f"--images={images}"]
    assert main([*arguments, f"--out={tmp_path / 'out'}", "--model=flagland-mllm"]) == 0
    assert "| mean: video |" in capsys.readouterr().out
    shown = [Image.open(images / path) for path in paths[-3:]]
    wanted = embed_contents(load("flagland-mllm"), [(CLIP, shown), (CLIP, shown[::-1])], "corpus")
    stored = EmbeddingStore.open(tmp_path / "out/embeddings/MSR-VTT/corpus").take(np.arange(2))
    assert stored[1] @ wanted[0].numpy() == pytest.approx(1, abs=1e-5)
    assert stored[1] @ wanted[1].numpy() < 1 - 1e-4
    clip = ["--model=retrievers.models.clip.ClipScoreFusion",
            f"--model.model_name={make_config(tmp_path)}"]  # fmt: skip
    assert main([*arguments, *clip, f"--out={tmp_path / 'all'}"]) == 2
    assert "3 pictures for a model of one" in capsys.readouterr().err
    assert main([*arguments, *clip, f"--out={tmp_path / 'one'}", "--video_frames=1"]) == 0


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
