"""Speed of enrichment, side by side in one run on the packaged small VLM.

``python -m benchmarks.speed.engines`` (CPU; 15 minutes on two free cores at the default size, most of it
one by one) writes ``benchmarks/results/engines.md``:

- one by one: ``generate`` on one picture after the other, the usual script;
- bare engine: ``generate`` on perfect batches, encoded before the clock starts;
- ours, engine: the engine of ``augment.engines.transformers``, from paths to replies, decoding included;
- ours, enrich: all of ``augment.enrichment.enrich``, from items to texts in a store, with hashes, keys, checks
  and links;
- where the time of the last goes, in seconds of the thread that runs the model;
- the feed alone: decode, resize and encode, per core, in threads and in processes, and whether
  Pillow lets other threads run meanwhile.

Variants alternate, so that a drift of the machine meets them all; the table holds medians and the
ratios of medians. All variants must write the same texts, or the run fails.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from augment.data.images import open_image
from augment.engines import decoding
from augment.engines.inputs import encode, resized
from augment.engines.models import PACKAGED
from augment.engines.pictures import Budget, data_uri, fit
from augment.engines.transformers import HFEngine
from augment.enrichment import enrich as enriching
from augment.enrichment.jobs import Job
from augment.enrichment.pipeline import Options, Plan, carry_out
from augment.prompts import load_prompt
from augment.records import Item, Request, Sampling
from augment.store import Store
from benchmarks.flagland import atlas
from benchmarks.flagland.render import draw_photo
from benchmarks.speed.machine import machine

#: Of all variants but the first. On a CPU more than 64 gains nothing (see the table's ratios).
BATCH = 64

#: Size of a photograph of the feed, in pixels; about 0.8 megapixels are left after resizing.
PHOTO = (1600, 1200)


def world(root: Path, count: int) -> list[Item]:
    """Photo-like pictures of flags under ``root``, of three sizes."""
    items = []
    for number, country in enumerate(islice(atlas.countries(7), count)):
        width = (192, 256, 384)[number % 3]
        draw_photo(country.flag, width, random.Random(number)).save(root / f"{number}.jpg")
        items.append(Item(f"1:{number}", None, (f"{number}.jpg",), "image"))
    return items


def plain() -> Any:
    """The model as transformers loads it; ours is changed by our engine."""
    return AutoModelForImageTextToText.from_pretrained(PACKAGED["flagland-vlm"], dtype="float32")


def one_by_one(
    engine: HFEngine, model: Any, root: Path, requests: Sequence[Request], s: Sampling
) -> list[str]:
    """What most scripts do."""
    texts = []
    for request in requests:
        image = resized(engine._processor, request, open_image(root, request.image or ""))
        inputs = encode(engine._processor, [request], [image])
        texts += _generate(model, engine._processor, inputs, s)
    return texts


def bare(engine: HFEngine, model: Any, batches: Sequence[Any], s: Sampling) -> list[str]:
    """The model alone, on batches that lie ready."""
    return [text for inputs in batches for text in _generate(model, engine._processor, inputs, s)]


def _generate(model: Any, processor: Any, inputs: Any, sampling: Sampling) -> list[str]:
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=sampling.max_new_tokens, do_sample=False)
    rows = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(rows, skip_special_tokens=True)]


def ours(engine: HFEngine, requests: Sequence[Request], sampling: Sampling) -> list[str]:
    """The whole engine, from paths to replies."""
    return [reply.text for reply in engine.generate(requests, sampling)]


def whole(engine: HFEngine, root: Path, items: Sequence[Item]) -> list[str]:
    """All of an enrichment, into a store of its own."""
    prompt = load_prompt("rar/corpus")
    with tempfile.TemporaryDirectory() as folder:
        options = Options(model="flagland-vlm", batch_size=BATCH)
        jobs = [Job(item, prompt, "picture") for item in items]
        plan = Plan("corpus", {"image": prompt}, jobs, len(jobs))
        summary = carry_out(plan, root, Path(folder), options, engine)
        if summary.generated + summary.duplicates != len(items):
            raise SystemExit(f"not all pictures got a text:\n{summary}")
        texts = Store(Path(folder)).texts("corpus")
        return [texts[item.id].raw or texts[item.id].text for item in items]


def profile(engine: HFEngine, root: Path, items: Sequence[Item]) -> list[str]:
    """Rows of seconds: what the thread that runs the model does in a whole enrichment."""
    spent: dict[str, float] = defaultdict(float)

    def timing(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed_work(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                spent[name] += time.perf_counter() - start

        return timed_work

    parts = (
        (decoding.Decoder, "__call__", "the model"),
        (engine, "_reply", "tokens to text"),
        (enriching._Run, "_settle", "checking and saving replies"),
        (enriching._Run, "_admit", "looking up what to ask"),
    )
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in parts]
    for owner, name, label in parts:
        setattr(owner, name, timing(label, getattr(owner, name)))
    waited = engine.waited
    try:
        total, _ = timed(lambda: whole(engine, root, items))
    finally:
        for owner, name, old in before:
            delattr(owner, name) if old is None else setattr(owner, name, old)
    spent["waiting for pictures"] = engine.waited - waited
    rows = [
        f"| {name} | {seconds:.2f} | {100 * seconds / total:.1f} % |"
        for name, seconds in sorted(spent.items(), key=lambda pair: -pair[1])
    ]
    rest = total - sum(spent.values())
    return [*rows, f"| anything else | {rest:.2f} | {100 * rest / total:.1f} % |"]


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
        items = world(root, count)
        prompt = load_prompt("rar/corpus")
        requests = [prompt.render(item) for item in items]
        sampling = Sampling(prompt.max_new_tokens)
        engine = HFEngine("flagland-vlm", root=root, batch_size=BATCH, device="cpu")
        batches = perfect(engine, root, requests)
        model = plain()
        variants: dict[str, Callable[[], list[str]]] = {
            "one by one": lambda: one_by_one(engine, model, root, requests, sampling),
            "bare engine, perfect batches": lambda: bare(engine, model, batches, sampling),
            "ours, engine": lambda: ours(engine, requests, sampling),
            "ours, enrich": lambda: whole(engine, root, items),
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
        parts = profile(engine, root, items)
        rows = feed(root, feed_count)
    lines = [f"| {name} | {value:.1f} |" for name, value in rate.items()]
    made = rate["ours, enrich"]
    singles, ideal = made / rate["one by one"], made / rate["bare engine, perfect batches"]
    return "\n".join(
        [
            "# Engines: speed",
            "",
            f"{torch.get_num_threads()} threads of torch, no GPU. flagland-vlm, fp32, batches of"
            f" {BATCH}, {count}"
            f" photo-like pictures, median of {rounds} alternating rounds, equal texts.",
            "",
            "| | images/s |",
            "|---|--:|",
            *lines,
            "",
            f"Ours, to the store, is {singles:.1f} times one by one (aim: 5), {100 * ideal:.0f} %"
            " of the bare engine (aim: 95), whose decoding and encoding are not counted.",
            "",
            "Where the time of an enrichment goes, in the thread that runs the model:",
            "",
            "| | seconds | share |",
            "|---|--:|--:|",
            *parts,
            "",
            f"The feed alone, {PHOTO[0]} x {PHOTO[1]} JPEG to 0.8 megapixels:",
            "",
            "| | images/s |",
            "|---|--:|",
            *rows,
            "",
            machine("engines", 7, f"transformers {version('transformers')}"),
            "",
        ]
    )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--feed", type=int, default=60, help="pictures of the feed")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/engines.md"))
    parsed = parser.parse_args()
    text = report(parsed.count, parsed.rounds, parsed.feed)
    parsed.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
