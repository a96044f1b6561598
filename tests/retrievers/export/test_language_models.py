"""Exported language models, loaded by sentence-transformers and peft alone, give our numbers."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import transformers as tf
from PIL import Image
from torch.nn import functional

from augment.errors import DataError, MismatchError
from retrievers.cli import main
from retrievers.export.folder import export_to
from retrievers.export.language_models import agreement, write_folder
from retrievers.models.load import load
from retrievers.models.mllm.layout import LAYOUTS, CrossLayout, Layout
from retrievers.models.mllm.reasoning import Reasoning
from retrievers.models.reranker import scorer
from retrievers.models.tuning import Tuning
from retrievers.training.module import Contrastive
from retrievers.vectors.embed import embed_contents, examples_of
from tests import tiny_vlms
from tests.retrievers.mllms import make

st = pytest.importorskip("sentence_transformers", reason="the extra is not installed")

MARKED = {"query": "Find it.", "corpus": "An item.", "mark": "<|emb|>"}
CROSS = CrossLayout('<Q> "it"\n', "\n<{n}>: ", ask=" Same?", yes="a", no="e")
RERANKER = Layout(query="Judge. {{ 1 }} \U0001f600", cross=CROSS, pictures_first=False)
TEXTS = ["a red flag", "which country has this flag? " * 9 + "this one"]

#: Runs with no package of ours on the path: texts, pictures and both, without and with instruction.
FOREIGN = """
import json, sys
from PIL import Image
from sentence_transformers import CrossEncoder, SentenceTransformer
encoder, reranker, texts, paths = map(json.loads, sys.argv[1:])
pictures = [Image.open(path) for path in paths]
items = texts + pictures + [{"image": p, "text": texts[0]} for p in pictures]
model, judge = (kind(name, device="cpu") for kind, name in
                ((SentenceTransformer, encoder), (CrossEncoder, reranker)))
found = {"document": model.encode_document(items).tolist()}
for prompt in ("", "Find it. "):
    given = {"prompt": prompt} if prompt else {}
    found["query" + prompt] = model.encode_query(items, **given).tolist()
    found["score" + prompt] = judge.predict([(items[-1], i) for i in items], **given).tolist()
assert not [name for name in sys.modules if name.split(".")[0] in ("retrievers", "augment")]
print(json.dumps(found))
"""


def test_folders_load_without_this_package_and_give_our_numbers(folders, tmp_path):
    encoder = make(folders["qwen3"], layout=Layout(pooling="before", **MARKED))
    reranker = make(folders["qwen2_5"], layout=RERANKER)
    paths = [tiny_vlms.pictures(tmp_path, [(96, 64), (301, 77)]) / f"{n}.png" for n in (0, 1)]
    for name, model in (("encoder", encoder), ("reranker", reranker)):
        export_to(model, tmp_path / name, "sentence_transformers")
    card = (tmp_path / "reranker" / "README.md").read_text()
    assert "CrossEncoder" in card
    assert "pipeline_tag: text-ranking" in card
    given = [str(tmp_path / "encoder"), str(tmp_path / "reranker"), TEXTS, list(map(str, paths))]
    done = subprocess.run(
        [sys.executable, "-I", "-c", FOREIGN, *map(json.dumps, given)],
        capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = {name: torch.tensor(rows) for name, rows in json.loads(done.stdout).items()}
    pictures = [Image.open(path) for path in paths]
    items = [(text, None) for text in TEXTS] + [(None, p) for p in pictures]
    items += [(TEXTS[0], p) for p in pictures]
    assert_same(embed_contents(encoder, items, "corpus"), found["document"])
    for prompt in ("", "Find it. "):
        told = [((prompt + (text or "")).strip() or None, picture) for text, picture in items]
        ours = embed_contents(encoder, told, "query")
        assert_same(ours, found["query" + prompt])
        assert functional.cosine_similarity(ours, found["document"]).max() < 0.999, "sides differ"
        (query,) = examples_of(reranker.collator(), told[-1:])
        scores = scorer(reranker).score(query, examples_of(reranker.collator(), items))
        torch.testing.assert_close(found["score" + prompt], scores, atol=1e-4, rtol=0)
        assert scores.std() > 1e-2, "candidates differ at all"


def assert_same(ours, theirs):
    assert functional.cosine_similarity(ours, theirs).min() > 0.9999


@pytest.mark.parametrize(
    ("family", "layout", "settings"),
    [
        ("qwen3", Layout(pooling="at", pictures_first=False, **MARKED), {"head": True}),
        ("qwen3", Layout(pooling="after", **MARKED), {}),
        ("qwen2", LAYOUTS["vlm2vec-v2"], {}),
        ("qwen2", LAYOUTS["gme"], {}),
        ("qwen2_5", LAYOUTS["lamra"], {}),
        ("qwen3", replace(RERANKER, pictures_first=True), {"dtype": "bfloat16"}),
        ("qwen2_5", LAYOUTS["trace"], {"reasoning": Reasoning("always")}),
    ],
)
def test_layouts_become_chat_templates(folders, tmp_path, family, layout, settings):
    """The check of the export itself compares; another template must not pass it."""
    model = make(folders[family], layout=layout, **settings)
    if model.words is None and settings.get("head"):
        torch.nn.init.normal_(model.head.weight)
    kinds = {p.dtype for p in model.vlm.parameters()}
    write_folder(model, tmp_path)
    assert agreement(model, tmp_path)
    assert kinds == {p.dtype for p in model.vlm.parameters()}
    whole = json.loads((tmp_path / "config.json").read_text())["architectures"]
    assert whole == [type(model.vlm).__name__], "what servers know"
    if model.words is None:  # its own template would be written inside another layout's
        with pytest.raises(DataError, match="name the checkpoint it was exported from"):
            load(tmp_path)
    path = tmp_path / "chat_template.jinja"
    path.write_text(path.read_text().replace('"pictures_first": ', '"pictures_first": not '))
    if layout.chat:
        with pytest.raises(MismatchError, match="gives others than the checkpoint"):
            agreement(model, tmp_path)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (LAYOUTS["jina-reranker-m0"], "yes is empty.*tokens behind.*query first.*chat=false"),
        (LAYOUTS["listwise"], "it writes an order"),
    ],
)
def test_layouts_that_have_no_counterpart_are_refused(folders, tmp_path, layout, reason):
    model = make(folders["qwen2"], layout=layout)
    with pytest.raises(MismatchError, match=reason):
        export_to(model, tmp_path / "out", "sentence_transformers")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def spare(folders, tmp_path):
    """Models whose vocabularies have room for the mark, as published ones."""
    for family in ("qwen3", "qwen2_5"):
        model = tf.AutoModelForImageTextToText.from_pretrained(folders[family])
        model.resize_token_embeddings(304, mean_resizing=False)
        model.save_pretrained(tmp_path / family)
        tf.AutoProcessor.from_pretrained(folders[family]).save_pretrained(tmp_path / family)
    return tmp_path


def adapted(folder, **more):
    """Updates that move vectors, and rows of the mark that have been trained."""
    settings = {"layout": more.pop("layout", Layout(pooling="at", **MARKED)), **more}
    encoder = Contrastive(
        make(folder, **settings), tuning=Tuning("image", lora_rank=2, dora=True)
    ).encoder
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                parameter.normal_(0, 0.3)
    return encoder.eval()


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5"])
def test_low_rank_updates_become_a_folder_of_peft(spare, tmp_path, family):
    """Tied heads and untied ones; the base alone gives other vectors."""
    from peft import PeftModel

    encoder = adapted(spare / family)
    found = export_to(encoder, tmp_path / "out", "peft")
    assert min(found.values()) > 0.9999
    base = tf.AutoModelForImageTextToText.from_pretrained(spare / family)
    told = PeftModel.from_pretrained(base, str(tmp_path / "out"))
    assert told.peft_config["default"].base_model_name_or_path == str(spare / family)
    ours = embed_contents(encoder, [("a flag", None)], "query")
    encoder.vlm = told.merge_and_unload()
    torch.testing.assert_close(
        embed_contents(encoder, [("a flag", None)], "query"), ours, atol=1e-4, rtol=0
    )
    encoder.vlm = tf.AutoModelForImageTextToText.from_pretrained(spare / family)
    assert functional.cosine_similarity(
        embed_contents(encoder, [("a flag", None)], "query"), ours
    ) < 0.99  # fmt: skip
    size = (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert size < (spare / family / "model.safetensors").stat().st_size / 3


def test_updates_that_a_folder_of_peft_cannot_hold_are_refused(folders, spare, tmp_path):
    for model, form, reason in (
        (make(folders["qwen3"]), "peft", "no low-rank updates"),
        (adapted(folders["qwen3"], head=True), "peft", "head.weight were trained beside"),
        (adapted(folders["qwen3"]), "peft", "with another base or more words"),
        (adapted(spare / "qwen3", random_init=True), "peft", "gives others than the checkpoint"),
        (adapted(folders["qwen3"]), "sentence_transformers", "updates are not merged"),
        (load("flagland-clip"), "peft", "is for multimodal language models"),
    ):
        with pytest.raises(MismatchError, match=reason):
            export_to(model, tmp_path / "out", form)
        assert not (tmp_path / "out").exists()


def test_a_fit_is_handed_on_by_the_command(root, spare, tmp_path, capfd):
    given = ["--config=flagland_mllm", f"--data.root={root}", f"--out={tmp_path / 'run'}",
             f"--model.encoder.model_name={spare / 'qwen3'}", "--model.tuning.lora_rank=2",
             "--model.encoder.head=false",
             "--data.batch_size=2", "--trainer.max_steps=1", "--trainer.val_check_interval=1",
             "--trainer.enable_progress_bar=false"]  # fmt: skip
    assert main(["fit", *given]) == 0
    checkpoint = f"--checkpoint={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"
    for form in ("sentence_transformers", "peft"):
        out = [f"--out={tmp_path / form}", f"--to={form}", f"--root={root}"]
        assert main(["export", checkpoint, *out]) == 0
        assert "cosine with the checkpoint's vectors at least 1.0" in capfd.readouterr().out
    prompts = json.loads((tmp_path / "sentence_transformers" / "config_sentence_transformers.json")
                         .read_text())["prompts"]  # fmt: skip
    assert prompts["squares: text -> image"] == "Find it. "
    assert f'from_pretrained("{spare / "qwen3"}")' in (tmp_path / "peft/README.md").read_text()
