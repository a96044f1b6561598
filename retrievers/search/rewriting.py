"""Texts made while searching: typed queries rewritten, candidates rewritten in a query's sight.

Typed queries go through the prompts and checks that training queries went through. Candidates that
a first stage found are rewritten for the query before they are reranked (query-aware rewriting,
TTE-v2, 2602.23369); what a model was asked once is in the store.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

from augment.engines import Engine, load_engine
from augment.enrichment import pipeline as cli
from augment.enrichment.enrich import enrich_jobs
from augment.enrichment.jobs import Job
from augment.errors import DataError, EngineError, MismatchError
from augment.prompts import Prompt, load_prompt
from augment.prompts.route import QUERY_PROMPTS, Kind, classify
from augment.records import Enrichment, Item, Query
from augment.store import Store, pair_id
from augment.store.keys import Recipe
from augment.views import TextView, render


class Rewritten(NamedTuple):
    """What became of a query: the text to read, the new text if one was accepted, or why not."""

    shown: str | None
    text: str | None
    note: str


@final
class QueryRewriter:
    """A VLM that rewrites queries as they come.

    Args:
        model: a name that :func:`augment.engines.load_engine` knows, such as ``flagland-vlm``.
        pictures: folder that the pictures of queries are relative to.
        trained: view of the training queries. Its recipe says which prompts, sampling, model and
            revision made them, and the same are used here.
        allow_mismatch: rewrite with another model or other prompts than those.

    Raises:
        EngineError: if there is no such model.
        MismatchError: if the training queries were not rewritten, or otherwise.
    """

    def __init__(
        self, model: str, pictures: Path, trained: TextView, allow_mismatch: bool = False
    ) -> None:
        if trained.view == "raw" and not allow_mismatch:
            raise MismatchError(
                "the retriever was trained on queries as published, so a rewritten query is none "
                "it knows; leave --vlm out, or pass --allow-mismatch to try it on purpose"
            )
        if len(trained.recipes) > 1:
            raise MismatchError(
                "the retriever was trained on queries with the texts of two recipes, and one model "
                "rewrites one; leave --vlm out"
            )
        self._pictures = pictures
        settings = dict(trained.recipe.get("settings") or {})  # type: ignore[call-overload]
        limits = {name: settings.get(name) for name in ("min_pixels", "max_pixels")}
        self._engine = load_engine(model, root=pictures, batch_size=1, **limits)
        self._recipe, self._prompts = _recipe(self._engine, trained.recipe)
        wanted = trained.recipe.get("id", self._recipe.id)
        if wanted != self._recipe.id and not allow_mismatch:
            raise MismatchError(
                f"training queries were rewritten otherwise ({_differences(self._recipe, trained)})"
                "; use the same model and prompts, or pass --allow-mismatch"
            )
        folder = Path(tempfile.mkdtemp(prefix="rewritten-"))
        self._store = Store(folder)
        weakref.finalize(self, _forget, self._store, folder)
        self._shown: str = "replace" if trained.view == "raw" else trained.view
        self._length, self._mark = trained.length, trained.mark

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._engine.model

    def __call__(self, item: Item) -> Rewritten:
        """Rewrite a query; one that comes again is answered from memory.

        Raises:
            EngineError: if the model cannot answer, or has died.
        """
        routing = classify(Query(item, None))
        job = Job(item, self._prompts[routing.kind], str(routing))
        summary = enrich_jobs([job], self._engine, self._store, self._recipe, self._pictures)
        if summary.incomplete or summary.failures:
            why = summary.incomplete or summary.failures[0].reason
            raise EngineError(f"{self.model} could not rewrite the query: {why}")
        texts = self._store.texts("query", self._recipe.id)
        made = (self._recipe.to_json(), texts, self._length)
        view = TextView("query", self._shown, *made, mark=self._mark)
        found, shown = view.enrichment(item.id), view.text(item)
        if found is None:
            return Rewritten(shown, None, f"not rewritten: {job.reason}")
        if found.rejected:
            told = f"the rewritten query was refused ({found.rejected}): {found.text}"
            return Rewritten(shown, None, told)
        return Rewritten(shown, found.text, "")


def _recipe(
    engine: Engine, trained: Mapping[str, object]
) -> tuple[Recipe, dict[Kind, Prompt | None]]:
    """The recipe of these rewrites: routes and sampling of the training where there was one."""
    known = Recipe.from_json(trained) if trained else None
    routes = known.routes if known else {str(kind): name for kind, name in QUERY_PROMPTS.items()}
    prompts = {kind: load_prompt(name) if (name := routes.get(kind)) else None
               for kind in QUERY_PROMPTS}  # fmt: skip
    shown = {str(kind): prompt for kind, prompt in prompts.items()}
    made = cli.recipe("query", engine, shown, cli.DEFAULT_OPTIONS)
    if known is None:
        return made, prompts
    sampling = {**made.sampling, **known.sampling}
    return replace(made, sampling=sampling, routes=known.routes, target_seen=False), prompts


def _forget(store: Store, folder: Path) -> None:
    store.close()
    shutil.rmtree(folder, ignore_errors=True)


def _differences(used: Recipe, trained: TextView) -> str:
    mine = used.to_json()
    fields = [name for name in mine if name != "id" and mine[name] != trained.recipe.get(name)]
    return "; ".join(f"{name}: {trained.recipe.get(name)}, here {mine[name]}" for name in fields)


@dataclass(frozen=True)
class PairRewriting:
    """Query-aware rewriting of each query's best candidates, before they are reranked.

    Args:
        depth: candidates of each query that are rewritten; 0 rewrites none.
        model: what rewrites them, see ``python -m augment.corpus --help``.
        store: folder of the texts, one of their own; null takes OUT/rewritten.
        prompt: packaged (tte/qar, or tte/qar_shown, which shows the candidate's picture) or a file.
        view: the rewritten text stands in the candidate's place (replace) or behind it (append).
        urls: of servers of the OpenAI API that have the model.
        batch_size: most requests answered together in this process.
    """

    depth: int = 0
    model: str = "flagland-vlm"
    store: str | None = None
    prompt: str = "tte/qar"
    view: Literal["replace", "append"] = "replace"
    urls: tuple[str, ...] = ()
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.depth < 0 or self.batch_size < 1:
            raise DataError(
                f"rewrite.depth {self.depth} must not be negative, and rewrite.batch_size "
                f"{self.batch_size} must be above 0"
            )


class Retrieved(NamedTuple):
    """A query and a candidate that was found for it.

    Attributes:
        query: unique name of the query.
        asked: its text.
        item: the candidate; its text is the one that the reranker would read.
    """

    query: str
    asked: str
    item: Item


@final
class RewrittenPairs:
    """Candidates' texts in sight of a query. Made by :func:`rewrite_pairs`.

    Args:
        texts: pair -> text.
        config: how they were made.
        recipe: id under which the store has them.
        asked: texts that were generated by this call.
    """

    def __init__(
        self, texts: Mapping[str, Enrichment], config: PairRewriting, recipe: str, asked: int
    ) -> None:
        self.config, self.recipe, self.asked = config, recipe, asked
        self._texts = texts

    def __call__(self, query: str, did: str, text: str | None) -> str | None:
        """What is shown of a candidate: rewritten, or its own text where that was refused."""
        found = self.of(query, did)
        made = None if found is None or found.rejected else found.text
        return render(text, made, self.config.view)

    def of(self, query: str, did: str) -> Enrichment | None:
        """The text made for a pair, refused or not; None if there is none."""
        return self._texts.get(pair_id(query, did))


@final
class PairRewriter:
    """Rewrites candidates for queries as they come; without a store of its own nothing is kept.

    Args:
        config: how.
        root: folder that pictures are relative to.

    Raises:
        DataError: if there is no such prompt.
        EngineError: if there is no such model.
    """

    def __init__(self, config: PairRewriting, root: Path) -> None:
        self._config, self._root = config, root
        self._prompt, self._engine, self._recipe = _pair_maker(config, root)
        folder = Path(config.store or tempfile.mkdtemp(prefix="rewritten-"))
        self._store = Store(folder)
        if config.store is None:
            weakref.finalize(self, _forget, self._store, folder)

    def __call__(self, pairs: Iterable[Retrieved]) -> RewrittenPairs:
        """Rewrite what was found; what comes again is answered from memory.

        Raises:
            EngineError: if the model ends before all is asked.
        """
        jobs, recipe = _pair_jobs(pairs, self._prompt), self._recipe
        summary = enrich_jobs(jobs, self._engine, self._store, recipe, self._root)
        if summary.incomplete:
            told = f"{self._engine.model} could not rewrite candidates: {summary.incomplete}"
            raise EngineError(told)
        texts = self._store.texts("corpus", recipe.id)
        return RewrittenPairs(texts, self._config, recipe.id, summary.generated)


def _pair_maker(config: PairRewriting, root: Path) -> tuple[Prompt, Engine, Recipe]:
    prompt = load_prompt(config.prompt)
    options = _pair_options(config)
    engine = options.engine(root)
    return prompt, engine, cli.recipe("corpus", engine, {"pair": prompt}, options)


def _pair_options(config: PairRewriting) -> cli.Options:
    return cli.Options(model=config.model, urls=config.urls, batch_size=config.batch_size)


def _pair_jobs(pairs: Iterable[Retrieved], prompt: Prompt) -> Iterator[Job]:
    for query, asked, item in pairs:
        yield Job(replace(item, id=pair_id(query, item.id)), prompt, "retrieved", asked=asked)


def store_of(folder: Path, rewrite: Mapping[str, Any]) -> Path:
    """Where the texts of a reranked folder lie, by its record; one that was moved has its own."""
    named = Path(rewrite.get("store") or folder / "rewritten")
    return named if named.is_dir() else folder / "rewritten"


def rewrite_pairs(
    pairs: Iterable[Retrieved], config: PairRewriting, root: Path, store: Path
) -> RewrittenPairs:
    """Rewrite candidates for queries, from the store or else by the model.

    Keys are of what is sent (both texts, the picture where it is shown, prompt, model, decoding),
    so that nothing is asked twice, and a run that was killed goes on.

    Args:
        pairs: what the first stage found.
        config: how.
        root: folder that pictures are relative to.
        store: folder of the texts, where the config names none.

    Raises:
        DataError: if there is no such prompt.
        EngineError: if the model cannot be had, or ends before all is asked.
    """
    prompt, engine, recipe = _pair_maker(config, root)
    folder = Path(config.store) if config.store else store
    plan = cli.JobPlan("corpus", {"pair": prompt}, _pair_jobs(pairs, prompt))
    summary = cli.carry_out(plan, root, folder, _pair_options(config), engine)
    if summary.incomplete:
        told = f"{engine.model} did not rewrite all ({summary.incomplete})"
        raise EngineError(f"{told}; run the same command again to go on")
    texts = Store(folder).texts("corpus", recipe.id)
    return RewrittenPairs(texts, config, recipe.id, summary.generated)
