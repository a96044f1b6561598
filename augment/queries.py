"""``python -m augment.queries``: refine queries, each kind in its own way.

A picture alone is described; in a question about a picture the reference is resolved, without an
answer; a modification becomes a description of what is wanted; text alone is left as it is. See
:mod:`augment.prompts.route` for how kinds are told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from augment.data import DataRoot
from augment.data.pools import open_queries
from augment.enrichment.command import entry
from augment.enrichment.pipeline import (
    DEFAULT_OPTIONS,
    JobPlan,
    Options,
    forbidden_of,
    query_plan,
    run_command,
    run_plan,
    target_of,
)
from augment.errors import DataError
from augment.files import read_ids
from augment.prompts.route import QUERY_PROMPTS, Kind, followed
from augment.records import Query

SPLITS = ("train", "val", "test")


def plan(
    root: Path,
    split: Sequence[str] = SPLITS,
    file: Sequence[Path] = (),
    image_prompt: str | None = QUERY_PROMPTS["image"],
    question_prompt: str | None = QUERY_PROMPTS["question"],
    modification_prompt: str | None = QUERY_PROMPTS["modification"],
    text_prompt: str | None = QUERY_PROMPTS["text"],
    only: Path | None = None,
    options: Options = DEFAULT_OPTIONS,
) -> JobPlan:
    """Refine queries, each kind in its own way.

    Args:
        root: Folder in M-BEIR's layout.
        split: Splits to take.
        file: Query files, not splits.
        image_prompt: Prompt (packaged, .md file or none) for queries that are a picture alone.
        question_prompt: Prompt for questions about a picture.
        modification_prompt: Prompt for requests to change a picture.
        text_prompt: Prompt for queries without a picture.
        only: File of query ids, one a line, as ``python -m augment route`` writes; no others.
        options: Say whether rewrites are compared with what is searched for; name the model.
    """
    found = file or [one.path for name in split for one in DataRoot(root).query_files(name)]
    if not found:
        what = f"query files of {', '.join(split)}"
        raise DataError(f"no {what}; name the files or check --root", str(root))
    given = (image_prompt, question_prompt, modification_prompt, text_prompt)
    kinds: Sequence[Kind] = ("image", "question", "modification", "text")
    names = dict(zip(kinds, (n if n and n.lower() != "none" else None for n in given), strict=True))
    prompts = {
        kind: followed(name, options.model, QUERY_PROMPTS[kind]) if name else None
        for kind, name in names.items()
    }
    opened = [open_queries(path) for path in found]
    forbidden = forbidden_of(root, prompts.values(), options)
    target = target_of(root, prompts.values())
    asked: Iterable[Query] = chain.from_iterable(opened)
    total = sum(map(len, opened))
    if only is not None:
        ids = read_ids(only)
        asked, total = (one for one in asked if one.item.id in ids), min(total, len(ids))
    return query_plan(asked, prompts, forbidden, total, target)


#: Enriches a root from Python; takes what :func:`augment.enrichment.pipeline.run_plan` says.
run = partial(run_plan, plan)

#: Takes the arguments of the command line and whether to supervise; returns the exit code.
command = partial(run_command, "python -m augment.queries", plan)

if __name__ == "__main__":
    raise SystemExit(entry(partial(command, supervised=True))())
