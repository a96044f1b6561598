"""Pictures kept at the model's size give the same tensors, and follow changes."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from augment.errors import DataError, ImageError, StoreWriteError
from retrievers.data.pictures import ImageLoader, ResizedPictures
from retrievers.models.inputs import Processor
from retrievers.models.towers import load_clip
from tests.retrievers.models.test_retriever import make_config


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    config = make_config(tmp_path_factory.mktemp("model"))
    return [load_clip(name, random_init=True)[1] for name in ("flagland-clip", config)]


def paint(path, seed, size=(40, 30)):
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.mark.parametrize("number", [0, 1])
def test_kept_pictures_are_the_same_bits(processors, tmp_path, number, monkeypatch):
    paint(tmp_path / "a.png", 1)
    Image.fromarray(np.full((20, 20, 4), 99, np.uint8)).save(tmp_path / "b.png")
    plain = ImageLoader(tmp_path, processors[number])
    kept = ImageLoader(tmp_path, processors[number], resized=tmp_path / "kept")
    for name in ("a.png", "b.png"):
        assert torch.equal(kept(name), plain(name))
        assert torch.equal(kept(name), plain(name))
    want = plain("a.png")
    monkeypatch.setattr("retrievers.data.pictures.open_image", None)  # nothing is decoded again
    assert torch.equal(kept("a.png"), want)


def test_changes_other_models_and_damage_are_noticed(processors, tmp_path):
    paint(tmp_path / "a.png", 1)
    make = [ResizedPictures(tmp_path, p.image, tmp_path / "kept") for p in processors]
    first, other = (one("a.png") for one in make)
    assert first.shape != other.shape
    for file in (tmp_path / "kept").rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:90])
    assert torch.equal(make[0]("a.png"), first)
    paint(tmp_path / "a.png", 2)
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert not torch.equal(make[0]("a.png"), first)


def test_what_cannot_be_kept_is_told(processors, tmp_path):
    with pytest.raises(DataError, match=r"data\.loader\.resized needs"):
        ImageLoader(tmp_path, Processor(lambda _: None, lambda _: None), resized=tmp_path / "kept")
    loader = ImageLoader(tmp_path, processors[1], resized=tmp_path / "kept")
    with pytest.raises(ImageError):
        loader("none.png")
    with pytest.raises(ImageError) as caught:
        loader("../other.png")
    assert caught.value.reason == "outside-root"
    paint(tmp_path / "a.png", 1)
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(StoreWriteError, match="cannot be written"):
        loader("a.png")
