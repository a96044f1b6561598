"""Training pictures for the small VLM: rendered once, resized as the image processor will.

``python -m benchmarks.flagland.vlm_pictures --out FOLDER --flags 48000 --shard 0/2`` writes one ``.npy`` of
pixels per picture size and shard, with the scene graphs beside it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from benchmarks.flagland.edits import families
from benchmarks.flagland.grammar import Flag
from benchmarks.flagland.render import draw_flat, draw_photo, jpeg_round_trip

#: Image tokens that the small VLM's image processor brings every picture to, least and most.
TOKENS = (40, 56)
#: Side of one image token: patches of 16 pixels, merged two by two.
TOKEN_SIDE = 32
#: Native widths of training pictures.
WIDTHS = (96, 96, 112, 128, 128, 144, 160, 192, 192, 224, 256, 320, 384)
#: The same for photo-like ones, which the worlds draw no smaller.
PHOTO_WIDTHS = (160, 192, 192, 224, 256, 256, 320, 384, 512)


def _small_charges(flag: Flag) -> bool:
    return any(charge.count > 1 or charge.size == "small" for charge in flag.charges)


def training_flags(seed: int, charged: float = 0.0, small: float = 0.0) -> Iterator[Flag]:
    """The endless stream of training flags; scoring leaves their fact sets out.

    Args:
        seed: of the stream.
        charged: share of the flags without charges that is left out. Charges are what a small
            model confuses longest.
        small: share of the flags without small charges that is left out. Their shape in photos is
            the last thing it learns.
    """
    rng = random.Random(f"flagland-vlm-train-{seed}")
    stream = (flag for flag in families(rng) if flag.charges or rng.random() >= charged)
    if not small:
        return stream
    return (flag for flag in stream if _small_charges(flag) or rng.random() >= small)


def native(flag: Flag, rng: random.Random, photo: bool) -> Image.Image:
    """One picture as it would lie on disk: random width, JPEG of random quality."""
    if photo:
        return draw_photo(flag, rng.choice(PHOTO_WIDTHS), rng)
    width = rng.choice(WIDTHS)
    return jpeg_round_trip(draw_flat(flag, width, rng), rng.randint(75, 95))


def snapped(image: Image.Image, tokens: Sequence[int] = TOKENS) -> NDArray[np.uint8]:
    """Resized as Qwen's image processor does (bicubic, sides multiples of 32): [h, w, 3]."""
    least, most = (count * TOKEN_SIDE**2 for count in tokens)
    height, width = smart_resize(image.height, image.width, TOKEN_SIDE, least, most)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def main() -> None:
    """Render one shard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--flags", type=int, default=48_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--charged", type=float, default=0.0, help="share of plain flags left out")
    parser.add_argument("--small", type=float, default=0.0, help="without small charges: left out")
    parser.add_argument("--flat", type=float, default=1.0, help="share of flags drawn flat as well")
    parser.add_argument("--tokens", type=int, nargs=2, default=TOKENS, help="least and most")
    parser.add_argument("--shard", default="0/1")
    args = parser.parse_args()
    shard, shards = (int(part) for part in args.shard.split("/"))
    buckets: dict[tuple[int, ...], list[Any]] = defaultdict(list)
    graphs: dict[tuple[int, ...], list[Any]] = defaultdict(list)
    stream = training_flags(args.seed, args.charged, args.small)
    for i in range(args.flags):
        flag = next(stream)
        if i % shards != shard:
            continue
        for photo in (False, True):
            if not photo and random.Random(f"flat-{args.seed}-{i}").random() >= args.flat:
                continue
            rng = random.Random(f"{args.seed}-{i}-{photo}")
            pixels = snapped(native(flag, rng, photo), args.tokens)
            buckets[pixels.shape].append(pixels)
            graphs[pixels.shape].append({"flag": flag.to_dict(), "photo": photo})
        if i % 2000 == shard:
            print(i, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    for (height, width, _), pictures in buckets.items():
        stem = args.out / f"{height}x{width}-{shard}of{shards}"
        np.save(f"{stem}.npy", np.stack(pictures))
        Path(f"{stem}.json").write_text(json.dumps(graphs[(height, width, 3)]), encoding="utf-8")


if __name__ == "__main__":
    main()
