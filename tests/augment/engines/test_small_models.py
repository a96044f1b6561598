"""The packaged small models and the scripts that made them."""

import itertools
import random
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from augment.engines import load_engine
from augment.engines.base import PACKAGED
from augment.prompts import load_prompt
from augment.records import Item, Sampling
from benchmarks.flagland import atlas, language, score_vlm, train_vlm, vlm
from benchmarks.flagland.grammar import Flag
from benchmarks.flagland.oracle import FactCounts
from benchmarks.flagland.render import draw_flat
from retrievers.models.towers import encode_text, load_clip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    texts = train_vlm.tokenizer_texts(0, count=40)
    vlm.build_qwen3_vl(
        folder, texts, vocab_size=600, vision_width=32, vision_depth=2, text_width=64,
        text_depth=2, init_std=0.15,
    )  # fmt: skip
    return folder


class FakePictures(train_vlm.Pictures):
    """Random pixels of one size with real scene graphs."""

    def __init__(self) -> None:
        self.flags = [c.flag for c in itertools.islice(atlas.countries(8), 50)]

    def draw(self, rng: random.Random, count: int) -> tuple[np.ndarray, list[Flag]]:
        pixels = np.random.default_rng(rng.getrandbits(30)).integers(0, 255, (count, 64, 96, 3))
        return pixels.astype(np.uint8), rng.choices(self.flags, k=count)


def test_patches_equal_the_image_processor(tiny: Path) -> None:
    processor = AutoProcessor.from_pretrained(tiny)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 128, 192, 3)).astype(np.uint8)
    values, grids = train_vlm.patches(pixels)
    expected = processor.image_processor(
        images=[Image.fromarray(picture) for picture in pixels], return_tensors="pt"
    )
    assert torch.equal(grids, expected["image_grid_thw"])
    torch.testing.assert_close(values, expected["pixel_values"], atol=1e-5, rtol=0)


def test_only_the_answers_tokens_are_learnt(tiny: Path) -> None:
    """The loss is the one transformers computes from the same labels."""
    processor = AutoProcessor.from_pretrained(tiny)
    model = AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32)
    for batch in train_vlm.Batches(FakePictures(), processor, seed=0).draw(0, 16, warm=False):
        answered = (batch["labels"] != -100).sum()
        with torch.no_grad():
            theirs = model(**batch["inputs"], labels=batch["labels"]).loss
            ours = train_vlm.answer_loss(model, batch) / answered
        torch.testing.assert_close(ours, theirs)
        for row, labels in zip(batch["inputs"]["input_ids"], batch["labels"], strict=True):
            answer = processor.tokenizer.decode(row[labels != -100])
            assert answer.endswith("<|im_end|>")
            assert "assistant" not in answer


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.10 has no Muon")
def test_matrices_inside_the_layers_are_muons_and_a_step_has_adams_size(tiny: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32)
    names = {parameter: name for name, parameter in model.named_parameters()}
    muon, adam = train_vlm.optimisers(model, lr=1e-3, muon_lr=1e-3)
    inner = [names[p] for group in muon.param_groups for p in group["params"]]
    rest = [names[p] for group in adam.param_groups for p in group["params"]]
    assert sorted(inner + rest) == sorted(names.values())
    assert all(name.endswith("weight") and "embed" not in name for name in inner)
    assert any("mlp" in name for name in inner)
    before = {name: parameter.detach().clone() for parameter, name in names.items()}
    for parameter in names:
        parameter.grad = torch.randn_like(parameter)
    muon.step()
    for parameter, name in names.items():
        moved = (parameter - before[name]).square().mean().sqrt().item()
        assert (2e-5 < moved < 6e-4) if name in inner else moved == 0, name


def test_judging_a_question() -> None:
    country = next(atlas.countries(9))
    frame = "What is the capital of {ref}?"
    alone = language.resolved(frame, country.flag)
    assert score_vlm.judge_question(alone, frame, country)["right"]
    other = "What is the currency of {ref}?"
    assert not score_vlm.judge_question(alone, other, country)["frame"]
    told = f"{alone} {country.facts['capital']}"
    assert not score_vlm.judge_question(told, frame, country)["right"]
    assert not score_vlm.judge_question(frame.format(ref="it"), frame, country)["facts"]


@pytest.mark.skipif(not PACKAGED["flagland-vlm"].exists(), reason="the VLM is not packaged")
def test_the_packaged_vlm_sees(tmp_path: Path) -> None:
    """A floor far below the card's figures: notices a broken model, not a point of F1."""
    countries = list(itertools.islice(atlas.countries(31_337), 24))
    for country in countries:
        picture = draw_flat(country.flag, 192, random.Random(country.index))
        picture.save(tmp_path / f"{country.index}.jpg", quality=90)
    engine = load_engine("flagland-vlm", root=tmp_path, batch_size=24)
    prompt = load_prompt("rar/image_query")
    items = [Item(f"0:{c.index + 1}", None, (f"{c.index}.jpg",), "image") for c in countries]
    counts = FactCounts()
    replies = engine.generate([prompt.render(item) for item in items], Sampling(96))
    for country, reply in zip(countries, replies, strict=True):
        counts.add(language.parse(reply.text), country.flag.facts())
    assert counts.table()["all"]["f1"] > 0.85


def test_the_packaged_clip_knows_pictures_and_words() -> None:
    model, processor = load_clip("flagland-clip")
    assert isinstance(model, open_clip.CLIP)
    countries = list(itertools.islice(atlas.countries(31_338, twin_share=0.0), 40))
    pictures = [draw_flat(c.flag, 192, random.Random(c.index)) for c in countries]
    words = [language.human_description(random.Random(c.index), c.flag) for c in countries]
    with torch.inference_mode():
        images = model.encode_image(torch.stack([processor.image(p) for p in pictures]))
        texts = encode_text(model, processor.tokenize(words))
    scores = torch.nn.functional.normalize(images, dim=-1) @ texts.T
    ranked = scores.argsort(dim=1, descending=True)[:, :5]
    found = (ranked == torch.arange(40)[:, None]).any(1).float().mean()
    assert found > 0.5  # chance: 0.125
