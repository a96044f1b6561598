"""MMEB-V2's 18 data sets of videos (2507.04590), whose test files have columns of their own.

What stands where is in ``videos.tsv``, taken from the authors' readers (src/data/eval_dataset
of TIGER-AI-Lab/VLM2Vec at 6e1e1d4); no video is opened, its frames lie in the published folders
below ``video-tasks/frames``. Kinds of data sets::

    find     a text asks for a video; all videos are candidates
    label    a video asks for its label; all labels of the file are candidates
    choose   a video, mostly with a question, asks for one of its own texts
    moment   a video and a text ask for one of its clips, which are the folders beside its own
    seek     a text, mostly with a picture or clip, asks for one of listed clips

``files`` are the configuration and split that they read, ``rows`` how many of its rows.

It differs from their code in this: labels that no row of a file has are no candidates, and an
option without a letter is shown whole (they show its last character).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath
from string import ascii_uppercase
from typing import Any, NamedTuple

from augment.data.mmeb.subsets import Subset, Target
from augment.errors import DataError

#: What stands beside a video that is a candidate.
CLIP = "Understand the content of the provided video."
SOUGHT = "Understand the content of the provided video clip."
_LETTER = re.compile(r"\A\(?[A-Z][.)]\s*")
#: What a query of MomentSeeker shows beside its text -> how it begins.
_SEEK = {
    ".jpg": "Select the video clip that aligns with the given text and image:",
    ".mp4": "Find the clip that corresponds to the given sentence and video segment:",
}
_SEEK_TEXT = "Find the clip that corresponds to the given text:"


class _Layout(NamedTuple):
    """A row of the table; ``frames`` and ``text`` are filled in with what a row of data has."""

    kind: str
    frames: str
    instruction: str
    text: str
    options: str
    shown: str
    answer: str
    files: str
    rows: str


_LAYOUTS = {
    name: _Layout(*(cell.replace("\\n", "\n") for cell in cells))
    for name, *cells in (
        line.split("\t")
        for line in resources.files("augment.data.mmeb")
        .joinpath("videos.tsv").read_text().splitlines()[1:]
    )
}  # fmt: skip


def files_of(name: str) -> str:
    """Configuration and split of a data set that count, as ``MC/test``."""
    return _LAYOUTS[name].files


def read(
    name: str,
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    images: Path,
    limit: int | None = None,
) -> Subset:
    """A data set of its rows and where each stands.

    Args:
        name: one of MMEB-V2's.
        rows: as published.
        images: the folder of frames, whose folders are the clips of kind ``moment``.
        limit: no more queries; where all are candidates, those of the other rows stay.

    Raises:
        DataError: with file and row, if one lacks a column or its answer is none of its options.
    """
    layout, subset = _LAYOUTS[name], Subset(name)
    places: dict[Target, int] = {}
    shared = layout.kind in ("find", "label")
    counted = rows[: int(layout.rows)] if layout.rows else rows
    for where, row in counted if shared else counted[:limit]:
        try:
            query, own, right = _asked(layout, row, images)
        except OSError as error:
            raise DataError(f"the clips of its video cannot be listed: {error}", where) from error
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            told = f"is no row of {name} as published ({type(error).__name__}: {error})"
            raise DataError(told, where) from error
        listed = [places.setdefault(target, len(places)) for target in own]
        if limit is not None and len(subset.queries) >= limit:
            continue
        first = dict.fromkeys(listed[place] for place in right)
        subset.queries.append(query)
        subset.lists.append(tuple(dict.fromkeys([*first, *listed])))
        subset.right.append(dict.fromkeys(first, 1))
    subset.candidates.extend(places)
    if shared:
        subset.lists[:] = [range(len(places))] * len(subset.queries)
    return subset


def _asked(
    layout: _Layout, row: Mapping[str, Any], images: Path
) -> tuple[Target, list[Target], Sequence[int]]:
    """The query of a row, its candidates, and places of right ones among them."""
    if layout.kind == "seek":
        return _sought(layout, row)
    options = _options(layout.options, row)
    lettered = [f"({a}) {one}" for a, one in zip(ascii_uppercase, options, strict=False)]
    values = {key: value[0] if isinstance(value, list) else value
              for key, value in row.items() if value is not None and value != []}  # fmt: skip
    values |= {f"{key}_stem": PurePosixPath(str(value)).stem for key, value in values.items()}
    values |= {"lines": "\n".join(options), "spaced": " ".join(options),
               "lettered": "\n".join(lettered)}  # fmt: skip
    frames = layout.frames.format_map(values)
    said = " ".join(part for part in (layout.instruction, layout.text.format_map(values)) if part)
    if layout.kind == "find":
        return Target(said, None), [Target(CLIP, frames)], (0,)
    if layout.kind == "moment":
        clips = sorted(one.name for one in (images / frames).iterdir()
                       if one.is_dir() and one.name != "query")  # fmt: skip
        right = [place for place, clip in enumerate(clips) if clip.startswith("positive")]
        if not right:
            raise FileNotFoundError(f"no folder positive* in {images / frames}")
        own = [Target(CLIP, f"{frames}/{clip}") for clip in clips]
        return Target(said, f"{frames}/query"), own, right[:1]
    if layout.kind == "label":
        return Target(said, frames), [Target(str(values[layout.answer]), None)], (0,)
    shown = {"bare": [_LETTER.sub("", one, count=1).strip(". ") for one in options],
             "lettered": lettered}.get(layout.shown, options)  # fmt: skip
    place = _place(row[layout.answer], options)
    return Target(said, frames), [Target(one, None) for one in shown], (place,)


def _options(columns: str, row: Mapping[str, Any]) -> list[str]:
    """What is chosen from: a column that is a list, several columns, or texts behind ``=``."""
    found: list[str] = []
    for column in columns.split():
        value = column[1:] if column.startswith("=") else row[column]
        found += map(str, value) if isinstance(value, list) else [str(value)]
    return found


def _place(answer: Any, options: Sequence[str]) -> int:
    """The place of an answer: its number from 0, an option itself, or its letter."""
    if isinstance(answer, str) and answer in options:
        return options.index(answer)
    told = str(answer)
    place = int(told) if told.isdigit() else ascii_uppercase.find(told)
    if not told or not 0 <= place < len(options):
        raise ValueError(f"answer {told!r} is none of {len(options)} options")
    return place


def _sought(layout: _Layout, row: Mapping[str, Any]) -> tuple[Target, list[Target], Sequence[int]]:
    clips = [[one["output_path"] for one in row[column]]
             for column in (layout.answer, layout.options)]  # fmt: skip
    if not clips[0]:
        raise ValueError(f"{layout.answer} names no clip")
    own = [Target(SOUGHT, f"{layout.frames}/video_frames/{_flat(path)}")
           for path in (*clips[0], *clips[1])]  # fmt: skip
    given = str(row["input_frames"] or "")
    ending = PurePosixPath(given).suffix
    said = f"{_SEEK.get(ending, _SEEK_TEXT)} {layout.text.format_map(row)}"
    frames = {".jpg": f"{layout.frames}/query_{given}",
              ".mp4": f"{layout.frames}/video_frames/{_flat(given)}"}  # fmt: skip
    return Target(said, frames.get(ending)), own, range(len(clips[0]))


def _flat(path: str) -> str:
    return path.partition(".mp4")[0].replace("/", "_")
