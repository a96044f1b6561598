"""Speed of enrichment on the packaged small VLM, against ``generate`` on one picture after another.

On a CPU. Ours is ``augment.corpus``, from items to texts in a store, with keys, checks and links;
the peer is what most scripts do. Both must write the same texts, or the run fails. At full size a
quarter of an hour on two free cores, most of it the peer's.
"""

from __future__ import annotations

import random
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from augment import corpus
from augment.data import write_candidates
from augment.data.images import open_image
from augment.engines.base import PACKAGED
from augment.engines.inputs import encode, resized
from augment.engines.transformers import HFEngine
from augment.prompts import load_prompt
from augment.records import Item, Request, Sampling, one_picture
from augment.store import Store
from benchmarks.flagland import atlas
from benchmarks.flagland.render import draw_photo
from benchmarks.speed.harness import Page, rows_of, take_turns

#: On a CPU more than 64 gains nothing.
BATCH = 64
PROMPT = load_prompt("rar/corpus")


def write_root(root: Path, count: int) -> list[Item]:
    """Photo-like pictures of flags, of three sizes; the pool that names them."""
    folder = root / "mbeir_images" / "flags_images"
    folder.mkdir(parents=True)
    items = []
    for number, country in enumerate(islice(atlas.countries(7), count)):
        path = folder / f"{number}.jpg"
        width = (192, 256, 384)[number % 3]
        draw_photo(country.flag, width, random.Random(number)).save(path)
        name = path.relative_to(root).as_posix()
        items.append(Item(f"1:{number}", None, one_picture(name), "image"))
    write_candidates(root / "cand_pool" / "local" / "mbeir_flags_task4_cand_pool.jsonl", items)
    return items


@torch.inference_mode()
def one_by_one(root: Path, requests: list[Request], model: Any, processor: Any) -> list[str]:
    """``generate`` on one picture after the other."""
    texts = []
    for request in requests:
        shown = resized(processor, open_image(root, request.image or ""))
        inputs: Any = encode(processor, [request], [shown])
        said = model.generate(**inputs, max_new_tokens=PROMPT.max_new_tokens, do_sample=False)
        rows = said[:, inputs["input_ids"].shape[1] :]
        texts += processor.batch_decode(rows, skip_special_tokens=True)
    return sorted(text.strip() for text in texts)


def enriched(root: Path, engine: HFEngine) -> list[str]:
    """All of an enrichment, into a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        corpus.run(root, store, engine=engine)
        return sorted(text.raw or text.text for text in Store(store).texts("corpus").values())


def measure(count: int = 768, rounds: int = 3) -> Page:
    """Describe pictures in both ways.

    Args:
        count: pictures.
        rounds: of which the median is shown.
    """
    from transformers import AutoModelForImageTextToText

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        items = write_root(root, count)
        engine = HFEngine("flagland-vlm", root=root, batch_size=BATCH, device="cpu")
        requests = [PROMPT.render(item) for item in items]
        list(engine.generate(requests[:BATCH], Sampling(PROMPT.max_new_tokens)))  # warm
        # As transformers loads it; that of the engine is changed by it.
        model = AutoModelForImageTextToText.from_pretrained(
            PACKAGED["flagland-vlm"], dtype="float32"
        )
        ways = {
            "ours, to the store": lambda: enriched(root, engine),
            "one by one": lambda: one_by_one(root, requests, model, engine._processor),
        }
        turns = take_turns(ways, rounds, warm=False)
    texts = [own.result for own in turns.values()]
    if texts[0] != texts[1]:
        raise SystemExit("the two ways wrote different texts; their speeds say nothing")
    return Page(
        "Engines: speed",
        f"No GPU. flagland-vlm, fp32, batches of {BATCH}, {count} photo-like pictures, median of "
        f"{rounds} alternating rounds, equal texts.",
        {"": rows_of(turns, count, "images")},
    )
