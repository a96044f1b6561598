"""Exported folders load in other libraries without our code and give our vectors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCardData
from PIL import Image
from torch.nn import functional

from augment.errors import DataError, EngineError, MismatchError
from retrievers.cli import USER_ERROR, main
from retrievers.export import folder as hub
from retrievers.export.card import _eval_results, model_card
from retrievers.export.sentence_transformers import (
    refusals,
    to_transformers,
    write_sentence_transformers,
)
from retrievers.models.clip import ClipFeatureFusion, ClipScoreFusion
from retrievers.models.fusion_layers import FusionLayers
from retrievers.models.load import load
from retrievers.models.tuning import Tuning
from retrievers.training.module import Contrastive, trained
from retrievers.training.objective import Objective
from retrievers.vectors.embed import embed_contents
from tests.retrievers.models.test_retriever import CONFIG, make_config
from tests.retrievers.test_cli_retrievers import options

TEXTS = ["a red flag", "it's 5 o'clock; “quoted” café &amp; co.", "ﬁne  things", "word " * 99]

#: Runs with no package of ours on the path: prints vectors of the texts and of one picture.
FOREIGN = {
    "open_clip": """
import json, sys, torch, open_clip
from PIL import Image
name = "local-dir:" + sys.argv[1]
model, _, preprocess = open_clip.create_model_and_transforms(name)
tokenizer = open_clip.get_tokenizer(name)
model.eval()
with torch.no_grad():
    vectors = [model.encode_text(tokenizer(json.loads(sys.argv[2]))),
               torch.cat([model.encode_image(preprocess(Image.open(p))[None])
                          for p in json.loads(sys.argv[3])])]
""",
    "sentence_transformers": """
import json, sys, torch
from PIL import Image
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
given = json.loads(sys.argv[2]), [Image.open(p) for p in json.loads(sys.argv[3])]
vectors = [model.encode(things, convert_to_tensor=True) for things in given]
""",
}
PRINT = """
assert not [name for name in sys.modules if name.split(".")[0] in ("retrievers", "augment")]
print(json.dumps([v.tolist() for v in vectors]))
"""


def foreign(library, folder, texts, pictures):
    script = FOREIGN[library] + PRINT
    given = [str(folder), json.dumps(texts), json.dumps([str(p) for p in pictures])]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, *given],
        capture_output=True, text=True, check=False, cwd=folder,
        env={**environment, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.tensor(v) for v in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    paths = []
    for number, size in enumerate([(16, 16), (40, 24), (31, 90)]):
        paths.append(folder / f"{number}.png")
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def run(world):
    out = world[2] / "run"
    assert main(["fit", *options(world, out)]) == 0
    given = [f"--ckpt_path={out / 'checkpoints' / 'last.ckpt'}"]
    assert main(["test", *options(world, out), *given]) == 0
    return out


def least_cosine(retriever, pictures, vectors):
    ours = [
        embed_contents(retriever, [(text, None) for text in TEXTS], "query"),
        embed_contents(retriever, [(None, Image.open(path)) for path in pictures], "corpus"),
    ]
    pairs = zip(ours, vectors, strict=True)
    return min(functional.cosine_similarity(a, b).min().item() for a, b in pairs)


@pytest.mark.parametrize("library", ["open_clip", "sentence_transformers"])
def test_exported_folders_load_without_this_package(world, run, pictures, tmp_path, library, capfd):
    pytest.importorskip(library, reason=f"{library} is not installed")
    checkpoint = run / "checkpoints" / "last.ckpt"
    out = tmp_path / "model"
    given = [f"--checkpoint={checkpoint}", f"--out={out}", f"--to={library}", f"--root={world[0]}"]
    assert main(["export", *given, "--license=apache-2.0"]) == 0
    told = capfd.readouterr().out
    assert "text: cosine" in told
    assert "image: cosine" in told
    assert not list(out.rglob("*.bin")) + list(out.rglob("*.py")) + list(out.rglob("*.p*t*h"))
    vectors = foreign(library, out, TEXTS, pictures)
    assert least_cosine(load(checkpoint), pictures, vectors) > 0.9999
    card = (out / "README.md").read_text()
    assert "license: apache-2.0" in card
    named = {"open_clip": "open_clip", "sentence_transformers": "sentence-transformers"}[library]
    assert f"library_name: {named}" in card
    made_by = json.loads((run / "metrics.json").read_text())["made_by"]
    assert f"Fingerprint of weights and text: `{made_by}`" in card
    assert "| squares | text → image | local | 8 |" in card
    saved = torch.load(checkpoint, weights_only=True)["retriever"]
    assert f"`{saved['origin']['sha256']}`" in card
    assert "- command: `python -m retrievers fit --config" in card
    assert saved["text"]["corpus"].partition(":")[2] in card
    if library == "sentence_transformers":
        prompts = json.loads((out / "config_sentence_transformers.json").read_text())["prompts"]
        assert prompts["squares: text -> image"] == "Find it. "


def test_flagland_clip_goes_to_open_clip_and_is_refused_elsewhere(pictures, tmp_path, capfd):
    out = tmp_path / "model"
    assert main(["export", "--checkpoint=flagland-clip", f"--out={out}"]) == 0
    retriever = load("flagland-clip")
    assert (out / "tokenizer.json").is_file()
    vectors = foreign("open_clip", out, TEXTS, pictures)
    assert least_cosine(retriever, pictures, vectors) > 0.9999
    more = [f"--out={tmp_path / 'st'}", "--to=sentence_transformers"]
    assert main(["export", "--checkpoint=flagland-clip", *more]) == USER_ERROR
    error = capfd.readouterr().err
    assert "its pictures are 96 x 144 pixels, not square" in error
    assert "has the id 2" in error
    assert not (tmp_path / "st").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def retriever_of(folder, change=None, **settings):
    config = json.loads(json.dumps(CONFIG))
    (change or (lambda _: None))(config)
    torch.manual_seed(0)
    model = make_config(folder, config, "changed-clip")
    made = ClipScoreFusion(model, random_init=True, **settings).eval()
    with torch.no_grad():
        for parameter in made.clip.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["vision_cfg"].update(pool_type="avg"), "does not read the class token"),
        (lambda c: c["vision_cfg"].update(no_ln_pre=True), "no norm before the blocks"),
        (lambda c: c["vision_cfg"].update(ls_init_value=0.1), "its image blocks are not CLIP's"),
        (lambda c: c["vision_cfg"].update(image_size=[16, 8]), "16 x 8 pixels, not square"),
        (lambda c: c["text_cfg"].update(no_causal_mask=True), "its text tower is not causal"),
        (lambda c: c["text_cfg"].update(pool_type="last"), "its text is pooled by 'last'"),
        (lambda c: c["text_cfg"].update(proj_bias=True), "missing or has a bias"),
        (lambda c: c.update(custom_text=True), "it is a CustomTextCLIP"),
        (
            lambda c: c["text_cfg"].update(act_kwargs={"approximate": "tanh"}),
            "its text blocks use GELU",
        ),
    ],
)
def test_other_architectures_are_refused_with_the_reason(tmp_path, change, reason):
    retriever = retriever_of(tmp_path, change)
    assert any(reason in told for told in refusals(retriever.clip, retriever.collator()))
    with pytest.raises(MismatchError, match="Export it for open_clip"):
        to_transformers(retriever.clip, retriever.collator())


@pytest.mark.parametrize("quick", [False, True])
def test_transformers_copy_keeps_the_activation(tmp_path, quick):
    retriever = retriever_of(tmp_path, lambda c: c.update(quick_gelu=quick))
    model, tokenizer, _ = to_transformers(retriever.clip, retriever.collator())
    given = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model.get_text_features(**given)
        theirs = getattr(theirs, "pooler_output", theirs)
        ours = retriever.clip.encode_text(retriever.collator().tokenize(TEXTS))
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
        model.text_model.config.hidden_act = "gelu" if quick else "quick_gelu"
        other = type(model)(model.config)
        other.load_state_dict(model.state_dict())
        wrong = other.eval().get_text_features(**given)
        assert not torch.allclose(getattr(wrong, "pooler_output", wrong), ours, atol=1e-4)


def test_folders_of_ours_come_back_whole(world, run, tmp_path):
    retriever = load(run / "checkpoints" / "last.ckpt")
    hub.save(retriever, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "README.md", "open_clip_config.json", "open_clip_model.safetensors", "retriever.json",
        "SHA256SUMS",
    }  # fmt: skip
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    for back in (load(moved), load(str(moved))):
        assert isinstance(back, ClipScoreFusion)
        assert back.trained_on == retriever.trained_on
        assert back.origin == retriever.origin
        assert back.fingerprint({}) == retriever.fingerprint({})
    # A fresh process of another package is not needed: any open_clip folder is a retriever.
    (moved / "retriever.json").unlink()
    plain = load(moved)
    assert plain.trained_on is None
    assert torch.equal(plain.clip.visual.proj, retriever.clip.visual.proj)


def test_feature_fusion_comes_back_whole_and_is_refused_elsewhere(world, tmp_path):
    torch.manual_seed(0)
    small = FusionLayers(layers=1, heads=2, head_width=4, feedforward=8)
    retriever = ClipFeatureFusion(world[1], fusion=small, random_init=True).eval()
    hub.save(retriever, tmp_path / "model")
    assert not (tmp_path / "model" / "open_clip_model.safetensors").exists()
    back = load(tmp_path / "model")
    assert isinstance(back, ClipFeatureFusion)
    things = [("a text", None), ("with", Image.new("RGB", (20, 30), "red"))]
    assert torch.equal(
        embed_contents(back, things, "query"), embed_contents(retriever, things, "query")
    )
    with pytest.raises(MismatchError, match="only score fusion goes there"):
        write_sentence_transformers(retriever, tmp_path / "out")


def test_low_rank_updates_are_merged_first(tmp_path):
    training = Contrastive(retriever_of(tmp_path), tuning=Tuning(lora_rank=2))
    retriever = training.encoder
    with pytest.raises(MismatchError, match="low-rank updates, which no other library reads"):
        hub.save(retriever, tmp_path / "model")
    trained(training)
    hub.save(retriever, tmp_path / "model")
    back = load(tmp_path / "model")
    things = [("a text", None), (None, Image.new("RGB", (20, 30), "red"))]
    ours = embed_contents(retriever, things, "query")
    torch.testing.assert_close(embed_contents(back, things, "query"), ours, rtol=0, atol=1e-6)


def test_siglips_bias_goes_along(tmp_path):
    retriever = Contrastive(retriever_of(tmp_path), Objective("siglip")).encoder
    hub.save(retriever, tmp_path / "model")
    back = load(tmp_path / "model")
    assert back.clip.logit_bias.item() == -10


class Hub:
    """What push and from_pretrained ask of the Hub, in a folder."""

    folder: Path
    seen: dict

    def __init__(self, token=None):
        Hub.seen = {"token": token}

    def create_repo(self, repo_id, private, exist_ok):
        Hub.seen |= {"private": private}
        assert exist_ok
        return type("Url", (str,), {"repo_id": f"someone/{repo_id}"})(f"https://hub/{repo_id}")

    def upload_folder(self, repo_id, folder_path, revision, create_pr, commit_message):
        Hub.seen |= {"repo": repo_id, "revision": revision, "message": commit_message}
        import shutil

        shutil.copytree(folder_path, Hub.folder)

    @staticmethod
    def snapshot(name, **options):
        Hub.seen = {"name": name, **options}
        return str(Hub.folder)


def test_push_and_pull(run, tmp_path, monkeypatch, capsys):
    Hub.folder = tmp_path / "repository"
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub.snapshot)
    retriever = load(run / "checkpoints" / "last.ckpt")
    assert hub.push(retriever, "mine", private=True, token="t") == "https://hub/mine"  # noqa: S106
    assert Hub.seen == {
        "token": "t", "private": True, "repo": "someone/mine", "revision": None,
        "message": "Upload retriever",
    }  # fmt: skip
    back = load("someone/mine", revision="main")
    assert Hub.seen["name"] == "someone/mine"
    assert "*.bin" not in Hub.seen["allow_patterns"]
    assert "*.py" not in Hub.seen["allow_patterns"]
    assert back.fingerprint({}) == retriever.fingerprint({})
    Hub.folder = tmp_path / "second"
    given = [f"--checkpoint={run / 'checkpoints' / 'last.ckpt'}", f"--out={tmp_path / 'out'}"]
    assert main(["export", *given, "--push=mine"]) == 0
    assert "https://hub/mine" in capsys.readouterr().out
    assert (Hub.folder / "README.md").read_text() == (tmp_path / "out" / "README.md").read_text()


def test_what_cannot_be_loaded_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *a, **k: (_ for _ in ()).throw(OSError("offline")),
    )  # fmt: skip
    with pytest.raises(DataError, match=r"nobody/nothing: is no file or folder, and .*offline"):
        load("nobody/nothing")
    with pytest.raises(DataError, match=r"holds neither retriever\.json nor open_clip_config"):
        load(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(DataError, match="holds no weights as safetensors"):
        load(tmp_path)
    hub.save(retriever_of(tmp_path), tmp_path / "model")
    (tmp_path / "model" / "SHA256SUMS").unlink()
    told = json.loads((tmp_path / "model" / "retriever.json").read_text())
    (tmp_path / "model" / "retriever.json").write_text(json.dumps({**told, "class": "Other"}))
    with pytest.raises(DataError, match=r"holds a Other; known encoders: .*ClipScoreFusion"):
        load(tmp_path / "model")
    (tmp_path / "model" / "retriever.json").write_text("[")
    with pytest.raises(DataError, match="is not what an export writes"):
        load(tmp_path / "model")
    (tmp_path / "model" / "retriever.json").write_text(json.dumps(told))
    (tmp_path / "model" / "open_clip_model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(DataError, match="only safetensors are loaded"):
        load(tmp_path / "model")


def test_a_folder_cannot_ask_to_run_code(tmp_path):
    hub.save(ClipScoreFusion(), tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    path = tmp_path / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match="that is never done"):
        load(tmp_path)


def test_a_flipped_bit_in_a_folder_is_noticed(tmp_path):
    folder = hub.save(ClipScoreFusion(), tmp_path / "model")
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, check=True)  # noqa: S607
    assert done.returncode == 0
    checked = {path for path in folder.iterdir() if path.name not in ("README.md", "SHA256SUMS")}
    assert len(checked) == 5  # two settings, weights, two files of the tokenizer
    for path in checked:
        given = bytearray(path.read_bytes())
        given[len(given) // 2] ^= 1
        whole = path.read_bytes()
        path.write_bytes(given)
        with pytest.raises(DataError, match=rf"{path.name}: is not what was written"):
            load(folder)
        with pytest.raises(DataError, match=rf"{path.name}: is not what was written"):
            load(f"local-dir:{folder}")
        path.write_bytes(whole)
    (folder / "README.md").write_text("A card of one's own.")
    load(folder)


EVIL = "</code>`<img src=x onerror=alert(1)>|[click](javascript:alert(1))\n\n# a heading\x1b[2J"


def test_each_task_and_pool_has_figures_of_its_own_in_a_card():
    scores = {"success@5": 0.5, "recall@5": 0.5}
    rows = [{"dataset": "flags", "task": task, "pool": pool, "metrics": scores}
            for task in (0, 3) for pool in ("local", "union")]  # fmt: skip
    data = ModelCardData(model_name="x", eval_results=list(_eval_results({"rows": rows})))
    (told,) = yaml.safe_load(data.to_yaml())["model-index"]
    assert len(told["results"]) == 4
    assert all(len(one["metrics"]) == 2 for one in told["results"])


def test_nothing_of_a_checkpoint_leaves_its_place_in_a_card():
    retriever = ClipScoreFusion()
    retriever.trained_on = {"rule": EVIL, "instructions": "on", "query": f"{EVIL}:{EVIL}",
                            "corpus": f"append:{EVIL}"}  # fmt: skip
    recipe = {**dict.fromkeys(("model", "revision", "id"), EVIL), "settings": {EVIL: EVIL}}
    retriever.origin = {
        "data": {"root": EVIL, "tasks": [EVIL], "corpus_recipe": recipe},
        "sha256": EVIL, "command": EVIL, "versions": {EVIL: EVIL}, "commit": EVIL,
    }  # fmt: skip
    retriever.remember({**retriever.settings(), EVIL: EVIL})
    scores = {"success@1": 1.0, "success@5": 1.0, "recall@5": 1.0}
    row = {"dataset": EVIL, "task": 0, "pool": EVIL, "queries": EVIL, "metrics": scores}
    card = model_card(retriever, EVIL, {"rows": [row], "made_by": EVIL})
    body = card.partition("\n---\n")[2]
    assert body.count("onerror") > 10
    for forbidden in ("<img", "</code>", "](", "\n# a heading", "\x1b", "onerror=alert(1)`<"):
        assert forbidden not in body
    assert all(line.count("`") % 2 == 0 for line in body.splitlines() if "onerror" in line)


def test_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(EngineError, match=r"pip install .*\[sentence-transformers\]"):
        write_sentence_transformers(retriever_of(tmp_path), tmp_path / "out")
