"""Speed of enrichment, side by side in one run on the packaged small VLM.

``python -m benchmarks.speed engines`` (CPU; 15 minutes on two free cores at the default size, most
of it one by one):

- one by one: ``generate`` on one picture after the other, the usual script;
- bare engine: ``generate`` on perfect batches, encoded before the clock starts;
- ours, engine: from paths to replies, decoding included;
- ours, enrich: ``augment.corpus``, from items to texts in a store, with keys, checks and links;
- the feed alone: decode, resize and encode, in one thread, in threads and in processes.

All variants must write the same texts, or the run fails.

``python -m benchmarks.speed vllm --server_python ENV/bin/python`` is vLLM for real, on CPU: real
pictures through a real server that is killed in the middle. ``benchmarks/results/vllm_cpu.md`` says
how its environment is made.
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image

from augment import corpus
from augment.data import write_candidates
from augment.data.images import open_image
from augment.engines import load_engine
from augment.engines.base import PACKAGED
from augment.engines.inputs import PixelBudget, data_uri, encode, fit, resized
from augment.engines.transformers import HFEngine
from augment.engines.vllm import VLLMEngine
from augment.prompts import load_prompt
from augment.records import Item, Request, Sampling, one_picture
from augment.store import Store
from benchmarks.flagland import atlas
from benchmarks.flagland.render import draw_photo
from benchmarks.speed.harness import Page, Row, cost, rows_of, take_turns

#: Of all variants but the first. On a CPU more than 64 gains nothing (see the table's ratios).
BATCH = 64
#: Size of a photograph of the feed, in pixels; about 0.8 megapixels are left after resizing.
PHOTO = (1600, 1200)


def write_root(root: Path, count: int) -> Path:
    """Photo-like pictures of flags, of three sizes; the pool that names them."""
    folder = root / "mbeir_images" / "flags_images"
    folder.mkdir(parents=True)
    items = []
    for number, country in enumerate(islice(atlas.countries(7), count)):
        width = (192, 256, 384)[number % 3]
        path = folder / f"{number}.jpg"
        draw_photo(country.flag, width, random.Random(number)).save(path)
        items.append(
            Item(f"1:{number}", None, one_picture(path.relative_to(root).as_posix()), "image")
        )
    pool = root / "cand_pool" / "local" / "mbeir_flags_task4_cand_pool.jsonl"
    write_candidates(pool, items)
    return pool


class Variants:
    """The four ways to describe the same pictures; each returns its texts."""

    def __init__(self, root: Path, count: int) -> None:
        from transformers import AutoModelForImageTextToText

        self.root, self.pool = root, write_root(root, count)
        prompt = load_prompt("rar/corpus")
        names = [f"mbeir_images/flags_images/{number}.jpg" for number in range(count)]
        self.requests = [
            prompt.render(Item(f"1:{number}", None, one_picture(name), "image"))
            for number, name in enumerate(names)
        ]
        self.sampling = Sampling(prompt.max_new_tokens)
        self.engine = HFEngine("flagland-vlm", root=root, batch_size=BATCH, device="cpu")
        self.processor = self.engine._processor
        # As transformers loads it; that of the engine is changed by it.
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            PACKAGED["flagland-vlm"], dtype="float32"
        )
        images = [self._picture(request) for request in self.requests]
        order = sorted(range(count), key=lambda n: -images[n].width * images[n].height)
        self.batches = [
            encode(self.processor, [self.requests[n] for n in part], [images[n] for n in part])
            for part in (order[start : start + BATCH] for start in range(0, count, BATCH))
        ]

    def _picture(self, request: Request) -> Image.Image:
        return resized(self.processor, open_image(self.root, request.image or ""))

    def _generate(self, inputs: Any) -> list[str]:
        tokens = self.sampling.max_new_tokens
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        rows = output[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(rows, skip_special_tokens=True)
        return sorted(text.strip() for text in texts)

    def one_by_one(self) -> list[str]:
        """What most scripts do."""
        singles = (encode(self.processor, [r], [self._picture(r)]) for r in self.requests)
        return sorted(text for inputs in singles for text in self._generate(inputs))

    def bare(self) -> list[str]:
        """The model alone, on batches that lie ready."""
        return sorted(text for inputs in self.batches for text in self._generate(inputs))

    def ours(self) -> list[str]:
        """The whole engine, from paths to replies."""
        return sorted(reply.text for reply in self.engine.generate(self.requests, self.sampling))

    def enriched(self) -> list[str]:
        """All of an enrichment, into a store of its own."""
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder)
            corpus.run(self.root, store, pool=[self.pool], engine=self.engine)
            texts = Store(store).texts("corpus").values()
            return sorted(text.raw or text.text for text in texts)


def prepare(encoding: Any, root: Path, name: str) -> int:
    """One picture as the remote engine prepares it; the characters to send."""
    return len(data_uri(fit(open_image(root, name), PixelBudget()), encoding))


def feed(root: Path, count: int) -> list[Row]:
    """Pictures a second that threads and processes prepare for a server."""
    small = random.Random(0).randbytes(40 * 30 * 3)
    Image.frombytes("RGB", (40, 30), small).resize(PHOTO).save(root / "photo.jpg", quality=90)
    names, cores = ["photo.jpg"] * count, len(os.sched_getaffinity(0))
    rows: list[Row] = []
    for encoding in ("png", "jpeg"):
        work = partial(prepare, encoding, root)
        pools: list[tuple[str, Executor]] = [
            ("one thread", ThreadPoolExecutor(1)),
            (f"{cores} threads", ThreadPoolExecutor(cores)),
            (f"{cores} processes", ProcessPoolExecutor(cores)),
        ]
        for kind, pool in pools:
            with pool:
                list(pool.map(work, names[:cores]))  # start-up is not counted
                start = time.perf_counter()
                list(pool.map(work, names))
                seconds = time.perf_counter() - start
            rows.append({"": f"{encoding}, {kind}", "images/s": count / seconds})
    return rows


def measure(count: int = 768, rounds: int = 3, feed_count: int = 60) -> Page:
    """Describe pictures in four ways, feed pictures in three.

    Args:
        count: pictures that are described.
        rounds: of which the median is shown.
        feed_count: pictures of the feed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        variants = Variants(root, count)
        list(variants.engine.generate(variants.requests[:BATCH], variants.sampling))  # warm
        ways: dict[str, Callable[[], list[str]]] = {
            "one by one": variants.one_by_one,
            "bare engine, perfect batches": variants.bare,
            "ours, engine": variants.ours,
            "ours, enrich": variants.enriched,
        }
        turns = take_turns(ways, rounds, warm=False)
        if any(own.result != turns["one by one"].result for own in turns.values()):
            raise SystemExit("the variants wrote different texts; their speeds say nothing")
        fed = feed(root, feed_count)
    made = turns["ours, enrich"].seconds
    singles, ideal = (turns[name].seconds / made for name in list(ways)[:2])
    return Page(
        "Engines: speed",
        f"No GPU. flagland-vlm, fp32, batches of {BATCH}, {count} photo-like pictures, median of "
        f"{rounds} alternating rounds, equal texts.",
        {
            "": rows_of(turns, count, "images"),
            f"Ours, to the store, is {singles:.1f} times one by one (aim: 5), {ideal:.0%} of the "
            "bare engine (aim: 95), whose decoding and encoding are not counted.\n\n"
            f"The feed alone, {PHOTO[0]} x {PHOTO[1]} JPEG to 0.8 megapixels:": fed,
        },
        settings=[f"{torch.get_num_threads()} threads of torch"],
    )


# -- vLLM ---------------------------------------------------------------------------------------

POOL = "cand_pool/local/mbeir_flags_task0_cand_pool.jsonl"
SERVER_ARGS = "--dtype float32 --enforce-eager --max-model-len 2048"


def kill_in_the_middle(engine: VLLMEngine, store: Path, after: int, killed: list[str]) -> None:
    """Kill the server's processes once the store has some texts."""
    while sum(path.read_bytes().count(b"\n") for path in store.glob("wal/*")) < 2 * after:
        time.sleep(0.05)
    if engine.leash is None:
        raise RuntimeError("texts without a server")
    for process in psutil.Process(engine.leash.pid).children(recursive=True):
        killed.append(f"{process.name()} ({process.pid})")
        process.kill()


def _texts(store: Path) -> dict[str, str]:
    return {item: text.text for item, text in Store(store).texts("corpus").items()}


def measure_vllm(
    server_python: str, root: Path = Path("../shared/data/mbeir_real"), after: int = 60
) -> Page:
    """Describe real flags through a server that is killed once; see the head of this file.

    Args:
        server_python: interpreter of vLLM's environment.
        root: with the real flags.
        after: texts in the store when the server is killed.
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    engine: Any = load_engine(
        "vllm:flagland-vlm", root=root, server_python=server_python, server_args=SERVER_ARGS
    )
    killed: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        one, two = Path(temporary) / "vllm", Path(temporary) / "transformers"
        described = partial(corpus.run, root, pool=[root / POOL])
        threading.Thread(
            target=kill_in_the_middle, args=(engine, one, after, killed), daemon=True
        ).start()
        first = cost(lambda: described(one, engine=engine))
        log = engine.log.read_text(encoding="utf-8", errors="replace")
        again = cost(lambda: described(one, engine=engine))
        engine.close()
        local = load_engine("flagland-vlm", root=root, device="cpu")
        other = cost(lambda: described(two, engine=local))
        ours, theirs = _texts(one), _texts(two)
    rows = {
        f"first run, server killed with SIGKILL after about {after} texts": (
            f"{first.seconds:.0f} s, with all starts"
        ),
        "processes killed": ", ".join(killed),
        "complete starts of the server, by its log": log.count("Application startup complete"),
        "exit code": first.result.exit_code,
        "same command again": f"{again.seconds:.1f} s: {again.result.generated} generated, "
        f"{again.result.cached} cached",
        "transformers on the same pictures": f"{other.seconds:.0f} s, exit code "
        f"{other.result.exit_code}",
        "equal texts": f"{sum(ours[item] == theirs.get(item) for item in ours)} of {len(ours)}",
    }
    return Page(
        "vLLM's CPU build, killed in the middle",
        f"No GPU. Pictures: `{POOL}`.",
        {"": [{"": name, "found": value} for name, value in rows.items()]},
        notes=[f"```\n{first.result}\n```"],
    )
