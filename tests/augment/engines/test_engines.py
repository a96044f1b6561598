"""Engines: the protocol, the scripted one, and the real one on a tiny random checkpoint."""

import json
import logging
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from augment.data.images import content_hash
from augment.engines import Ask, Pause, batching, load_engine
from augment.engines.batching import Window
from augment.engines.scripted import ScriptedEngine
from augment.errors import EngineError
from augment.prompts import load_prompt
from augment.records import Item, Request, Sampling, one_picture
from tests import tiny_vlms

hf = pytest.importorskip("augment.engines.transformers")
decoding = pytest.importorskip("augment.engines.decoding")

SIZES = [
    (96, 96),
    (64, 128),
    (200, 120),
    (97, 61),
    (300, 300),
    (40, 40),
    (128, 64),
    (96, 96),
    (5, 9),
]
TEXTS = ["describe the picture", "a flag of three bands " * 5, "", "which country has this flag?"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tiny_vlms.pictures(tmp_path_factory.mktemp("pictures"), SIZES)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_vlms.qwen3(tmp_path_factory.mktemp("models") / "tiny-vlm", TEXTS)


def requests(pictures):
    prompt = load_prompt("rar/corpus")
    items = [Item(f"1:{n}", TEXTS[n % 4], (f"{n}.png",), "image") for n in range(len(SIZES))]
    shown = [prompt.render(item) for item in items]
    return [*shown, Request("1:99", "You refine search queries.", "no picture here")]


def test_scripted_answers_follow_the_picture_and_the_text(pictures):
    engine = load_engine("scripted:", root=pictures)
    first, second, third = engine.generate(
        [
            Request("a", "s", "t", ("0.png",)),
            Request("b", "s", "t", ("1.png",)),
            Request("c", "s", "t"),
        ],
        Sampling(),
    )
    again = next(engine.generate([Request("z", "s", "t", ("0.png",))], Sampling()))
    assert first.text == again.text
    assert len({first.text, second.text, third.text}) == 3
    assert "96 by 96" in first.text


def test_scripted_takes_a_callable_a_list_and_a_file(tmp_path):
    ask = [Request("a", "s", "one"), Request("b", "s", "two"), Request("c", "s", "three")]

    def texts(engine):
        return [reply.text for reply in engine.generate(ask, Sampling())]

    assert texts(ScriptedEngine(lambda request: request.text.upper())) == ["ONE", "TWO", "THREE"]
    assert texts(ScriptedEngine(["x", "y"])) == ["x", "y", "x"]
    (tmp_path / "answers.json").write_text(json.dumps({"a": "A", "c": "C"}))
    engine = load_engine(f"scripted:{tmp_path}/answers.json", root=tmp_path, batch_size=2)
    assert [r.finish for r in engine.generate(ask, Sampling())] == ["stop", "error", "stop"]


def test_scripted_fails_and_dies_on_demand(tmp_path):
    ask = [Request(str(n), "s", "t") for n in range(6)]
    engine = load_engine("scripted:?fail_every=3", root=tmp_path, batch_size=4)
    finishes = [reply.finish for reply in engine.generate(ask, Sampling())]
    assert finishes == ["stop", "stop", "error"] * 2
    engine = load_engine("scripted:?die_after=4", root=tmp_path, batch_size=2)
    replies = engine.generate(ask, Sampling())
    assert [next(replies).finish for _ in range(4)] == ["stop"] * 4
    with pytest.raises(EngineError, match="death after 4"):
        next(replies)


@pytest.mark.parametrize("spec", ["?speed=3", "/nowhere.json", "?delay=soon"])
def test_scripted_refuses_what_it_does_not_know(spec, tmp_path):
    with pytest.raises(EngineError, match="scripted:"):
        load_engine(f"scripted:{spec}", root=tmp_path)


def test_unknown_model_is_named_with_the_remedy(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError, match="save_pretrained"):
        load_engine(str(tmp_path / "empty"), root=tmp_path)


def test_batches_give_the_tokens_of_single_calls(tiny, pictures):
    ask = requests(pictures)
    sampling = Sampling(max_new_tokens=12)
    single = [
        next(load_engine(str(tiny), root=pictures, batch_size=1).generate([one], sampling))
        for one in ask
    ]
    engine = load_engine(str(tiny), root=pictures, batch_size=4, device="cpu")
    batched = list(engine.generate(ask, sampling))
    assert batched == single
    assert len({reply.text for reply in batched}) > len(batched) // 2, "the pictures are not seen"


@pytest.fixture(scope="module")
def tiny_25(tiny, tmp_path_factory):
    return tiny_vlms.qwen2_5(tmp_path_factory.mktemp("models") / "tiny-vlm-2.5", tiny)


def test_qwen_2_5_takes_the_same_path_with_its_own_patch(tiny_25, pictures):
    ask = requests(pictures)[:6]
    sampling = Sampling(max_new_tokens=8)
    engine = hf.HFEngine(str(tiny_25), root=pictures, batch_size=4, device="cpu")
    alone = hf.HFEngine(str(tiny_25), root=pictures, batch_size=1, device="cpu")
    batched = list(engine.generate(ask, sampling))
    assert batched == [next(alone.generate([one], sampling)) for one in ask]
    assert {reply.finish for reply in batched} <= {"stop", "length"}
    assert len({reply.text for reply in batched}) > 3
    # 300 by 300 within 120*120 pixels: 8 by 8 patches of 14.
    opened = engine._open(0, Ask(ask[4], sampling))
    assert opened.image.size == (112, 112)
    assert engine._encode([opened])["image_grid_thw"].tolist() == [[1, 8, 8]]


class Sized(NamedTuple):
    position: int
    cost: int
    sampling: Sampling = Sampling(20)


def test_batches_are_of_similar_size_and_within_the_token_budget():
    dice = random.Random(3)
    window = Window(4, tokens=400)
    for n in range(60):
        window.add(Sized(n, dice.choice([30, 60, 90, 500]), Sampling(20 + n % 2)))
    batches = []
    while window:
        oldest = min(window._ages)
        batches.append(window.take())
        assert oldest in {one.position for one in batches[-1]}, "none waits for ever"
    assert sorted(one.position for batch in batches for one in batch) == list(range(60))
    for batch in batches:
        assert len({one.sampling for one in batch}) == 1
        longest = max(one.cost for one in batch)
        assert len(batch) * (longest + batch[0].sampling.max_new_tokens) <= 400 or len(batch) == 1
        assert batch[0].cost == longest
    # Three sizes that fit and two samplings: all but their last batches hold one size only.
    mixed = sum(len({one.cost for one in batch}) > 1 for batch in batches)
    assert mixed <= 6


def test_the_model_never_waits_for_the_end_of_a_window_and_reads_no_further_than_it_needs(
    tiny, pictures
):
    engine = load_engine(str(tiny), root=pictures, batch_size=2, device="cpu")
    ask, read, sizes, replies = requests(pictures), 0, [], {}

    def stream():
        nonlocal read
        for n in range(50):
            read += 1
            if n % 5 == 0:
                yield Pause.BRIEF
            yield Ask(ask[n % len(ask)], Sampling(2))

    for batch in engine.batches(stream()):
        assert not replies.keys() & dict(batch).keys()
        replies.update(batch)
        sizes.append(len(batch))
        ahead = batching.WINDOW_BATCHES + batching.AHEAD_BATCHES + 1
        assert read <= len(replies) + 2 * ahead
    assert sorted(replies) == list(range(50))
    assert [size for size in sizes if size] == [2] * 25, "no batch but the last is short"
    assert [replies[n] for n in range(10)] == [replies[n] for n in range(10, 20)]


def test_a_flush_answers_what_is_there_before_more_comes(tiny, pictures):
    engine = load_engine(str(tiny), root=pictures, batch_size=4, device="cpu")
    replies = {}

    def stream():
        for one in requests(pictures)[:3]:
            yield Ask(one, Sampling(2))
            while len(replies) < 1 + int(one.item_id.partition(":")[2]):
                yield Pause.FLUSH

    for batch in engine.batches(stream()):
        replies.update(batch)
    assert sorted(replies) == [0, 1, 2]


def test_the_picture_reaches_the_model_as_the_processor_alone_would_size_it(tiny, pictures):
    """The grid after our resize equals that of the processor's own smart resize.

    The last picture is smaller than a patch, where the two libraries round differently.
    """
    engine = hf.HFEngine(str(tiny), root=pictures, device="cpu")
    processor = engine._processor
    for one in requests(pictures)[:-2]:
        raw = Image.open(pictures / one.image).convert("RGB")
        own = processor.image_processor(images=[raw], return_tensors="pt")["image_grid_thw"]
        ours = hf.encode(processor, [one], [hf.resized(processor, raw)])["image_grid_thw"]
        assert own.tolist() == ours.tolist()


def test_a_gpu_takes_batches_whose_keys_and_values_fill_a_share_of_its_free_memory(
    tiny, pictures, monkeypatch
):
    engine = hf.HFEngine(str(tiny), root=pictures, device="cpu")
    model = engine._load().model
    read = torch.ones(1, 7, dtype=torch.long)
    cache = model(read, use_cache=True).past_key_values
    kept = sum(one.numel() for layer in cache.layers for one in (layer.keys, layer.values))
    assert engine._load().tokens == hf.BATCH_TOKENS
    free = 10**9 * kept
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    engine._device = torch.device("cuda")
    most = engine._most_tokens(model.config)
    assert 2 * most * kept / 7 == pytest.approx(hf._CACHE_SHARE * free, rel=1e-6)


def test_pixel_limits_take_effect_and_are_part_of_the_settings(tiny, pictures):
    ask = [requests(pictures)[4]]
    sampling = Sampling(max_new_tokens=1)
    plain = load_engine(str(tiny), root=pictures, device="cpu")
    small = load_engine(str(tiny), root=pictures, device="cpu", max_pixels=64 * 64)
    tokens = [next(e.generate(ask, sampling)).prompt_tokens for e in (plain, small)]
    # 300 by 300 within 128*128 pixels: 4 by 4 merged patches of 32; within 64*64: 2 by 2.
    assert tokens[0] - tokens[1] == 16 - 4
    assert plain.settings == {}
    assert small.settings == {"min_pixels": 32 * 32, "max_pixels": 64 * 64}
    with pytest.raises(EngineError, match="above max_pixels"):
        load_engine(str(tiny), root=pictures, min_pixels=9000, max_pixels=8000)


def test_a_bad_picture_fails_alone(tiny, pictures, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes((pictures / f"{number}.png").read_bytes())
    (tmp_path / "corrupt.png").write_bytes((pictures / "0.png").read_bytes()[:60])
    Image.new("RGB", (2, 900)).save(tmp_path / "thin.png")
    names = ["0.png", "corrupt.png", "1.png", "absent.png", "thin.png", "2.png"]
    ask = [Request(str(n), "s", "describe", one_picture(name)) for n, name in enumerate(names)]
    ask.append(replace(ask[0], expected=content_hash(tmp_path, "1.png")))
    engine = load_engine(str(tiny), root=tmp_path, batch_size=8, device="cpu")
    replies = list(engine.generate(ask, Sampling(max_new_tokens=2)))
    assert [r.finish == "error" for r in replies] == [False, True, False, True, True, False, True]
    assert replies[6].reason.startswith("changed:")
    assert replies[1].reason.startswith("corrupt:")
    assert replies[3].reason.startswith("missing:")
    assert "thin.png" in replies[4].reason


def test_a_failing_batch_is_halved_down_to_the_item_at_fault(tiny, pictures, caplog):
    """A model that runs out of memory on one request fails this one alone."""
    ask = [Request(str(n), "s", f"request {n}") for n in range(6)]
    engine = hf.HFEngine(str(tiny), root=pictures, batch_size=8, device="cpu")
    loaded = engine._load()
    poison = engine._processor(text=["request 4"])["input_ids"][0][-1]

    def failing(inputs, sampling):
        if (inputs["input_ids"] == poison).any():
            raise RuntimeError("out of memory (pretended)")
        return loaded.decode(inputs, sampling)

    engine._loaded = replace(loaded, decode=failing)
    with caplog.at_level(logging.INFO, "augment.engines.transformers"):
        replies = list(engine.generate(ask, Sampling(max_new_tokens=2)))
    assert [reply.finish == "error" for reply in replies] == [n == 4 for n in range(6)]
    assert "out of memory (pretended)" in replies[4].reason
    assert "halving" in caplog.text


def test_finish_tells_a_cut_text_from_a_complete_one(tiny, pictures):
    engine = hf.HFEngine(str(tiny), root=pictures, device="cpu")
    ask = [requests(pictures)[0]]
    cut = next(engine.generate(ask, Sampling(max_new_tokens=3)))
    assert (cut.finish, cut.output_tokens) == ("length", 3)
    # Declare the first token it writes to be its end token: then it stops there.
    loaded = engine._load()
    inputs = engine._encode([engine._open(0, Ask(ask[0], Sampling()))])
    first = loaded.model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1].item()
    stops = (first,)
    decode = decoding.decode_with(loaded.model, stops, pad=0)
    engine._loaded = replace(loaded, stops=stops, decode=decode)
    stopped = next(engine.generate(ask, Sampling(max_new_tokens=3)))
    assert (stopped.finish, stopped.output_tokens, stopped.text) == ("stop", 1, "")


def test_sampling_is_reproducible_and_leaves_the_global_generator_alone(tiny, pictures):
    import torch

    engine = hf.HFEngine(str(tiny), root=pictures, device="cpu")
    ask = requests(pictures)[:3]
    before = torch.random.get_rng_state()
    warm = Sampling(max_new_tokens=8, temperature=1.5, seed=3)
    first, second = (list(engine.generate(ask, warm)) for _ in range(2))
    assert first == second
    assert first != list(engine.generate(ask, Sampling(8, temperature=1.5, seed=4)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_revision_follows_the_content_of_the_folder_not_its_place(tiny, pictures, tmp_path):
    copy = tmp_path / "elsewhere" / "tiny-vlm"
    shutil.copytree(tiny, copy)
    one, two = (load_engine(str(path), root=pictures) for path in (tiny, copy))
    assert (one.model, one.revision) == (two.model, two.revision)
    (copy / "README.md").write_text("a card")
    assert hf.fingerprint(copy) == one.revision
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert hf.fingerprint(copy) != one.revision


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",  # what the sandbox forbids
        "{{ raise_exception('System role not supported') }}",
        "{% for n in range(10**12) %}{% endfor %}",
        "{{ messages[9].content }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_chat_template_that_fails_is_told_in_one_line(tiny, pictures, tmp_path, template):
    copy = tmp_path / "model"
    shutil.copytree(tiny, copy)
    (copy / "chat_template.jinja").write_text(template)
    engine = load_engine(str(copy), root=pictures, device="cpu")
    with pytest.raises(EngineError, match="chat template does not render") as caught:
        list(engine.generate(requests(pictures)[:1], Sampling(2)))
    assert "\n" not in str(caught.value)


def test_marks_of_reasoning_stay_though_they_are_control_tokens(tiny, pictures, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(tiny, copy)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    marks = ["[THINK]", "[/THINK]", "\u25c1/think\u25b7", "<|channel|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [*marks, "<|other|>"]})
    tokenizer.save_pretrained(copy)
    engine = hf.HFEngine(str(copy), root=pictures, device="cpu")
    text = "[THINK]a flag[/THINK]<|other|>red"
    row = engine._decoder.encode(text, add_special_tokens=False)
    assert engine._reply(SimpleNamespace(stops=()), row, 1).text == text.replace("<|other|>", "")
    text = "<|channel|>analysis"
    row = engine._decoder.encode(text, add_special_tokens=False)
    assert engine._reply(SimpleNamespace(stops=()), row, 1).text == text


def test_messages_have_the_text_before_the_picture():
    image = Image.new("RGB", (4, 4))
    system, user = hf.to_messages(Request("a", "sys", "ask", ("x.png",)), image)
    assert system == {"role": "system", "content": [{"type": "text", "text": "sys"}]}
    assert user["content"] == [{"type": "text", "text": "ask"}, {"type": "image", "image": image}]


def test_core_imports_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, augment.corpus, augment.queries, augment.views, augment.enrichment.export\n"
        "heavy = {'torch', 'transformers', 'open_clip', 'lightning'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
