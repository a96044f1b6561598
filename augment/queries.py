"""``python -m augment.queries``: refine queries, each kind in its own way.

A picture alone is described; in a question about a picture the reference is resolved, without an
answer; a modification becomes a description of what is wanted; text alone is left as it is. See
:mod:`augment.prompts.route` for how kinds are told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from augment.data import DataRoot
from augment.data.pools import open_queries
from augment.engines import Engine
from augment.enrichment.account import Summary
from augment.enrichment.command import main
from augment.enrichment.pipeline import (
    DEFAULT_OPTIONS,
    JobPlan,
    Options,
    carry_out,
    forbidden_of,
    not_empty,
    query_plan,
    run_command,
)
from augment.prompts import load_prompt
from augment.prompts.route import QUERY_PROMPTS, Kind

SPLITS = ("train", "val", "test")


def run(
    root: Path,
    store: Path,
    *,
    splits: Sequence[str] = SPLITS,
    files: Sequence[Path] = (),
    prompts: Mapping[Kind, str | None] = QUERY_PROMPTS,
    options: Options = DEFAULT_OPTIONS,
    engine: Engine | None = None,
) -> Summary:
    """Refine the queries of some splits.

    Args:
        root: folder in M-BEIR's layout.
        store: folder of the generated texts.
        splits: those whose query files are taken.
        files: query files, instead of all files of the splits.
        prompts: kind of query -> packaged prompt or ``.md`` file, None to leave it alone.
        options: model, sampling and limits.
        engine: answers in place of the model that ``options`` names.

    Raises:
        DataError: if the data or a prompt cannot be used.
        EngineError: if there is no such model.
        StoreError: if the store cannot be read or written.
    """
    return carry_out(_plan(root, splits, files, prompts, options), root, store, options, engine)


def plan(
    root: Path,
    split: Sequence[str] = SPLITS,
    file: Sequence[Path] = (),
    image_prompt: str | None = QUERY_PROMPTS["image"],
    question_prompt: str | None = QUERY_PROMPTS["question"],
    modification_prompt: str | None = QUERY_PROMPTS["modification"],
    text_prompt: str | None = QUERY_PROMPTS["text"],
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
        options: Say whether rewrites are compared with what is searched for.

    Raises:
        DataError: if the data or a prompt cannot be used.
    """
    given: Mapping[Kind, str | None] = {
        "image": image_prompt,
        "question": question_prompt,
        "modification": modification_prompt,
        "text": text_prompt,
    }
    return _plan(root, split, file, given, options)


def _plan(
    root: Path,
    splits: Sequence[str],
    files: Sequence[Path],
    prompts: Mapping[Kind, str | None],
    options: Options,
) -> JobPlan:
    data = DataRoot(root)
    found = files or [f.path for split in splits for f in data.query_files(split)]
    not_empty(found, f"query files of {', '.join(splits)}", root)
    chosen = {kind: None if str(name).lower() == "none" else name for kind, name in prompts.items()}
    templates = {kind: load_prompt(name) if name else None for kind, name in chosen.items()}
    opened = [open_queries(path) for path in found]
    forbidden = forbidden_of(root, templates.values(), options)
    queries = chain.from_iterable(opened)
    return query_plan(queries, templates, forbidden, sum(map(len, opened)))


#: Takes the arguments of the command line and whether to supervise; returns the exit code.
command = partial(run_command, "python -m augment.queries", plan)

if __name__ == "__main__":
    main(partial(command, supervised=True))
