"""Pictures of flags: flat drawings and photo-like views (perspective, waving, light, noise).

Both take a seeded ``random.Random``; the same flag, seed and size give the same pixels.
"""

from __future__ import annotations

import io
import math
import random
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.flagland.grammar import COLOURS, Charge, Flag, Place

#: Width to height, the ratios real flags use most.
RATIOS = (1.5, 1.5, 1.5, 5 / 3, 2.0)
_OVERSAMPLE = 2

Box = tuple[float, float, float, float]
Palette = dict[str, tuple[int, int, int]]


def _palette(rng: random.Random) -> Palette:
    """Each picture has its own shades, closer together than two colours of the palette are."""
    return {
        name: (
            min(255, max(0, r + rng.randint(-9, 9))),
            min(255, max(0, g + rng.randint(-9, 9))),
            min(255, max(0, b + rng.randint(-9, 9))),
        )
        for name, (r, g, b) in COLOURS.items()
    }


_WEIGHTS: dict[str, list[float]] = {
    "middle wide": [1, 2, 1],
    "middle narrow": [1, 0.4, 1],
    "first wide": [2, 1],
}


def _draw_bands(draw: ImageDraw.ImageDraw, flag: Flag, palette: Palette, w: int, h: int) -> None:
    weights = _WEIGHTS.get(flag.proportion, [1] * len(flag.colours))
    edges = list(accumulate((weight / sum(weights) for weight in weights), initial=0.0))
    for colour, a, b in zip(flag.colours, edges, edges[1:], strict=False):
        box = (0, a * h, w, b * h) if flag.layout == "horizontal" else (a * w, 0, b * w, h)
        draw.rectangle(box, fill=palette[colour])


def _draw_cross(draw: ImageDraw.ImageDraw, flag: Flag, palette: Palette, w: int, h: int) -> None:
    middle = w * (0.36 if flag.layout == "nordic" else 0.5)
    arms = [(0.11 * h, flag.colours[1])]
    if flag.edging is not None:
        arms = [(0.15 * h, flag.edging), (0.085 * h, flag.colours[1])]
    for half, colour in arms:
        if flag.layout == "saltire":
            width = round(2.1 * half)
            draw.line((0, 0, w, h), fill=palette[colour], width=width)
            draw.line((0, h, w, 0), fill=palette[colour], width=width)
        else:
            draw.rectangle((middle - half, 0, middle + half, h), fill=palette[colour])
            draw.rectangle((0, h / 2 - half, w, h / 2 + half), fill=palette[colour])


def _draw_field(draw: ImageDraw.ImageDraw, flag: Flag, palette: Palette, w: int, h: int) -> None:
    first, last = palette[flag.colours[0]], palette[flag.colours[-1]]
    draw.rectangle((0, 0, w, h), fill=first)
    if flag.layout in ("horizontal", "vertical"):
        _draw_bands(draw, flag, palette, w, h)
    elif flag.layout == "rising":
        draw.polygon([(0, h), (w, 0), (w, h)], fill=last)
    elif flag.layout == "falling":
        draw.polygon([(0, 0), (w, h), (0, h)], fill=last)
    elif flag.layout == "quarters":
        draw.rectangle((w / 2, 0, w, h / 2), fill=last)
        draw.rectangle((0, h / 2, w / 2, h), fill=last)
    elif flag.layout in ("cross", "nordic", "saltire"):
        _draw_cross(draw, flag, palette, w, h)


def _star(x: float, y: float, r: float, points: int, inner: float) -> list[tuple[float, float]]:
    corners = []
    for i in range(2 * points):
        radius = r if i % 2 == 0 else r * inner
        angle = math.pi * i / points - math.pi / 2
        corners.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return corners


def _draw_sun(
    draw: ImageDraw.ImageDraw, colour: tuple[int, int, int], x: float, y: float, r: float
) -> None:
    """Rays apart from the disc, so that even a sun of ten pixels is no disc."""
    draw.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=colour)
    for i in range(8):
        u, v = math.cos(math.pi * i / 4), math.sin(math.pi * i / 4)
        foot, tip, half = 0.62 * r, 1.25 * r, 0.17 * r
        left = (x + foot * u - half * v, y + foot * v + half * u)
        right = (x + foot * u + half * v, y + foot * v - half * u)
        draw.polygon([left, right, (x + tip * u, y + tip * v)], fill=colour)


def _draw_shape(
    image: Image.Image, shape: str, colour: tuple[int, int, int], x: float, y: float, r: float
) -> None:
    draw = ImageDraw.Draw(image)
    disc = (x - r, y - r, x + r, y + r)
    if shape == "star":
        draw.polygon(_star(x, y, r * 1.08, 5, 0.4), fill=colour)
    elif shape == "sun":
        _draw_sun(draw, colour, x, y, r)
    elif shape == "disc":
        draw.ellipse((x - r * 0.9, y - r * 0.9, x + r * 0.9, y + r * 0.9), fill=colour)
    elif shape == "diamond":
        draw.polygon([(x, y - r), (x + r * 0.72, y), (x, y + r), (x - r * 0.72, y)], fill=colour)
    elif shape == "ring":
        draw.ellipse(disc, outline=colour, width=max(1, round(r * 0.34)))
    else:  # crescent: a disc less a shifted disc, so that the ground shows through
        mask = Image.new("L", image.size, 0)
        pen = ImageDraw.Draw(mask)
        pen.ellipse(disc, fill=255)
        pen.ellipse((x - r * 0.42, y - r * 0.78, x + r * 1.14, y + r * 0.78), fill=0)
        image.paste(colour, (0, 0), mask)


#: Offsets of the members of a group, in units of their spacing.
_ARRANGEMENTS: dict[int, list[list[tuple[float, float]]]] = {
    1: [[(0, 0)]],
    2: [[(-0.5, 0), (0.5, 0)], [(0, -0.5), (0, 0.5)]],
    3: [[(0, -0.55), (-0.58, 0.45), (0.58, 0.45)], [(0, -1), (0, 0), (0, 1)]],
    4: [[(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)]],
    5: [[(0, -0.85), (0.81, -0.26), (0.5, 0.69), (-0.5, 0.69), (-0.81, -0.26)]],
}


def _place_box(flag: Flag, place: Place, w: int, h: int) -> Box:
    """Centre and half extents of the room that a group may fill."""
    if place == "canton":
        return 0.21 * w, 0.27 * h, 0.19 * w, 0.23 * h
    if place == "triangle":
        return 0.13 * w, 0.5 * h, 0.1 * w, 0.18 * h
    x = {"hoist": 0.24, "centre": 0.5, "fly": 0.78}[place]
    return x * w, 0.5 * h, 0.19 * w, 0.36 * h


def _draw_charge(
    image: Image.Image, flag: Flag, charge: Charge, palette: Palette, rng: random.Random
) -> None:
    w, h = image.size
    x, y, half_w, half_h = _place_box(flag, charge.place, w, h)
    room = min(half_w, half_h)
    inside = charge.place in ("canton", "triangle")
    if charge.count == 1:
        radius = room * 0.8 if inside else h * (0.24 if charge.size == "large" else 0.11)
        spacing = 0.0
    elif inside:
        radius, spacing = room * 0.34, room * 0.88
    else:
        radius, spacing = h * 0.085, h * 0.23
    offsets = rng.choice(_ARRANGEMENTS[charge.count])
    if inside:  # a column of three does not fit there
        offsets = _ARRANGEMENTS[charge.count][0]
    for dx, dy in offsets:
        colour = palette[charge.colour]
        _draw_shape(image, charge.shape, colour, x + dx * spacing, y + dy * spacing, radius)


def draw_flat(flag: Flag, width: int, rng: random.Random) -> Image.Image:
    """A flat drawing, RGB, ``width`` wide; shades, ratio and arrangement vary with ``rng``."""
    palette = _palette(rng)
    height = round(width / rng.choice(RATIOS))
    w, h = width * _OVERSAMPLE, height * _OVERSAMPLE
    image = Image.new("RGB", (w, h))
    draw = ImageDraw.Draw(image)
    _draw_field(draw, flag, palette, w, h)
    if flag.triangle is not None:
        draw.polygon([(0, 0), (0.42 * w, h / 2), (0, h)], fill=palette[flag.triangle])
    if flag.canton is not None:
        draw.rectangle((0, 0, 0.42 * w, 0.54 * h), fill=palette[flag.canton])
    if flag.border is not None:
        draw.rectangle((0, 0, w - 1, h - 1), outline=palette[flag.border], width=round(0.075 * h))
    for charge in flag.charges:
        _draw_charge(image, flag, charge, palette, rng)
    return image.resize((width, height), Image.Resampling.BOX)


Pixels = NDArray[np.float32]


def _homography(corners: list[tuple[float, float]]) -> Pixels:
    """Maps output pixel coordinates to the unit square whose corners land on ``corners``."""
    rows, target = [], []
    for (x, y), (u, v) in zip(corners, [(0, 0), (1, 0), (1, 1), (0, 1)], strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        target += [u, v]
    solved = np.linalg.solve(np.array(rows, float), np.array(target, float))
    return np.append(solved, 1.0).reshape(3, 3).astype(np.float32)


def _bilinear(image: Pixels, x: Pixels, y: Pixels) -> Pixels:
    h, w, _ = image.shape
    x, y = np.clip(x, 0, w - 1.001), np.clip(y, 0, h - 1.001)
    left, top = x.astype(np.int32), y.astype(np.int32)
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    flat = image.reshape(-1, 3)
    at = top * w + left
    upper = flat[at] * (1 - fx) + flat[at + 1] * fx
    lower = flat[at + w] * (1 - fx) + flat[at + w + 1] * fx
    mixed: Pixels = upper * (1 - fy) + lower * fy
    return mixed


def _backdrop(rng: random.Random, w: int, h: int) -> Pixels:
    """Sky, wall or ground: a gradient between two muted colours with coarse mottling."""
    grey = rng.uniform(80, 210)
    tone = np.array([grey + rng.uniform(-25, 25) for _ in range(3)], np.float32)
    other = tone + rng.uniform(-50, 50)
    ramp = np.linspace(0, 1, h, dtype=np.float32)[:, None, None]
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 10, (6, 8)).astype(np.float32)
    mottled = np.asarray(Image.fromarray(noise).resize((w, h), Image.Resampling.BICUBIC))
    backdrop: Pixels = tone * (1 - ramp) + other * ramp + mottled[:, :, None]
    return backdrop


def _corners(rng: random.Random, w: int, h: int) -> list[tuple[float, float]]:
    margin = rng.uniform(0.02, 0.12)
    return [
        (w * (x + rng.uniform(-0.035, 0.035)), h * (y + rng.uniform(-0.05, 0.05)))
        for x, y in (
            (margin, margin), (1 - margin, margin), (1 - margin, 1 - margin), (margin, 1 - margin),
        )
    ]  # fmt: skip


def draw_photo(flag: Flag, width: int, rng: random.Random) -> Image.Image:
    """A photo-like view, RGB, ``width`` pixels wide at 4:3 or 3:2.

    The cloth waves, light falls on its folds, the camera stands at an angle, and the sensor adds
    blur, noise and traces of JPEG.
    """
    height = round(width / rng.choice((4 / 3, 1.5)))
    cloth = np.asarray(draw_flat(flag, width, rng), np.float32)
    grid_y, grid_x = np.mgrid[0:height, 0:width].astype(np.float32)
    m = _homography(_corners(rng, width, height))
    depth = m[2, 0] * grid_x + m[2, 1] * grid_y + m[2, 2]
    u = (m[0, 0] * grid_x + m[0, 1] * grid_y + m[0, 2]) / depth
    v = (m[1, 0] * grid_x + m[1, 1] * grid_y + m[1, 2]) / depth
    waves, phase, height_of_wave = rng.uniform(1, 2.6), rng.uniform(0, 6.3), rng.uniform(0, 0.035)
    tilt = rng.uniform(-0.6, 0.6)
    angle = 2 * math.pi * (waves * u + tilt * v) + phase
    v = v + height_of_wave * np.sin(angle) * np.clip(u + 0.2, 0, 1)
    inside = (u > 0) & (u < 1) & (v > 0) & (v < 1)
    light = (
        1 + rng.uniform(2, 7) * height_of_wave * np.cos(angle) + rng.uniform(-0.1, 0.1) * (u - 0.5)
    )
    scene = _backdrop(rng, width, height)
    h, w, _ = cloth.shape
    pixels = _bilinear(cloth, u[inside] * w - 0.5, v[inside] * h - 0.5)
    scene[inside] = pixels * light[inside][:, None]
    gain = rng.uniform(0.8, 1.08) * np.array([rng.uniform(0.96, 1.04) for _ in range(3)])
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(1, 6), scene.shape)
    shot = np.clip(scene * gain + noise, 0, 255).astype(np.uint8)
    image = Image.fromarray(shot)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.004) * width))
    return jpeg_round_trip(image, rng.randint(60, 92))


def jpeg_round_trip(image: Image.Image, quality: int) -> Image.Image:
    """The picture as it comes back from a JPEG file of this quality."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
