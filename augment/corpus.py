"""``python -m augment.corpus``: describe every candidate that has a picture.

The model sees the picture and the text that the candidate has already. The published files are not
touched; texts go to the store, and views decide how an encoder sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from augment.data import DataRoot
from augment.data.pools import open_candidates
from augment.enrichment.command import entry
from augment.enrichment.pipeline import (
    DEFAULT_OPTIONS,
    JobPlan,
    Options,
    candidate_plan,
    run_command,
    run_plan,
)
from augment.errors import DataError
from augment.prompts import within
from augment.prompts.route import CORPUS_PROMPT, followed


def plan(
    root: Path,
    pool: Sequence[Path] = (),
    prompt: str = CORPUS_PROMPT,
    budget: str = "",
    options: Options = DEFAULT_OPTIONS,
) -> JobPlan:
    """Describe every candidate that has a picture.

    Args:
        root: Folder in M-BEIR's layout.
        pool: Pool files; none: all local pools of the root.
        prompt: Packaged prompt or .md file.
        budget: Length of the texts: '45 words' or '77 tokens' (CLIP's); empty: the prompt's.
        options: Name the model: ocr has a prompt of its own.
    """
    files = pool or [file.path for file in DataRoot(root).pools()]
    if not files:
        raise DataError("no local pools; name the files or check --root", str(root))
    pools = [open_candidates(path) for path in files]
    items = chain.from_iterable(pools)
    asked = within(followed(prompt, options.model, CORPUS_PROMPT), budget)
    return candidate_plan(items, asked, sum(map(len, pools)))


#: Enriches a root from Python; takes what :func:`augment.enrichment.pipeline.run_plan` says.
run = partial(run_plan, plan)

#: Takes the arguments of the command line and whether to supervise; returns the exit code.
command = partial(run_command, "python -m augment.corpus", plan)

if __name__ == "__main__":
    raise SystemExit(entry(partial(command, supervised=True))())
