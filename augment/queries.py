"""``python -m augment.queries``: refine queries, each kind in its own way.

A picture alone is described; in a question about a picture the reference is resolved, without an
answer; a modification becomes a description of what is wanted; text alone is left as it is. See
:mod:`augment.prompts.route` for how kinds are told apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from augment.checks.rewrite import Positives
from augment.data import DataRoot
from augment.data.pools import open_candidates, open_queries
from augment.engines import Engine
from augment.enrichment import pipeline as cli
from augment.enrichment import trial
from augment.enrichment.enrich import Job, Summary
from augment.prompts import Prompt, load_prompt
from augment.prompts.route import QUERY_PROMPTS, Kind, classify
from augment.records import Query

SPLITS = ("train", "val", "test")

_KINDS: Mapping[Kind, str] = {
    "image": "queries that are a picture alone",
    "question": "questions about a picture",
    "modification": "requests to change a picture",
    "text": "queries without a picture",
}


def run(
    root: Path,
    store: Path,
    *,
    splits: Sequence[str] = SPLITS,
    files: Sequence[Path] = (),
    prompts: Mapping[Kind, str | None] = QUERY_PROMPTS,
    options: cli.Options = cli.DEFAULT_OPTIONS,
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
    work = plan(root, splits, files, prompts, options)
    return cli.carry_out(work, root, store, options, engine)


def plan(
    root: Path,
    splits: Sequence[str],
    files: Sequence[Path],
    prompts: Mapping[Kind, str | None],
    options: cli.Options,
) -> cli.Plan:
    """What :func:`run` is going to do.

    Raises:
        DataError: if the data or a prompt cannot be used.
    """
    data = DataRoot(root)
    found = files or [f.path for split in splits for f in data.query_files(split)]
    cli.not_empty(found, f"query files of {', '.join(splits)}", root)
    templates = {kind: load_prompt(name) if name else None for kind, name in prompts.items()}
    opened = [open_queries(path) for path in found]
    rewrites = any(p is not None and p.kind == "rewrite" for p in templates.values())
    pools = data.pools() if rewrites and options.limits.leak != "off" else []
    jobs = _jobs(opened, templates, Positives([open_candidates(pool.path) for pool in pools]))
    routes = {str(kind): template for kind, template in templates.items()}
    return cli.Plan("query", routes, jobs, sum(len(queries) for queries in opened))


def _jobs(
    files: Sequence[Sequence[Query]], prompts: Mapping[Kind, Prompt | None], positives: Positives
) -> Iterator[Job]:
    for queries in files:
        for query in queries:
            kind, reason = classify(query)
            forbidden = partial(positives.forbidden, query)
            yield Job(query.item, prompts[kind], f"{kind} ({reason})", forbidden)


def parser(prog: str, description: str) -> ArgumentParser:
    """The parser of this command, and of others on the same input."""
    made = cli.parser(prog, description)
    made.add_argument(
        "--split",
        type=str,
        default=list(SPLITS),
        nargs="+",
        metavar="SPLIT",
        help="Splits to take.",
    )
    made.add_argument(
        "--file", type=str, default=[], nargs="+", metavar="FILE", help="Query files, not splits."
    )
    for kind, text in _KINDS.items():
        made.add_argument(
            f"--{kind}-prompt",
            type=str,
            metavar="NAME",
            default=QUERY_PROMPTS[kind] or "none",
            help=f"Prompt (packaged, .md file or none) for {text}.",
        )
    cli.add_options(made)
    return made


def plan_of(parsed: Namespace) -> cli.Plan:
    """The plan that parsed arguments ask for."""
    return plan(
        Path(parsed.root),
        parsed.split,
        [Path(name) for name in parsed.file],
        {kind: cli.chosen(parsed[f"{kind}_prompt"]) for kind in _KINDS},
        cli.options(parsed),
    )


def command(arguments: Sequence[str] | None, supervised: bool = False) -> int:
    """Parse, run, print; the exit code. See :func:`augment.enrichment.trial.execute`."""
    made = parser("python -m augment.queries", "Refine queries, each kind in its own way.")
    return trial.execute(made, plan_of, arguments, supervised)


if __name__ == "__main__":
    cli.main(partial(command, supervised=True))
