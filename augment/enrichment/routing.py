"""Which queries are to be reasoned about, and whether what was written of them holds (TRACE).

TRACE (2603.02929) labels queries by a judge, but its Tables 9 and 10 show a split by data set. Both
are offered, beside labels by need (does a direct retriever find the target?) and by chance, which
tell what a router has learnt: of labels by data set it may have learnt the prompt.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Literal

from augment.checks import Limits
from augment.data import DataRoot
from augment.data.items import SPLITS, RootItems
from augment.data.pools import open_queries
from augment.engines import Engine
from augment.enrichment.jobs import Job
from augment.enrichment.pipeline import JobPlan, Options, carry_out, finish
from augment.enrichment.pipeline import recipe as made_by
from augment.errors import DataError
from augment.files import say, text_lines, write_text
from augment.prompts import load_prompt
from augment.records import Enrichment, Item, Query
from augment.store import Store

RouteBy = Literal["dataset", "judge", "margin", "random"]

#: Data sets whose queries TRACE reasons about (Table 10): 575,442 samples. The other six of ten,
#: 518,311 samples, are VisualNews, MSCOCO, Fashion200K, WebQA, EDIS and NIGHTS (Table 9).
REASONING = ("cirr", "fashioniq", "infoseek", "oven")

#: A verdict counts if it is surer than this (TRACE's model filter).
SURE = 0.7

#: What the target has -> prompt that shows it to whoever judges.
VERIFIERS: Mapping[str, str] = {"image": "trace/verify_image", "text": "trace/verify_text"}
#: Class of the refusals of :func:`confirm`.
REFUSED = "not borne out"
#: In place of a verdict where the model gave none, or the target was not found.
NO_VERDICT = "no verdict"

_VERDICT = re.compile(r"\b(yes|no|direct|reason)\b(?:\D*?(\d*\.?\d+)\s*(%?))?", re.IGNORECASE)


def verdict(text: str) -> tuple[str, float] | None:
    """One of yes, no, direct and reason, and the confidence behind it; None if there is no word.

    Without a confidence it is 0.
    """
    found = _VERDICT.search(text)
    if found is None:
        return None
    sure = float(found[2] or 0) / (100 if found[3] else 1)
    return found[1].lower(), sure if sure <= 1 else 0.0


def route(
    root: Path,
    out: Path,
    by: RouteBy = "dataset",
    split: str = "train",
    share: float = 0.5,
    seed: int = 0,
    store: Path | None = None,
    run: Path | None = None,
) -> int:
    """Write the ids of the queries that are to be reasoned about, one a line, and why.

    The file is for ``python -m augment.queries --only`` and for ``data.written.only``.

    Args:
        root: Folder in M-BEIR's layout.
        out: File to write.
        by: dataset: those that TRACE reasons about (CIRR, FashionIQ, InfoSeek, OVEN); judge: texts
            of the prompt trace/complexity; margin: a direct retriever's run, those whose positive
            is not first; random.
        split: Of the queries.
        share: Of random, by the query's id.
        seed: Of random.
        store: Of judge, the folder of its texts.
        run: Of margin, a TREC file, or a folder of them.
    """
    files = DataRoot(root).query_files(split)
    if not files:
        raise DataError(f"no query files of {split}", str(root))
    why = _label(by, share, seed, store, run)
    found = {
        query.item.id: why(file.dataset, query)
        for file in files
        for query in open_queries(file.path)
    }
    lines = [f"{qid}\t{reason}\n" for qid, reason in found.items() if reason]
    write_text(out, "".join(lines))
    unknown = sum(reason is None for reason in found.values())
    say(
        f"{len(lines):,} of {len(found):,} queries are to be reasoned about; nothing is known of "
        f"{unknown:,}, which are not"
    )
    return 0


#: Data set, query -> why it is to be reasoned about; empty if not, None where nothing is known.
Label = Callable[[str, Query], str | None]


def _label(by: RouteBy, share: float, seed: int, store: Path | None, run: Path | None) -> Label:
    if by == "dataset":
        return lambda dataset, _: dataset if dataset.partition("_task")[0] in REASONING else ""
    if by == "random":
        return lambda _, query: _most(Random(f"{seed}:{query.item.id}").random(), share)  # noqa: S311
    if by == "judge":
        if store is None:
            raise DataError("by=judge reads texts of trace/complexity: name their store")
        texts = Store(store).texts("query")
        return lambda _, query: _judged(texts.get(query.item.id))
    if run is None:
        raise DataError("by=margin reads the run of a direct retriever on these queries: name it")
    scores = _scores(run)
    return lambda _, query: _most(_margin(query, scores), 0.0)


def _most(number: float | None, most: float) -> str | None:
    return None if number is None else f"{number:.4f}" if number <= most else ""


def _judged(text: Enrichment | None) -> str | None:
    said = None if text is None or text.rejected else verdict(text.text)
    return said and (f"{said[1]:g}" if said[0] == "reason" else "")


def _scores(run: Path) -> Mapping[str, Mapping[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for path in sorted(run.glob("*.local.trec")) if run.is_dir() else [run]:
        for number, line in text_lines(path):
            parts = line.split()
            if len(parts) != 6:
                raise DataError("is no line of a TREC run", f"{path}:{number}")
            found.setdefault(parts[0], {})[parts[2]] = float(parts[4])
    if not found:
        raise DataError("holds no run (NAME.local.trec)", str(run))
    return found


def _margin(query: Query, scores: Mapping[str, Mapping[str, float]]) -> float | None:
    """How far the best positive stands above the best other candidate; None if nothing was run."""
    own = scores.get(query.item.id)
    if own is None:
        return None
    other = max((s for did, s in own.items() if did not in query.positives), default=0.0)
    # A positive that was not found is at most as good as the last that was.
    best = max((own[did] for did in query.positives if did in own), default=min(own.values()))
    return best - other


def confirm(
    root: Path,
    store: Path,
    model: str,
    recipe: str | None = None,
    image_prompt: str = VERIFIERS["image"],
    text_prompt: str = VERIFIERS["text"],
    sure: float = SURE,
    batch_size: int | None = None,
) -> int:
    """Refuse chains that a model, shown the target, does not find borne out (TRACE's model filter).

    Its verdicts are texts of their own, in STORE-verdicts, so that a killed run goes on. A chain
    whose verdict is no, unsure, unreadable or missing is refused in its store and not taught;
    ``python -m augment report`` shows it with its reason.

    Args:
        root: Folder in M-BEIR's layout.
        store: Folder of the chains.
        model: That judges.
        recipe: Id of the chains' recipe; null: the one meant.
        image_prompt: For queries whose target has a picture.
        text_prompt: For the others.
        sure: A verdict must be surer than this.
        batch_size: Requests at a time.
    """
    engine = Options(model=model, batch_size=batch_size).engine(root)
    verifiers = {"image": image_prompt, "text": text_prompt}
    return confirm_by(engine, root, store, recipe, verifiers, sure)


def confirm_by(
    engine: Engine,
    root: Path,
    store: Path,
    recipe: str | None = None,
    verifiers: Mapping[str, str] = VERIFIERS,
    sure: float = SURE,
) -> int:
    """As :func:`confirm`, by an engine that is there."""
    prompts = {kind: load_prompt(name) for kind, name in verifiers.items()}
    # A verdict is a word and a number: no sentence, of no language.
    limits = Limits(language="", truncation=0.9, filler=1.0, leak="off")
    options = Options(model=engine.model, limits=limits)
    chains = Store(store)
    made = chains.recipe("query", recipe)
    texts = chains.texts("query", made.id)
    find, asked = RootItems(root, "corpus").find, set[str]()

    def jobs() -> Iterator[Job]:
        files = [file for split in SPLITS for file in DataRoot(root).query_files(split)]
        for query in (query for file in files for query in open_queries(file.path)):
            text = texts.get(query.item.id)
            if text is None or text.rejected.partition(":")[0] not in ("", REFUSED):
                continue
            target = next(filter(None, map(find, query.positives)), None)
            answer = text.lengths.get("final") or text.text
            item = Item(
                query.item.id, f"{query.item.text or ''}\nDerived: {answer}".strip(), (), "text"
            )
            kind = "image" if target is not None and target.image else "text"
            asked.add(item.id)
            yield Job(item, None if target is None else prompts[kind], kind, None, target)

    verdicts = store.with_name(f"{store.name}-verdicts")
    done = carry_out(JobPlan("query", dict(prompts), jobs()), root, verdicts, options, engine)
    code, judged = finish(done, verdicts), made_by("query", engine, prompts, options).id
    counts: Counter[str] = Counter()
    given = Store(verdicts).texts("query", judged)
    with chains:
        for name in sorted(asked):
            link, told = chains.link_of(made.id, name), given[name].text if name in given else ""
            if link is None:
                continue
            said = verdict(told)
            held = said is not None and said[0] == "yes" and said[1] > sure
            reason = "" if held else f"{REFUSED}: {told or NO_VERDICT}"
            counts["kept" if held else "refused" if told else NO_VERDICT] += 1
            # Texts that no check has judged have no mark, and without one no reason is kept.
            refused = link.judged._replace(rejected=reason, mark=link.judged.mark or "confirmed")
            chains.link(made.id, name, link.key, link.route, refused)
    say(f"{counts['kept']:,} chains kept, {counts['refused']:,} refused, {counts[NO_VERDICT]:,} "
        f"refused with {NO_VERDICT} (asked again by another run): {store}")  # fmt: skip
    return code
