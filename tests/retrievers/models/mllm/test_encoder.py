"""The encoder of multimodal language models: three families, untrained, against single rows."""

import hashlib
import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import transformers as tf
from PIL import Image
from qwen_vl_utils.vision_process import fetch_video

from augment.errors import DataError, MismatchError
from augment.records import Item
from augment.views import open_view
from retrievers.data.datasets import Reader
from retrievers.data.examples import Example
from retrievers.data.pictures import ImageLoader
from retrievers.data.plan import Content
from retrievers.data.texts import TextRecipe
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.load import build, load
from retrievers.models.mllm.encoder import Mllm
from retrievers.models.mllm.layout import LAYOUTS, VERSIONS, Layout, cut
from retrievers.vectors.embed import embed_contents, plain_settings
from retrievers.vectors.rows import item_keys
from tests import tiny_vlms
from tests.retrievers.mllms import FAMILIES, make, mixed, picture, vectors


@pytest.mark.parametrize("pooling", ["last", "before", "at", "after"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_mixed_batch_gives_the_vectors_of_single_items(folders, family, pooling):
    encoder = make(folders[family], layout=Layout(pooling=pooling, mark="<|emb|>"))
    examples = mixed(encoder.collator())
    batch = encoder.collator()(examples, "query")
    found = vectors(encoder, examples)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    singles = torch.cat([vectors(encoder, [one]) for one in examples])
    torch.testing.assert_close(found, singles, atol=1e-5, rtol=0)
    assert (singles[0] - singles[1]).norm() > 0.01, "items differ at all"
    with torch.inference_mode():
        halves = [encoder.encode(batch.rows(n, n + 2), "query").vectors for n in (0, 2)]
    torch.testing.assert_close(torch.cat(halves), found, atol=1e-5, rtol=0)
    parts = [batch.rows(row, row + 1) for row in range(4)]
    assert [len(part.grids) for part in parts] == [1, 0, 3, 1], "pictures, not rows with pictures"
    assert torch.equal(
        torch.cat([part.patches for part in parts if len(part.grids)]), batch.patches
    )
    if pooling == "at":
        assert (batch.tokens[:, -1] == encoder.mark).all()
    if pooling == "after":
        end = encoder.collator().processor.tokenizer.eos_token_id
        assert batch.tokens[:, -2:].tolist() == [[encoder.mark, end]] * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_three_rows_and_of_no_earlier_call(folders, family):
    encoder = make(folders[family])
    collator, stale = encoder.collator(), encoder.vlm.model
    examples = mixed(collator)
    places = encoder.positions(collator(examples[:1], "query"))[:, 0]
    assert not torch.equal(places[0], places[1])
    assert not torch.equal(places[1], places[2])
    alone = vectors(encoder, examples[1:2])
    inputs = collator(examples[2:3], "query")
    with torch.inference_mode():  # what another user of the model leaves behind
        encoder.vlm.generate(
            input_ids=inputs.tokens, attention_mask=inputs.mask, mm_token_type_ids=inputs.kinds,
            **inputs.pictures(), max_new_tokens=2, do_sample=False,
        )  # fmt: skip
    assert stale.rope_deltas is not None
    assert torch.equal(vectors(encoder, examples[1:2]), alone)
    stale.rope_deltas = None
    vectors(encoder, examples)
    assert stale.rope_deltas is None, "and leaves nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_is_that_after_the_final_norm(folders, family):
    encoder = make(folders[family])
    batch = encoder.collator()(mixed(encoder.collator())[:1], "query")
    with torch.inference_mode():
        output = encoder.vlm(
            input_ids=batch.tokens, attention_mask=batch.mask, mm_token_type_ids=batch.kinds,
            **batch.pictures())  # fmt: skip
        states = encoder.states(batch)
        torch.testing.assert_close(encoder.vlm.lm_head(states), output.logits, atol=1e-4, rtol=0)
        half = make(folders[family], dtype="bfloat16").encode(batch, "query").vectors
        assert (half * encoder.encode(batch, "query").vectors).sum() > 0.999


def test_text_is_cut_before_the_template_and_pictures_stay_whole(folders):
    encoder = make(folders["qwen3"], layout=Layout(max_text=7, max_pixels=64 * 64, min_pixels=1024))
    collator = encoder.collator()
    long = Example(0, "which country has this flag? " * 200 + "é" * 50, picture(collator, 400, 300))
    batch = collator([long], "query")
    shown = collator.processor.tokenizer.decode(batch.tokens[0])
    assert shown.endswith("<|im_start|>assistant\n")
    places = int((batch.tokens == collator.processor.image_token_id).sum())
    assert places == int(batch.grids.prod()) // 4 <= 4
    tokenizer = collator.processor.tokenizer
    for text in ("é" * 9, "a 旗 b 旗 c", "which country", "x"):
        for most in range(1, 12):
            kept = cut(tokenizer, text, most)
            assert text.startswith(kept)
            assert len(tokenizer(kept, add_special_tokens=False)["input_ids"]) <= most
    assert collator.processor.image_processor.size["longest_edge"] == 64 * 64


def test_the_packaged_model_is_loaded_by_its_name():
    encoder = load("flagland-vlm")
    assert isinstance(encoder, Mllm)
    assert encoder.mark == len(encoder.collator().processor.tokenizer) - 1


def test_a_text_cannot_speak_in_control_tokens(folders):
    encoder = make(folders["qwen3"])
    batch = encoder.collator()([Example(0, "a <|emb|><|im_end|><|image_pad|> b")], "query")
    assert encoder.mark not in batch.tokens
    assert encoder.collator().processor.image_token_id not in batch.tokens


def test_the_collator_travels_without_weights(folders):
    collator = make(folders["qwen3"]).collator()
    sent = pickle.dumps(collator)
    assert len(sent) < 300_000
    examples = mixed(collator)
    again = pickle.loads(sent)(examples, "query")  # noqa: S301 - ours
    for one, other in zip(again, collator(examples, "query"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5"])
def test_the_mark_takes_a_spare_row_or_one_more(folders, family, tmp_path):
    """Tied (Qwen3) and untied (Qwen2.5) heads; the matrix never shrinks."""
    plain = tf.AutoModelForImageTextToText.from_pretrained(folders[family])
    rows = plain.get_input_embeddings().num_embeddings
    encoder = make(folders[family])
    grown = encoder.vlm.get_input_embeddings().num_embeddings
    assert grown == max(rows, encoder.mark + 1)
    assert encoder.config.get_text_config().vocab_size == grown
    assert encoder.vlm.lm_head.weight.shape[0] == grown
    tied = encoder.vlm.lm_head.weight is encoder.vlm.get_input_embeddings().weight
    assert tied == (family == "qwen3")
    again = make(folders[family])
    assert torch.equal(again.vlm.lm_head.weight, encoder.vlm.lm_head.weight)
    encoder.vlm.save_pretrained(tmp_path)
    encoder.collator().processor.save_pretrained(tmp_path)
    roomy = Mllm(str(tmp_path), layout=encoder.layout)
    assert roomy.mark == encoder.mark, "found, not added once more"
    assert roomy.vlm.get_input_embeddings().num_embeddings == grown
    limits = roomy.collator().processor.image_processor.size
    assert limits == encoder.collator().processor.image_processor.size, "survive a save"


def test_the_fingerprint_holds_all_that_makes_a_vector(folders):
    base = Layout(pooling="before", mark="<|emb|>")
    told = [
        {}, {"layout": Layout(pooling="at", mark="<|emb|>")}, {"layout": Layout(mark="<|emb|>")},
        {"layout": Layout(pooling="after", mark="<|emb|>")},
        {"layout": Layout(pooling="before", mark="<|emb|>", query="Refine.")},
        {"layout": Layout(pooling="before", mark="<|emb|>", max_pixels=64 * 64)}, {"head": True},
    ]  # fmt: skip
    seen = [make(folders["qwen3"], **{"layout": base, **more}) for more in told]
    assert len({encoder.fingerprint({}) for encoder in seen}) == len(told)
    settings = seen[0].settings()
    assert len({encoder.settings()["prompt"] for encoder in seen}) == 3, (
        "the prompt, rendered, and an end"
    )
    again = build("Mllm", settings, "here")
    again.load_state_dict(seen[0].state_dict())
    assert again.fingerprint({}) == seen[0].fingerprint({})


KNOWN = json.loads((Path(__file__).parents[3] / "golden" / "layouts.json").read_text())


def test_layouts_have_versions_that_no_fingerprint_holds(folders):
    """A changed layout has to get a new version, and with it a new line in the file."""
    for name, layout in LAYOUTS.items():
        found = hashlib.sha256(json.dumps(asdict(layout)).encode()).hexdigest()[:12]
        assert found == KNOWN.get(f"{name}@{VERSIONS[name]}"), f"{name}: raise its version"
    named, own = (Mllm(str(folders["qwen2"]), **how) for how in (
        {"preset": "lamra"}, {"layout": LAYOUTS["lamra"]}))  # fmt: skip
    assert [one.settings()["prompt_version"] for one in (named, own)] == ["lamra@1", None]
    before = {key: value for key, value in named.settings().items() if key != "prompt_version"}
    old = build("Mllm", before, "a checkpoint of before", True)
    for one in (own, old):
        assert one.fingerprint({}) == named.fingerprint({})
        assert plain_settings(one) == plain_settings(named), "folders of vectors stay valid"


@pytest.mark.parametrize("name", [name for name in LAYOUTS if LAYOUTS[name].cross is None])
@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
def test_layouts_of_published_models_hold_on_untrained_ones(folders, family, name):
    encoder = Mllm(str(folders[family]), preset=name).eval()
    examples = mixed(encoder.collator())
    for side in ("query", "corpus"):
        found = vectors(encoder, examples, side)
        singles = torch.cat([vectors(encoder, [one], side) for one in examples])
        torch.testing.assert_close(found, singles, atol=1e-5, rtol=0)
    processor = encoder.collator().processor
    batch = encoder.collator()(examples, "query")
    first = processor.tokenizer.decode(batch.tokens[0][batch.mask[0] == 1])
    pads = "<|image_pad|>" * int(batch.grids[0].prod() // 4)
    user = f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>red and white"
    turn = "<|im_end|>\n<|im_start|>assistant\n"
    system = "<|im_start|>system\n{}<|im_end|>\n"
    expected = {
        "qwen3-vl-embedding": system.format("Represent the user's input.") + user + turn,
        "gme": system.format("You are a helpful assistant.") + user + turn + "<|endoftext|>",
        "vlm2vec-v2": f"{pads} red and white",
        "lamra": f"{user}\nSummarize above image and sentence in one word: {turn}",
    }
    assert first == expected.get(name, first)
    size, asked = processor.image_processor.size, LAYOUTS[name]
    if asked.max_pixels:
        assert size == {"shortest_edge": asked.min_pixels, "longest_edge": asked.max_pixels}


def test_items_with_several_pictures_are_read_whole(folders, tmp_path):
    tiny_vlms.pictures(tmp_path, [(64, 64), (96, 64)])
    item = Item("1:1", "two", ("0.png", "1.png"), "image,text")
    recipe = TextRecipe(open_view("query"), open_view("corpus"), "plain", None)
    collator = make(folders["qwen3"]).collator()
    example = Reader(recipe, ImageLoader(tmp_path, collator, 1), "error").candidate(item)
    batch = collator([example], "corpus")
    assert batch.shown.tolist() == [2]
    assert batch.grids.tolist() == [[1, 4, 4], [1, 4, 6]]
    one_each = replace(item, images=("0.png",))
    single = Reader(recipe, ImageLoader(tmp_path, collator), "error").candidate(one_each)
    assert torch.equal(single.image, example.image[0])
    keys = item_keys([Content("1:1", "two", it.images) for it in (item, one_each)], tmp_path)
    assert keys[0] != keys[1], "vectors are kept under all pictures"


def test_frames_of_a_video_are_pictures_in_their_order(folders, config, tmp_path):
    """From a list of files as qwen-vl-utils reads it, and as the pictures of an item."""
    encoder, names = make(folders["qwen3"]), tuple(f"{n}.png" for n in range(3))
    tiny_vlms.pictures(tmp_path, [(128, 64)] * 3)  # sides of 64 pixels are left as they are there
    files = [str(tmp_path / name) for name in names]
    limits = {"min_pixels": encoder.layout.min_pixels, "max_pixels": encoder.layout.max_pixels}
    video = fetch_video({"video": files, **limits}, image_patch_size=16).permute(0, 2, 3, 1)
    assert torch.equal(video[3], video[2]), "an even number there"
    frames = [Image.fromarray(frame.byte().numpy()) for frame in video[:3]]
    found = embed_contents(encoder, [("a jump", frames), ("a jump", frames[::-1])], "corpus")
    assert (found[0] - found[1]).norm() > 1e-3
    recipe = TextRecipe(open_view("query"), open_view("corpus"), "plain", None)
    reader = Reader(recipe, ImageLoader(tmp_path, encoder.collator()), "error")
    example = reader.candidate(Item("1:1", "a jump", names, "image,text"))
    torch.testing.assert_close(vectors(encoder, [example], "corpus"), found[:1], atol=1e-5, rtol=0)
    with pytest.raises(DataError, match="item 0: 3 pictures for a model of one"):
        embed_contents(ClipScoreFusion(config), [(None, frames)], "corpus")


BAD = [
    ({"preset": "gmee"}, "no layout 'gmee'; there are flagland"),
    ({"temperature": 0.0}, "temperature must be positive"),
    ({"layout": {"pooling": "mean"}}, "one of last, before, at, after"),
    ({"layout": {"pooling": "at"}}, "needs layout.mark"),
    ({"layout": {"pooling": "at", "mark": "<e>", "suffix": "x"}}, "layout.suffix"),
    ({"layout": {"min_pixels": 10_000, "max_pixels": 100}}, "min_pixels 10000 is above"),
    ({"layout": {"max_text": 0}}, "max_text must be positive"),
    ({"layout": {"ask": ("a", "b")}}, "three texts"),
    ({"layout": {"pooling": "at", "mark": "\u0120"}}, "is not one special token"),
    ({"template": "0123"}, "trained under the chat template 0123"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_settings_that_cannot_be_meant_are_refused(folders, settings, message):
    def attempt(layout=None, **more):
        Mllm(str(folders["qwen3"]), layout=layout and Layout(**layout), **more)

    with pytest.raises((DataError, MismatchError), match=message):
        attempt(**settings)


def test_other_models_and_pictures_that_cannot_be_shown_are_refused(folders, tmp_path):
    with pytest.raises(DataError, match="cannot be loaded"):
        Mllm(str(tmp_path))
    tf.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(DataError, match="is a bert; this encoder takes qwen2_vl"):
        Mllm(str(tmp_path))
    encoder = make(folders["qwen3"])
    with pytest.raises(DataError, match="cannot be shown"):
        encoder.collator().image(Image.new("RGB", (4000, 4)))
    collator = encoder.collator()
    collator.processor.chat_template = "no picture {{ messages[0].role }}"
    with pytest.raises(DataError, match="1:1: pictures and their places"):
        collator(mixed(collator)[:1], "query")
