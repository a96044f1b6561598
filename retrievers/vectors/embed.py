"""Vectors of what is at hand, or of everything that a plan asks about."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from augment.errors import DataError, printable
from augment.files import say
from augment.records import Side
from retrievers.data.examples import Collator, Example, Items
from retrievers.data.module import MBeirData
from retrievers.data.plan import Content, Plan, PlanItems
from retrievers.data.texts import check_recipe
from retrievers.evaluation.results import Lost
from retrievers.models.audit import Audit, audit_plan
from retrievers.models.base import Encoded, Encoder
from retrievers.vectors.rows import Embeddings, item_keys
from retrievers.vectors.store import EmbeddingWriter

#: Pictures of one item: of several, as of a video's frames, all count where a model takes several.
Shown: TypeAlias = Image.Image | Sequence[Image.Image] | None

#: What is embedded first, and what then.
SIDES: tuple[Side, Side] = ("corpus", "query")

#: Precisions of Lightning's trainer in which embedding goes, and what autocast makes of them.
_PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def embed_contents(
    encoder: Encoder,
    contents: Sequence[tuple[str | None, Shown]],
    side: Side,
    where: str = "item",
) -> Float[Tensor, "items dim"]:
    """Unit vectors of one batch, on the CPU; see :func:`encode_contents`."""
    return encode_contents(encoder, contents, side, where).vectors


@torch.inference_mode()
def encode_contents(
    encoder: Encoder,
    contents: Sequence[tuple[str | None, Shown]],
    side: Side,
    where: str = "item",
) -> Encoded:
    """Unit vectors of one batch, on the CPU, and what was written before them.

    Args:
        encoder: its weights are used as they are, in evaluation mode, on the device they are on.
        contents: text, picture (or several) or both of each item, at least one.
        side: query or corpus.
        where: what an item is called in errors.

    Raises:
        DataError: if an item has neither text nor picture, or more of them than the model takes.
    """
    collator = encoder.eval().collator()
    batch = collator(examples_of(collator, contents, where), side).to(encoder.device)
    found = encoder.encode(batch, side)
    return found._replace(vectors=found.vectors.float().cpu())


def examples_of(
    collator: Collator,
    contents: Sequence[tuple[str | None, Shown]],
    where: str = "item",
) -> list[Example]:
    """What is at hand as it goes into a batch; see :func:`embed_contents`."""
    examples = []
    for row, (said, image) in enumerate(contents):
        text = said if said and said.strip() else None
        given = (image,) if isinstance(image, Image.Image) else image or ()
        shown = tuple(collator.image(one.convert("RGB")) for one in given)
        if text is None and not shown:
            raise DataError("has neither text nor picture; nothing to embed", f"{where} {row}")
        if len(shown) > 1 and not getattr(collator, "several", False):
            raise DataError(f"{len(shown)} pictures for a model of one", f"{where} {row}")
        picture = shown if len(shown) > 1 else next(iter(shown), None)
        examples.append(Example(row, text, picture, id=f"{where} {row}"))
    return examples


@dataclass(frozen=True)
class Embedded:
    """Vectors of a plan's rows, and what made them.

    Attributes:
        candidates: by row of the plan.
        queries: by row of the plan's queries.
        made_by: fingerprint of weights, settings and the text shown.
        cut: what the context of the text encoder cuts off; None where it is not known.
        items: how many were embedded now.
        seconds: that it took.
        asked: how many of them were queries.
        asking: seconds that those took, what was written before their vectors included.
    """

    candidates: Embeddings
    queries: Embeddings
    made_by: str
    cut: Audit | None = None
    items: int = 0
    seconds: float = 0.0
    asked: int = 0
    asking: float = 0.0

    @property
    def lost(self) -> tuple[Lost, Lost]:
        """Candidates and queries without a vector, or with one of their text alone."""
        sides = (self.candidates, self.queries)
        first, second = (Lost(side.failed, side.degraded) for side in sides)
        return first, second

    def lines(self) -> list[str]:
        """What became of each side, a line each."""
        told = []
        for side, room in zip(SIDES, (self.candidates, self.queries), strict=True):
            kept, failed = int(room.done.sum()), len(room.failed)
            left = len(room.done) - kept - failed
            told.append(
                f"{side}: {kept} vectors, {len(room.degraded)} of them without their unreadable "
                f"picture; {failed} items with nothing to embed"
                + (f"; {left} left to other processes" if left else "")
            )
        return told


def embed(
    encoder: Encoder,
    data: MBeirData,
    plan: Plan | None = None,
    *,
    device: str | torch.device = "auto",
    precision: str = "32-true",
    allow_mismatch: bool = False,
) -> Embedded:
    """Embed what a plan asks about: its candidates and its queries.

    With ``data.embeddings.folder`` vectors go to FOLDER/corpus and FOLDER/query and stay there.
    What the folder has already is kept; what is new, changed or damaged is embedded. A run that was
    killed goes on where it stood. Several processes share the work as
    ``data.embeddings.part`` of ``parts``.

    Args:
        encoder: its weights are used as they are, in evaluation mode; moved to the device.
        data: what is shown, how it is loaded, where vectors are kept.
        plan: candidates and queries; None takes those of the test.
        device: auto, cpu, cuda, cuda:N.
        precision: 32-true, bf16-mixed or 16-mixed.
        allow_mismatch: embed text of another recipe than the one trained on.

    Returns:
        Vectors in float32, or as ``data.embeddings.dtype`` keeps them.

    Raises:
        MismatchError: if the weights were trained on another text, or the folder holds vectors of
            other weights or text.
        DataError: if data is missing or malformed.
        StoreError: if the folder cannot be read or written.
    """
    if encoder.trained_on is not None:
        check_recipe(encoder.trained_on, data.recipe.fingerprint, allow_mismatch)
    plan = data.test_plan() if plan is None else plan
    context = _autocast(precision, place := device_named(device))
    encoder.eval().to(place)
    cut = audit_plan(plan, data.recipe, encoder.collator())
    if cut is not None:
        say(cut.line(), sys.stderr)
    made_by = encoder.fingerprint(data.recipe.fingerprint)
    reader = data.reader(encoder.collator())
    rooms = {
        side: _room(encoder, data, PlanItems(plan, side, reader), side, made_by, precision)
        for side in SIDES
    }
    started, items, wanted = time.monotonic(), 0, data.embeddings
    with context:
        for side in SIDES:  # candidates, then queries
            begun, asked = time.monotonic(), 0
            rows = rooms[side].missing(wanted.part, wanted.parts)
            if len(rows):
                batches = data.item_loader(plan, side, encoder.collator(), rows)
                asked = fill(rooms[side], batches, encoder, side)
                items += asked
    asking = time.monotonic() - begun
    for room in rooms.values():
        room.finish()
    seconds = time.monotonic() - started
    both = (rooms["corpus"], rooms["query"])
    return Embedded(*both, made_by, cut, items, seconds, asked, asking)


@torch.inference_mode()
def fill(room: Embeddings, batches: Iterable[Items], encoder: Encoder, side: Side) -> int:
    """Embed batches of one side and keep their vectors; how many items that were."""
    size = 0
    for batch in tqdm(batches, desc=f"embedding {side}", unit="batch", leave=False, disable=None):
        put(room, batch, encoder, side)
        size += batch.inputs.size
    return size


def put(room: Embeddings, batch: Items, encoder: Encoder, side: Side) -> None:
    """Embed a batch of one side and keep its vectors."""
    room.fail(batch.failed.tolist(), batch.degraded.tolist())
    if batch.inputs.size:
        found = encoder.encode(batch.inputs.to(encoder.device), side)
        rows = batch.rows.cpu()
        if found.writings:
            # Of millions of candidates a second vector each would have no reader.
            direct = found.direct if side == "query" else None
            room.note(
                rows.tolist(), found.writings, None if direct is None else direct.float().cpu()
            )
        room.put(rows, found.vectors.float().cpu(), batch.degraded.tolist())


def device_named(name: str | torch.device) -> torch.device:
    """A device of torch; ``auto`` takes a graphics card where there is one.

    Raises:
        DataError: if there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"no device {name!r} here; use auto, cpu, cuda or cuda:N") from error
    return torch.device(name)


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    if precision not in _PRECISIONS:
        raise DataError(
            f"embedding goes in precision {', '.join(_PRECISIONS)}, not in {precision!r}"
        )
    kind = _PRECISIONS[precision]
    return nullcontext() if kind is None else torch.autocast(device.type, dtype=kind)


def _room(
    encoder: Encoder, data: MBeirData, items: PlanItems, side: Side, made_by: str, precision: str
) -> Embeddings:
    """Room for the vectors of one side, in memory or in the folder with what is there already."""
    wanted = data.embeddings
    if wanted.folder is None:
        return Embeddings(len(items))
    text = {f"text.{name}": value for name, value in data.recipe.fingerprint.items()}
    writer = EmbeddingWriter(
        Path(wanted.folder) / side,
        made_by,
        {**plain_settings(encoder), **text, "precision": precision},
        wanted.dtype,
        wanted.shard_rows,
        wanted.shard_seconds,
    )
    return kept_room(writer, items.contents(), data.root.path, items.names)


def plain_settings(encoder: Encoder) -> dict[str, str]:
    """What decides a vector besides the weights, as a folder of vectors tells it."""
    return {name: json.dumps(value, default=str) for name, value in encoder.deciding().items()}


def kept_room(
    writer: EmbeddingWriter,
    contents: Iterable[Content],
    root: Path,
    names: Callable[[Sequence[int]], list[str]],
) -> Embeddings:
    """Room in a folder, with what is there already; says which shards were damaged."""
    for name, problem in writer.damaged.items():
        told = printable(f"shard {name} of {writer.folder} is embedded again: {problem}")
        say(told, sys.stderr)
    keys = item_keys(contents, root)
    return Embeddings(len(keys), writer, keys, names)
