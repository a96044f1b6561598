"""BLIP score and feature fusion against transformers' own forward passes and UniIR's formulas."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipTextModel
from transformers import BlipImageProcessorPil as BlipImageProcessor

from augment.errors import DataError, EngineError, MismatchError
from retrievers.cli import USER_ERROR, main
from retrievers.data.examples import Example
from retrievers.export.folder import save
from retrievers.models.blip import BlipFeatureFusion, BlipScoreFusion
from retrievers.models.load import load
from retrievers.models.long_text import context_of, count_tokens

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue", "white", "black",
    "number", "find", "it", "show", "name", "which", "one", "what", "is", ".", "?",
    *"0123456789", *(f"##{digit}" for digit in "0123456789"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BLIP of two layers with random weights, as transformers saves it."""
    path = tmp_path_factory.mktemp("blip")
    torch.manual_seed(0)
    both = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2}  # fmt: skip
    text = {**both, "vocab_size": len(WORDS), "max_position_embeddings": 128, "pad_token_id": 0,
            "bos_token_id": 2, "sep_token_id": 3}  # fmt: skip
    vision = {**both, "hidden_size": 24, "image_size": 16, "patch_size": 8}
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=12)
    model = BlipForImageTextRetrieval(config)
    for parameter in model.parameters():  # no zeros, or half of the checks would be empty
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    return path


def batch(retriever, kinds=("text", "image", "both", "text")):
    torch.manual_seed(1)
    texts = ["red number 1", "blue", "find it. which one? green number 12", "white number 7"]
    size = retriever.blip.vision_model.config.image_size
    examples = [
        Example(row, texts[row] if kind != "image" else None,
                torch.randn(3, size, size) if kind != "text" else None)
        for row, kind in enumerate(kinds)
    ]  # fmt: skip
    return examples, retriever.collator()(examples, "query")


def ids(retriever, text):
    found = retriever.collator().tokenize([text])
    return {"input_ids": found, "attention_mask": (found != 0).long()}


def test_score_fusion_is_the_masked_sum_of_transformers_features(folder):
    retriever = BlipScoreFusion(str(folder)).eval()
    model = BlipForImageTextRetrieval.from_pretrained(folder).eval()
    examples, inputs = batch(retriever)
    expected = []
    with torch.no_grad():
        for example in examples:
            text = model.text_encoder(**ids(retriever, example.text or ""))
            picture = torch.zeros(3, 16, 16) if example.image is None else example.image
            image = model.vision_model(picture[None])
            expected.append(
                (example.text is not None) * model.text_proj(text.last_hidden_state[:, 0])
                + (example.image is not None) * model.vision_proj(image.last_hidden_state[:, 0])
            )
        found = retriever.encode(inputs, "corpus").vectors
    torch.testing.assert_close(found, functional.normalize(torch.cat(expected), dim=-1))


@pytest.mark.parametrize("attention", ["masked", "uniir"])
def test_feature_fusion_is_the_pooled_class_token(folder, attention):
    retriever = BlipFeatureFusion(str(folder), attention=attention).eval()
    model = BlipTextModel(BlipConfig.from_pretrained(folder).text_config).eval()
    state = retriever.blip.text_encoder.state_dict()
    model.load_state_dict(state)
    vision = BlipForImageTextRetrieval.from_pretrained(folder).vision_model.eval()
    examples, inputs = batch(retriever)
    expected = []
    with torch.no_grad():
        for example in examples:
            given = {}
            if example.image is not None or attention == "uniir":
                picture = torch.zeros(3, 16, 16) if example.image is None else example.image
                tokens = vision(picture[None]).last_hidden_state
                mask = torch.ones(tokens.shape[:2], dtype=torch.long)
                given = {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}
            expected.append(model(**ids(retriever, example.text or ""), **given).pooler_output)
        found = retriever.encode(inputs, "query").vectors
    torch.testing.assert_close(found, functional.normalize(torch.cat(expected), dim=-1))
    assert (
        state["encoder.layer.0.attention.self.query.weight"]
        == retriever.blip.text_encoder.encoder.layer[0].attention.self.query.weight
    ).all()


@pytest.mark.parametrize("kind", [BlipScoreFusion, BlipFeatureFusion])
def test_only_the_towers_that_items_need_run(folder, kind):
    retriever = kind(str(folder)).eval()
    calls = []
    for name in ("vision_model", "text_encoder"):
        module = getattr(retriever.blip, name)
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    retriever.encode(batch(retriever, ("text", "text"))[1], "query")
    assert calls == ["text_encoder"]
    calls.clear()
    retriever.encode(batch(retriever, ("image", "image"))[1], "query")
    # In feature fusion the text encoder is what looks at the picture.
    assert calls == (
        ["vision_model"] if kind is BlipScoreFusion else ["vision_model", "text_encoder"]
    )
    with pytest.raises(ValueError, match="at least one text or picture"):
        retriever.encode(retriever.collator()([Example(0, None, None)], "query"), "query")


def test_texts_and_pictures_are_prepared_as_transformers_prepares_them(folder):
    retriever = BlipScoreFusion(str(folder), context=8)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 25, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    theirs = BlipImageProcessor(size={"height": 16, "width": 16})(picture, return_tensors="pt")
    torch.testing.assert_close(retriever.collator().image(picture), theirs.pixel_values[0],
                               rtol=0, atol=0.02)  # fmt: skip
    tokenize = retriever.collator().tokenize
    assert context_of(tokenize) == 8
    assert tokenize(["red " * 20]).shape == (1, 8)
    assert count_tokens(tokenize, ["red", "red " * 20]) == [3, 22]


def test_positions_are_interpolated_for_another_size(folder):
    small, large = BlipScoreFusion(str(folder)), BlipScoreFusion(str(folder), image_size=32)
    images = torch.randn(2, 3, 32, 32)
    vision = small.blip.vision_model.eval()
    with torch.no_grad():
        theirs = vision(images, interpolate_pos_encoding=True).last_hidden_state
        ours = large.blip.eval().tokens(images)
    torch.testing.assert_close(ours, theirs)
    assert large.collator().image(Image.new("RGB", (9, 5))).shape == (3, 32, 32)
    with pytest.raises(MismatchError, match="16 x 16 pixels for a model that takes 32 x 32"):
        large.encode(batch(small)[1], "query")


@pytest.mark.parametrize("kind", [BlipScoreFusion, BlipFeatureFusion])
def test_folders_and_checkpoints_give_the_same_vectors(folder, tmp_path, kind, monkeypatch):
    special = {"width": 20} if kind is BlipScoreFusion else {"attention": "uniir"}
    retriever = kind(str(folder), image_size=24, context=9, **special).eval()
    inputs = batch(retriever)[1]
    with torch.no_grad():
        expected = retriever.encode(inputs, "corpus").vectors
    save(retriever, tmp_path / "saved")
    assert sorted(path.suffix for path in (tmp_path / "saved").iterdir()).count(".safetensors") == 1
    again = load(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(again.encode(inputs, "corpus").vectors, expected, rtol=0, atol=0)
    assert again.settings() == retriever.settings()


def settings(root, folder, out, kind, *more):
    return [
        "--config=flagland", f"--model.encoder=retrievers.models.blip.{kind}",
        f"--model.encoder.model_name={folder}",
        f"--data.root={root}", f"--out={out}", "--data.batch_size=8", "--model.encoder.context=12",
        "--trainer.val_check_interval=4", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", "--data.validation.queries=4", *more,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["BlipScoreFusion", "BlipFeatureFusion"])
def test_fit_resume_test_and_load(folder, root, tmp_path, kind):
    out = tmp_path / "run"
    fit = settings(root, folder, out, kind, "--model.optimizer.lr=1e-3")
    assert main(["fit", *fit, "--trainer.max_steps=4"]) == 0
    assert main(["fit", *fit, "--trainer.max_steps=8",
                 f"--ckpt_path={out}/checkpoints/last.ckpt"]) == 0  # fmt: skip
    checkpoint = out / "checkpoints" / "last.ckpt"
    test = settings(root, folder, tmp_path / "test", kind, f"--ckpt_path={checkpoint}")
    assert main(["test", *test]) == 0
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert metrics["settings"]["model"]["model_name"] == str(folder)
    loaded = load(checkpoint)
    assert metrics["made_by"] == loaded.fingerprint(loaded.trained_on)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_size": 20}, "must be a multiple of the patch, 8; got 20"),
        ({"context": 129}, "model.context must be 3 to 128"),
        ({"attention": "none"}, "must be masked or uniir, got 'none'"),
    ],
)
def test_wrong_settings_are_named(folder, given, message):
    with pytest.raises(DataError, match=message):
        BlipFeatureFusion(str(folder), **given)


def test_what_is_no_blip_is_named(folder, tmp_path, root, capsys):
    with pytest.raises(EngineError, match="cannot load the BLIP model"):
        BlipScoreFusion(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(DataError, match="is a clip; name a BLIP model"):
        BlipScoreFusion(str(tmp_path))
    out = tmp_path / "out"
    assert main(["fit", *settings(root, tmp_path, out, "BlipScoreFusion")]) == USER_ERROR
    assert "is a clip; name a BLIP model" in capsys.readouterr().err


@pytest.mark.parametrize("mark", ["[SEP]", "[PAD]", "[CLS]"])
def test_marks_in_a_text_are_ordinary_text(folder, mark):
    tokenize = BlipScoreFusion(str(folder)).collator().tokenize
    found = tokenize([f"red {mark} blue", "red ? ? ? blue"])
    assert found[0].tolist()[:7] == [2, 5, 1, 1, 1, 7, 3]  # "[", letters and "]" are unknown here
    assert (found[0] != 0).tolist() == (found[1] != 0).tolist()
