"""The packaged small retriever: what it finds in a world that it was not trained on."""

import itertools
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from augment.errors import MismatchError
from augment.files import read_json, write_json
from benchmarks.flagland import atlas
from benchmarks.flagland.render import draw_flat, draw_photo
from benchmarks.flagland.world import INSTRUCTIONS
from retrievers.data.examples import Example
from retrievers.models import mllm
from retrievers.models.load import OWN_WEIGHTS, SETTINGS, load
from retrievers.models.mllm.encoder import Mllm
from tests.retrievers.mllms import vectors

FOLDER = Path(mllm.__file__).parents[1] / "weights" / "flagland-mllm"


def test_the_packaged_retriever_finds_photos_of_a_flag_among_those_of_others():
    """A floor far below the card's figures: notices a broken model, not a point."""
    encoder = load("flagland-mllm")
    assert encoder.fingerprint({}) == "dfaaf41c6a5d58ea", "vectors made before are no longer taken"
    assert "candidates" not in Mllm().settings()["reasoning"], "nor those of a config's model"
    show = encoder.collator().image
    countries = list(itertools.islice(atlas.countries(31_339), 32))
    asked, photos = [], []
    for n, country in enumerate(countries):
        drawn = random.Random(country.index)
        flat, photo = draw_flat(country.flag, 192, drawn), draw_photo(country.flag, 256, drawn)
        asked.append(Example(n, INSTRUCTIONS[4][0], show(flat), id=f"1:{n}"))
        photos.append(Example(n, None, show(photo), id=f"2:{n}"))
    scores = vectors(encoder, asked) @ vectors(encoder, photos, "corpus").T
    found = (scores.argmax(1) == torch.arange(32)).float().mean()
    assert found > 0.6  # 0.81 when it was packaged; chance: 0.03


def test_weights_beside_another_tower_are_refused(tmp_path):
    state, told = load_file(FOLDER / OWN_WEIGHTS), read_json(FOLDER / SETTINGS)
    assert not any("visual" in name for name in state), "flagland-vlm brings the tower"
    save_file(state, tmp_path / OWN_WEIGHTS)
    write_json(tmp_path / SETTINGS, told)
    named, packaged = load(tmp_path).state_dict(), load("flagland-mllm").state_dict()
    assert all(torch.equal(named[name], value) for name, value in packaged.items())
    assert torch.equal(packaged["vlm.lm_head.weight"], packaged[
        "vlm.model.language_model.embed_tokens.weight"
    ])  # fmt: skip
    write_json(tmp_path / SETTINGS, {**told, "frozen": "0" * 16})
    with pytest.raises(MismatchError, match="leaves out what was frozen"):
        load(tmp_path)
