"""``python -m retrievers loop``: a retriever learns from a reranker's judgement of what it finds.

Mine, judge, filter, train again: TTE-v2's feedback (2602.23369), whose thresholds and rounds are
not published, for any encoder and any reranker. Candidates near or above the positive for the judge
are taken for positives that nobody has judged; positives that it refuses are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any, Literal

import lightning

from augment.data import grades_of, read_qrels
from augment.errors import DataError
from augment.files import digest, read_json, say, write_json
from augment.records import Hit
from retrievers.data.negatives import NegativesConfig
from retrievers.evaluation.compare import files_of, tasks_of
from retrievers.evaluation.run_files import read_table, write_run
from retrievers.models.load import load, load_weights
from retrievers.models.reranker import scorer
from retrievers.search.cascade import rerank
from retrievers.search.mining import MiningConfig, mine_negatives
from retrievers.training.module import fit, trained
from retrievers.training.objective import Distillation
from retrievers.training.parts import Parts, read_parts
from retrievers.vectors.search import test

if TYPE_CHECKING:
    from retrievers.data.module import MBeirData
    from retrievers.models.base import Encoder
    from retrievers.models.reranker import Reranker
    from retrievers.training.module import Contrastive


@dataclass(frozen=True)
class LoopConfig:
    """Rounds of training on what a reranker says of a retriever's finds.

    Args:
        judge: the reranker, a checkpoint or an exported folder.
        rounds: trainings on judged finds, after the first training without.
        depth: candidates of each training query that are judged, beside its positives.
        mining: what becomes of them; margins are in the judge's log-odds. Starting points: margin
            and thresholds chosen on dev, 5 (U-MARVEL) or 8 (UniME-V2) negatives kept.
        per_query: negatives drawn for a query in a step.
        distillation: towards the judge's scores.
        doubtful: what becomes of unjudged positives, see ``data.negatives``.
        metric: of the val queries, which are never mined.
        least_gain: two rounds with less end the loop.
    """

    judge: str
    rounds: int = 2
    depth: int = 50
    mining: MiningConfig = field(
        default_factory=lambda: MiningConfig(relative_margin=None, absolute_margin=0.0, per_query=5)
    )
    per_query: int = 1
    distillation: Distillation = Distillation()  # noqa: RUF009 - frozen
    doubtful: Literal["mask", "positive", "keep"] = "mask"
    metric: str = "success@1"
    least_gain: float = 0.002


def loop(parts: Parts, config: LoopConfig, out: Path) -> list[dict[str, Any]]:
    """Train, find, judge, mine, and train again, until val queries gain no more.

    ``OUT/round-N`` has a round's checkpoints, runs, scores, table of candidates with reasons, and
    ``round.json``. Killed, it goes on where it was: scores and steps of training are kept.

    Args:
        parts: the training as it begins each round, its data and trainer.
        config: of the loop.
        out: folder of the rounds.

    Returns:
        What each ``round.json`` says.

    Raises:
        DataError: if the root has no val queries, or the loop of a folder had other settings.
    """
    if not parts.data.root.query_files("val"):
        raise DataError("has no val queries to stop by", str(parts.data.root.path))
    judge = scorer(load(config.judge))
    shown, begun = parts.data.recipe.fingerprint, out / "loop.json"
    by = asdict(replace(config, judge=judge.made_by(shown)))  # its weights, not its place
    made_by = digest([by, parts.more["told"], parts.data.digest(), shown])[:16]
    if begun.is_file() and read_json(begun)["made_by"] != made_by:
        raise DataError("was made with other settings or data; name another --out", str(begun))
    write_json(begun, {"made_by": made_by}, DataError)
    rounds: list[dict[str, Any]] = []
    for number in range(config.rounds + 1):
        kept = out / f"round-{number}" / "round.json"
        told = dict(read_json(kept)) if kept.is_file() else {}
        told = told or _round(parts, config, judge, out, number)
        write_json(kept, told)
        rounds.append(told)
        say(f"round {number}: {config.metric} {100 * told['dev']:.1f} on val queries")
        gains = [b["dev"] - a["dev"] for a, b in pairwise(rounds)]
        if len(gains) >= 2 and max(gains[-2:]) < config.least_gain:
            break
    return rounds


def _round(
    parts: Parts, config: LoopConfig, judge: Reranker, out: Path, number: int
) -> dict[str, Any]:
    folder, data, training = out / f"round-{number}", copy(parts.data), deepcopy(parts.training)
    if number:
        mined = str(out / f"round-{number - 1}" / "mined")
        data.negatives = NegativesConfig(mined, False, config.per_query, config.doubtful)
        training.objective = replace(training.objective, distillation=config.distillation)
    encoder = _fitted(training, data, folder, parts)
    data.test = replace(data.test, split="val", union=False)
    dev = test(encoder, data, folder / "dev")
    told: dict[str, Any] = {"round": number, "dev": dev.to_json()["mean"]["local"][config.metric]}
    if number == config.rounds:
        return told
    data.test = replace(data.test, split="train", depth=config.depth)
    test(encoder, data, folder / "found")
    most = _with_positives(folder / "found", folder / "to_judge", _asked(folder / "dev"))
    rerank(judge, data, folder / "to_judge", folder / "judged", most, allow_mismatch=True)
    tally = mine_negatives(folder / "to_judge", data, folder / "mined", config.mining,
                           judge=folder / "judged")  # fmt: skip
    return {**told, "queries": tally.queries, "verdicts": dict(tally.verdicts)}


def _fitted(training: Contrastive, data: MBeirData, folder: Path, parts: Parts) -> Encoder:
    lightning.seed_everything(parts.more["seed"], workers=True, verbose=False)
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        encoder = trained(training)
        load_weights(encoder, last)
        return encoder
    return fit(training, data, folder, resume=True, **parts.trainer)


def _asked(folder: Path) -> set[str]:
    """Queries that the judgements of a folder are about."""
    found = (read_qrels(files_of(folder, task, "local")[1]) for task in tasks_of(folder, "local"))
    return {judged.qid for each in found for judged in each}


def _with_positives(found: Path, out: Path, held_out: set[str]) -> int:
    """Runs with the positives that they lack behind their hits; the depth that has all of them."""
    if both := held_out & _asked(found):
        raise DataError("is a val query and a training query; dev queries are not mined", min(both))
    most = 0
    for task in tasks_of(found, "local"):
        path, judged = files_of(found, task, "local")
        run, grades = read_table(path, empty=True).to_run(), grades_of(read_qrels(judged))
        full = {}
        for qid, hits in run.items():
            known, last = {hit.did for hit in hits}, hits[-1].score
            lost = [
                did for did, grade in grades.get(qid, {}).items() if grade > 0 and did not in known
            ]
            full[qid] = [*hits, *(Hit(did, last - n) for n, did in enumerate(lost, 1))]
            most = max(most, len(full[qid]))
        out.mkdir(parents=True, exist_ok=True)
        write_run(out / path.name, full)
        copyfile(judged, out / judged.name)
    return most


def main(arguments: Sequence[str]) -> int:
    """A config of ``fit`` and settings of the loop; the exit code."""
    if {"-h", "--help"} & set(arguments):
        use = "python -m retrievers loop --config=CONFIG_OF_FIT --out=OUT --loop.judge=RERANKER"
        say(f"usage: {use} [--loop.NAME=VALUE ...]\n\n{LoopConfig.__doc__}")
        return 0
    parts = read_parts(arguments, more={"loop": LoopConfig})
    loop(parts, parts.more["loop"], Path(parts.more["out"]))
    return 0
