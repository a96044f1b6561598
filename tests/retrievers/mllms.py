"""Untrained models of three families, and items of every kind for them."""

import torch
from PIL import Image

from retrievers.data.examples import Example
from retrievers.models.mllm.encoder import Mllm
from retrievers.models.mllm.layout import Layout

TEXTS = ["describe the picture", "a flag of three bands", "which country has this flag?"]
FAMILIES = ("qwen3", "qwen2_5", "qwen2")


def make(folder, **settings):
    torch.manual_seed(0)
    settings = {"layout": Layout(pooling="before", mark="<|emb|>"), **settings}
    return Mllm(str(folder), **settings).eval()


def picture(collator, width, height, seed=0):
    torch.manual_seed(seed)
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8).numpy()
    return collator.image(Image.fromarray(pixels))


def mixed(collator, **more):
    """One picture; none; three of different sizes; a picture alone."""
    shown = [picture(collator, *size, seed) for seed, size in enumerate([(96, 64), (64, 64)])]
    three = (picture(collator, 128, 64, 5), shown[0], picture(collator, 40, 90, 6))
    return [
        Example(0, "red and white", shown[0], id="1:1", **more),
        Example(1, "which country has this flag? " * 3, None, id="1:2", **more),
        Example(2, "three of them", three, id="1:3", **more),
        Example(3, None, shown[1], id="1:4", **more),
    ]


@torch.inference_mode()
def vectors(encoder, examples, side="query"):
    return encoder.encode(encoder.collator()(examples, side), side).vectors
