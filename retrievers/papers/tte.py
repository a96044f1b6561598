"""TTE and TTE-v2: think before an item is embedded, and learn from a reranker's judgement.

TTE (2510.05014): both sides are embedded with a text that a model reasoned out of them (ECR).
TTE-v2 (2602.23369): what the retriever finds is rewritten for the query and reranked on texts
(``python -m retrievers rerank --rewrite.depth``), and the reranker's scores teach the retriever
(:mod:`retrievers.commands.loop`).

Deviations: no code, prompt or constant of TTE-v2 is published; thresholds are this toolkit's own,
in log-odds. ECR come from a store, so a teacher's (tier t), or a student's that was trained
elsewhere (tier s); tier u, an embedding head on a frozen backbone, is not there. The retriever is
any encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrievers.papers import written_by

if TYPE_CHECKING:
    from augment.engines import Engine
    from augment.enrichment.account import Summary
    from augment.enrichment.pipeline import Options

#: ECR by kind of query; texts alone are thought about, too.
PROMPTS: Mapping[str, Any] = {"image_prompt": "tte/query", "text_prompt": "tte/query",
           "question_prompt": "tte/question", "modification_prompt": "tte/change"}  # fmt: skip


def tte(
    root: str | Path,
    store: str | Path,
    vlm: str | Engine,
    judge: str,
    out: str | Path = "runs/tte",
    *,
    config: str = "flagland",
    thought: bool = True,
    settings: tuple[str, ...] = (),
    options: Options | None = None,
) -> list[dict[str, Any]]:
    """ECR of both sides, a retriever trained on them, and rounds of feedback by a reranker.

    Killed, it goes on where it was.

    Args:
        root: folder in M-BEIR's layout.
        store: folder of the texts.
        vlm: what thinks: a model's name, or an engine.
        judge: the reranker, a checkpoint or an exported folder.
        out: folder of the rounds, see :func:`retrievers.commands.loop.loop`.
        config: of ``fit``, packaged or a file; what is trained.
        thought: show thought and final text; without, the final text alone.
        settings: of fit and loop, as on a command line: ``--loop.rounds=1``.
        options: sampling, limits and checks of the texts; None takes the defaults.

    Returns:
        What each round says: its metric on val queries, and what became of its candidates.

    Raises:
        DataError: if the data cannot be used.
        EngineError: if the model cannot be had.
        StoreError: if the store cannot be read or written.
    """
    from retrievers.commands.loop import LoopConfig, loop
    from retrievers.training.parts import read_parts

    ecr(Path(root), Path(store), **written_by(vlm, options))
    shown = {"view": "append", "store": store, "length": "dense" if thought else "final"}
    views = [f"--data.{side}.{name}={value}"
             for side in ("query", "corpus") for name, value in shown.items()]  # fmt: skip
    given = [
        f"--config={config}",
        f"--data.root={root}",
        *views,
        f"--loop.judge={judge}",
        *settings,
    ]
    parts = read_parts(given, more={"loop": LoopConfig})
    return loop(parts, parts.more["loop"], Path(out))


def ecr(
    root: Path, store: Path, options: Options, engine: Engine | None = None
) -> tuple[Summary, Summary]:
    """Texts of both sides, each from its own item alone: candidates', then queries'."""
    from augment import corpus, queries

    given: dict[str, Any] = {"options": options, "engine": engine}
    first = corpus.run(root, store, prompt="tte/corpus", **given)
    return first, queries.run(root, store, **PROMPTS, **given)
