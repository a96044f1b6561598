"""``python -m augment.corpus``: describe every candidate that has a picture.

The model sees the picture and the text that the candidate has already. The published files are not
touched; texts go to the store, and views decide how an encoder sees them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from augment.data import DataRoot
from augment.data.pools import open_candidates
from augment.engines import Engine
from augment.enrichment import pipeline as cli
from augment.enrichment import trial
from augment.enrichment.enrich import Job, Summary
from augment.prompts import Prompt, load_prompt, within
from augment.prompts.route import CORPUS_PROMPT
from augment.records import Item


def run(
    root: Path,
    store: Path,
    *,
    pools: Sequence[Path] = (),
    prompt: str = CORPUS_PROMPT,
    budget: str = "",
    options: cli.Options = cli.DEFAULT_OPTIONS,
    engine: Engine | None = None,
) -> Summary:
    """Describe the candidates of some pools.

    Args:
        root: folder in M-BEIR's layout.
        store: folder of the generated texts.
        pools: pool files; none means all local pools of the root.
        prompt: packaged prompt or ``.md`` file.
        budget: length of the texts, ``45 words`` or ``77 tokens``; empty for the prompt's.
        options: model, sampling and limits.
        engine: answers in place of the model that ``options`` names.

    Raises:
        DataError: if the data or the prompt cannot be used.
        EngineError: if there is no such model.
        StoreError: if the store cannot be read or written.
    """
    work = plan(root, pools, prompt, budget)
    return cli.carry_out(work, root, store, options, engine)


def plan(root: Path, pools: Sequence[Path], prompt: str, budget: str = "") -> cli.Plan:
    """What :func:`run` is going to do.

    Raises:
        DataError: if the data or the prompt cannot be used.
    """
    files = pools or cli.not_empty([f.path for f in DataRoot(root).pools()], "local pools", root)
    template = within(load_prompt(prompt), budget)
    opened = [open_candidates(path) for path in files]
    return cli.Plan(
        "corpus", {"image": template}, _jobs(opened, template), sum(len(pool) for pool in opened)
    )


def _jobs(pools: Sequence[Sequence[Item]], prompt: Prompt) -> Iterator[Job]:
    for pool in pools:
        for item in pool:
            shown = bool(item.images)
            yield Job(item, prompt if shown else None, "picture" if shown else "no picture")


def parser(prog: str, description: str) -> ArgumentParser:
    """The parser of this command, and of others on the same input."""
    made = cli.parser(prog, description)
    made.add_argument(
        "--pool", type=str, default=[], nargs="+", metavar="FILE", help="Default: all local pools."
    )
    made.add_argument(
        "--prompt",
        type=str,
        default=CORPUS_PROMPT,
        metavar="NAME",
        help="Packaged prompt or .md file.",
    )
    made.add_argument(
        "--budget",
        type=str,
        default="",
        metavar="TEXT",
        help="Length of the texts: '45 words' or '77 tokens' (CLIP's). Default: the prompt's.",
    )
    cli.add_options(made)
    return made


def plan_of(parsed: Namespace) -> cli.Plan:
    """The plan that parsed arguments ask for."""
    pools = [Path(name) for name in parsed.pool]
    return plan(Path(parsed.root), pools, parsed.prompt, parsed.budget)


def command(arguments: Sequence[str] | None, supervised: bool = False) -> int:
    """Parse, run, print; the exit code. See :func:`augment.enrichment.trial.execute`."""
    made = parser("python -m augment.corpus", "Describe every candidate that has a picture.")
    return trial.execute(made, plan_of, arguments, supervised)


if __name__ == "__main__":
    cli.main(partial(command, supervised=True))
