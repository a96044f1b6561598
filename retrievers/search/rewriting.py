"""Typed queries on their way through the prompts and checks that training queries went through."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, final

from augment.engines import Engine, load_engine
from augment.enrichment import pipeline as cli
from augment.enrichment.enrich import enrich_jobs
from augment.enrichment.jobs import Job
from augment.errors import EngineError, MismatchError
from augment.prompts import Prompt, load_prompt
from augment.prompts.route import QUERY_PROMPTS, Kind, classify
from augment.records import Item, Query
from augment.store import Store
from augment.store.keys import Recipe
from augment.views import TextView


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
    prompts = {kind: _prompt(routes.get(kind)) for kind in QUERY_PROMPTS}
    shown = {str(kind): prompt for kind, prompt in prompts.items()}
    made = cli.recipe("query", engine, shown, cli.DEFAULT_OPTIONS)
    if known is None:
        return made, prompts
    return (
        Recipe(
            side="query",
            prompts=made.prompts,
            model=made.model,
            revision=made.revision,
            sampling={**made.sampling, **known.sampling},
            routes=known.routes,
            settings=made.settings,
        ),
        prompts,
    )


def _forget(store: Store, folder: Path) -> None:
    store.close()
    shutil.rmtree(folder, ignore_errors=True)


def _prompt(name: str | None) -> Prompt | None:
    return load_prompt(name) if name else None


def _differences(used: Recipe, trained: TextView) -> str:
    mine = used.to_json()
    fields = [name for name in mine if name != "id" and mine[name] != trained.recipe.get(name)]
    return "; ".join(f"{name}: {trained.recipe.get(name)}, here {mine[name]}" for name in fields)
