"""``python -m augment.corpus``: describe every candidate that has a picture.

The model sees the picture and the text that the candidate has already. The published files are not
touched; texts go to the store, and views decide how an encoder sees them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from augment import cli
from augment.columnar import open_candidates
from augment.engines import Engine
from augment.enrich import Job, Summary
from augment.mbeir import DataRoot
from augment.prompts import Prompt, load_prompt
from augment.records import Item
from augment.route import CORPUS_PROMPT


def run(
    root: Path,
    store: Path,
    *,
    pools: Sequence[Path] = (),
    prompt: str = CORPUS_PROMPT,
    options: cli.Options = cli.DEFAULT_OPTIONS,
    engine: Engine | None = None,
) -> Summary:
    """Describe the candidates of some pools.

    Args:
        root: folder in M-BEIR's layout.
        store: folder of the generated texts.
        pools: pool files; none means all local pools of the root.
        prompt: packaged prompt or ``.md`` file.
        options: model, sampling and limits.
        engine: answers in place of the model that ``options`` names.

    Raises:
        DataError: if the data or the prompt cannot be used.
        EngineError: if there is no such model.
        StoreError: if the store cannot be read or written.
    """
    files = pools or cli.not_empty([f.path for f in DataRoot(root).pools()], "local pools", root)
    template = load_prompt(prompt)
    opened = [open_candidates(path) for path in files]
    engine = engine or options.engine(root)
    used = cli.recipe("corpus", engine, {"image": template}, options)
    total = sum(len(pool) for pool in opened)
    jobs = _jobs(opened, template)
    return cli.generate(jobs, total, used, engine, root, store, options.limit, options.limits)


def _jobs(pools: Sequence[Sequence[Item]], prompt: Prompt) -> Iterator[Job]:
    for pool in pools:
        for item in pool:
            shown = item.image is not None
            yield Job(item, prompt if shown else None, "picture" if shown else "no picture")


def command(arguments: Sequence[str] | None) -> int:
    """Parse, run, print; the exit code."""
    parser = cli.parser("python -m augment.corpus", "Describe every candidate that has a picture.")
    parser.add_argument(
        "--pool", type=str, default=[], nargs="+", metavar="FILE", help="Default: all local pools."
    )
    parser.add_argument(
        "--prompt",
        type=str,
        default=CORPUS_PROMPT,
        metavar="NAME",
        help="Packaged prompt or .md file.",
    )
    cli.add_options(parser)
    parsed = parser.parse_args(arguments)
    summary = run(
        Path(parsed.root),
        Path(parsed.store),
        pools=[Path(name) for name in parsed.pool],
        prompt=parsed.prompt,
        options=cli.options(parsed),
    )
    return cli.finish(summary, Path(parsed.store))


if __name__ == "__main__":
    cli.main(command)
