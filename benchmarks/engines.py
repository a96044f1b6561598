"""Speed of the engines, side by side in one run on the packaged small VLM.

``python -m benchmarks.engines`` (CPU, a few minutes) writes ``benchmarks/results/engines.md``:

- one by one: ``generate`` on one picture after the other, the usual script;
- bare engine: the model on perfect batches, encoded before the clock starts;
- ours: the engine of ``augment.engines.hf``, from paths to replies, decoding included;
- the feed alone: decode, resize and encode, per core, in threads and in processes, and whether
  Pillow lets other threads run meanwhile.

Variants alternate, so that a drift of the machine meets them all; the table holds medians and the
ratios of medians. All variants must write the same texts, or the run fails.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from augment.engines.encoding import encode, resized
from augment.engines.hf import HFEngine
from augment.engines.pictures import Budget, data_uri, fit
from augment.flagland import atlas
from augment.flagland.render import draw_photo
from augment.images import open_image
from augment.prompts import load_prompt
from augment.records import Item, Request, Sampling

BATCH = 32

#: Size of a photograph of the feed, in pixels; about 0.8 megapixels are left after resizing.
PHOTO = (1600, 1200)


def world(root: Path, count: int) -> list[Request]:
    """Photo-like pictures of flags under ``root``, and the requests to describe them."""
    prompt = load_prompt("rar_corpus")
    requests = []
    for number, country in enumerate(islice(atlas.countries(7), count)):
        width = (192, 256, 384)[number % 3]
        draw_photo(country.flag, width, random.Random(number)).save(root / f"{number}.jpg")
        requests.append(prompt.render(Item(f"1:{number}", None, f"{number}.jpg", "image")))
    return requests


def one_by_one(engine: HFEngine, root: Path, requests: Sequence[Request], s: Sampling) -> list[str]:
    """What most scripts do."""
    loaded = engine._load().model
    texts = []
    for request in requests:
        image = resized(engine._processor, request, open_image(root, request.image or ""))
        inputs = encode(engine._processor, [request], [image])
        texts += _generate(loaded, engine._processor, inputs, s)
    return texts


def bare(engine: HFEngine, batches: Sequence[Any], s: Sampling) -> list[str]:
    """The model alone, on batches that lie ready."""
    loaded = engine._load().model
    return [text for inputs in batches for text in _generate(loaded, engine._processor, inputs, s)]


def _generate(model: Any, processor: Any, inputs: Any, sampling: Sampling) -> list[str]:
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=sampling.max_new_tokens, do_sample=False)
    rows = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(rows, skip_special_tokens=True)]


def ours(engine: HFEngine, requests: Sequence[Request], sampling: Sampling) -> list[str]:
    """The whole engine, from paths to replies."""
    return [reply.text for reply in engine.generate(requests, sampling)]


def perfect(engine: HFEngine, root: Path, requests: Sequence[Request]) -> list[Any]:
    """Batches sorted by size, encoded."""
    images = [resized(engine._processor, r, open_image(root, r.image or "")) for r in requests]
    order = sorted(range(len(requests)), key=lambda n: -images[n].width * images[n].height)
    return [
        encode(engine._processor, [requests[n] for n in part], [images[n] for n in part])
        for part in (order[start : start + BATCH] for start in range(0, len(order), BATCH))
    ]


def timed(work: Callable[[], list[str]]) -> tuple[float, list[str]]:
    """Seconds and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def prepare(encoding: Any, root: Path, name: str) -> int:
    """One picture as the remote engine prepares it; the characters to send."""
    return len(data_uri(fit(open_image(root, name), Budget()), encoding))


def feed(root: Path, count: int) -> list[str]:
    """Rows of pictures a second."""
    dice = random.Random(0)
    small = dice.randbytes(40 * 30 * 3)
    from PIL import Image

    Image.frombytes("RGB", (40, 30), small).resize(PHOTO).save(root / "photo.jpg", quality=90)
    names = ["photo.jpg"] * count
    cores = len(os.sched_getaffinity(0))
    rows = []
    for encoding in ("png", "jpeg"):
        work = partial(prepare, encoding, root)
        alone, _ = timed(lambda work=work: [str(work(name)) for name in names])  # type: ignore[misc]
        rows.append(f"| {encoding}, one thread | {count / alone:.1f} |")
        pools: list[tuple[str, Executor]] = [
            ("threads", ThreadPoolExecutor(cores)),
            ("processes", ProcessPoolExecutor(cores)),
        ]
        for kind, pool in pools:
            with pool:
                list(pool.map(work, names[:cores]))  # start-up is not counted
                start = time.perf_counter()
                list(pool.map(work, names))
                rate = count / (time.perf_counter() - start)
            rows.append(f"| {encoding}, {cores} {kind} | {rate:.1f} |")
    rows.append(f"| longest wait of another thread meanwhile | {gap(root):.0f} ms |")
    return rows


def gap(root: Path) -> float:
    """Longest time, in milliseconds, that a thread was kept waiting by one that feeds."""
    worker = threading.Thread(target=lambda: [prepare("png", root, "photo.jpg") for _ in range(5)])
    worker.start()
    longest, last = 0.0, time.perf_counter()
    while worker.is_alive():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return 1e3 * longest


def report(count: int, rounds: int, feed_count: int) -> str:
    """Run everything; the report in Markdown."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        requests = world(root, count)
        sampling = Sampling(load_prompt("rar_corpus").max_new_tokens)
        engine = HFEngine("flagland-vlm", root=root, batch_size=BATCH, device="cpu")
        batches = perfect(engine, root, requests)
        variants: dict[str, Callable[[], list[str]]] = {
            "one by one": lambda: one_by_one(engine, root, requests, sampling),
            "bare engine, perfect batches": lambda: bare(engine, batches, sampling),
            "ours": lambda: ours(engine, requests, sampling),
        }
        ours(engine, requests[:BATCH], sampling)  # warm
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        texts: dict[str, list[str]] = {}
        for _ in range(rounds):
            for name, work in variants.items():
                spent, texts[name] = timed(work)
                seconds[name].append(spent)
        if len({tuple(sorted(written)) for written in texts.values()}) != 1:
            raise SystemExit("the variants wrote different texts; their speeds say nothing")
        rate = {name: count / statistics.median(spent) for name, spent in seconds.items()}
        rows = feed(root, feed_count)
    lines = [f"| {name} | {value:.1f} |" for name, value in rate.items()]
    singles, ideal = rate["ours"] / rate["one by one"], rate["ours"] / rate[list(variants)[1]]
    return "\n".join(
        [
            "# Engines: speed",
            "",
            f"`python -m benchmarks.engines --count {count} --rounds {rounds}`,"
            f" {time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()},"
            f" {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads of torch"
            f" {torch.__version__}, no GPU. flagland-vlm, fp32, batches of {BATCH}, {count}"
            f" photo-like pictures, median of {rounds} alternating rounds, equal texts.",
            "",
            "| | images/s |",
            "|---|--:|",
            *lines,
            "",
            f"Ours is {singles:.1f} times one by one (aim: 5), and {100 * ideal:.0f} % of the bare"
            " engine (aim: 95), whose decoding and encoding are not counted.",
            "",
            f"The feed alone, {PHOTO[0]} x {PHOTO[1]} JPEG to 0.8 megapixels:",
            "",
            "| | images/s |",
            "|---|--:|",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--feed", type=int, default=60, help="pictures of the feed")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/engines.md"))
    parsed = parser.parse_args()
    text = report(parsed.count, parsed.rounds, parsed.feed)
    parsed.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
