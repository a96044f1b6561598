"""The text recipe: which text of an item a retriever reads, on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

from augment.checks.lengths import Length
from augment.data import Instructions, TextRule, format_text
from augment.errors import DataError, MismatchError
from augment.files import digest, read_ids
from augment.records import Item, Modality, Query, Side
from augment.views import Mark, TextView, open_traces, open_view
from retrievers.data.mixtures import Mixture, SentenceSampling, make_mixture, named_views


@dataclass(frozen=True)
class ViewConfig:
    """Which text of one side is shown, and how training varies it.

    Args:
        view: raw (published), append (published, then generated) or replace (generated).
        store: folder of generated texts; needed unless raw.
        recipe: id of the recipe in the store; null takes the only one, or the only
            complete one; several are an error that lists them. A+B shows the texts of two
            together, those that are accepted, in this order: captions and transcripts, say.
        length: of generated text: dense, short or sentences (see :mod:`augment.checks.lengths`).
        mix: in training, draw among texts with these weights, such as
            ``{dense: 0.5, short: 0.3, raw: 0.2}`` (:func:`retrievers.data.mixtures.make_mixture`);
            tests show ``view`` and ``length``, which must be among them. Null draws nothing.
        dropout: in training, leave the generated text out with this probability.
        sentences: in training, show some sentences only.
        mark: short ([image]) or words say what an item is before its text, in training and tests.
    """

    view: str = "raw"
    store: str | None = None
    recipe: str | None = None
    length: Length = "dense"
    mix: dict[str, float] | None = None
    dropout: float = 0.0
    sentences: SentenceSampling = SentenceSampling()  # noqa: RUF009 - frozen
    mark: Mark = "none"

    def open(self, side: Side) -> TextView:
        """Open the view of one side (see :func:`augment.views.open_view`)."""
        store = Path(self.store) if self.store else None
        return open_view(side, self.view, store, self.recipe, self.length, self.mark)

    @property
    def varies(self) -> bool:
        """Whether training shows other texts than a test."""
        return self.mix is not None or self.dropout > 0 or self.sentences.share > 0

    def mixture(self, side: Side, named: TextView) -> Mixture | None:
        """What training draws from; None where it shows what a test shows.

        Raises:
            DataError: see :func:`retrievers.data.mixtures.make_mixture`.
        """
        generated = named
        if named.view == "raw" and self.store and set(self.mix or ()) - {"raw"}:
            store = Path(self.store)
            generated = open_view(side, "append", store, self.recipe, mark=self.mark)
        return make_mixture(named, self.mix, self.dropout, self.sentences, generated)


@dataclass(frozen=True)
class WrittenConfig:
    """What a model is taught to write before a query's vector (TRACE, RGE), or a candidate's.

    Args:
        store: folder of generated texts, or a root that ``augment export --traces`` wrote; null
            teaches nothing. Queries without an accepted text there are taught to write nothing.
        recipe: id of the recipe in the store; null takes the one that is meant.
        only: file of query ids, one a line; the others are taught to write nothing, too.
        given: hand the texts over in a test, too, in place of what the model would write itself:
            its own words against those of a teacher.
        refused: what becomes in training of queries whose text was refused (by a check, or by
            ``augment confirm``): skip leaves their pairs out, silent teaches them to write nothing.
        candidates: folder of generated texts that are taught, and given, before the vectors of
            candidates; null embeds these directly. The model writes them itself in a test with
            ``model.encoder.reasoning.candidates``.
        candidates_recipe: id of their recipe; null takes the one that is meant.
    """

    store: str | None = None
    recipe: str | None = None
    only: str | None = None
    given: bool = False
    refused: Literal["silent", "skip"] = "silent"
    candidates: str | None = None
    candidates_recipe: str | None = None

    def open(self) -> WrittenTexts | None:
        """Open the texts.

        Raises:
            DataError: if the ids cannot be read, or there are no texts for them.
            StoreError: see :func:`augment.views.open_view`.
        """
        if self.store is None:
            if self != WrittenConfig(refused=self.refused):
                raise DataError("data.written has settings of texts: name data.written.store")
            return None
        folder = Path(self.store)
        view = (
            open_traces(folder)
            if self.recipe is None and any((folder / "trace").glob("*.parquet"))
            else open_view("query", "replace", folder, self.recipe)
        )
        only = None if self.only is None else read_ids(Path(self.only))
        if self.candidates is None and self.candidates_recipe:
            raise DataError("data.written.candidates_recipe is of texts: name their store as "
                            "data.written.candidates")  # fmt: skip
        corpus = None
        if self.candidates is not None:
            corpus = open_view("corpus", "replace", Path(self.candidates), self.candidates_recipe)
        return WrittenTexts(view, only, self.given, corpus, self.refused == "skip")


@dataclass(frozen=True)
class WrittenTexts:
    """Texts that a model is to write before vectors.

    Attributes:
        view: of the texts of queries.
        only: ids of the queries that are to write; None for all that have a text.
        given: whether tests hand them over.
        corpus_view: of the texts of candidates; None where these write nothing.
        skip: whether training leaves out queries whose text was refused.
    """

    view: TextView
    only: frozenset[str] | None = None
    given: bool = False
    corpus_view: TextView | None = None
    skip: bool = False

    @property
    def name(self) -> str:
        """What a checkpoint remembers."""
        only = "" if self.only is None else f"~only({digest(sorted(self.only))[:12]})"
        corpus = "" if self.corpus_view is None else f"~corpus({self.corpus_view.fingerprint})"
        return f"{self.view.fingerprint}{only}{corpus}{'~skip' if self.skip else ''}"

    def of(self, query_id: str) -> str:
        """What is to be written for a query; empty for nothing."""
        if self.only is not None and query_id not in self.only:
            return ""
        return self.view.generated(query_id) or ""

    def leaves_out(self, query_id: str) -> bool:
        """Whether a query is not trained on, as the text that it was to write was refused."""
        if not self.skip or (self.only is not None and query_id not in self.only):
            return False
        found = self.view.enrichment(query_id)
        return found is not None and bool(found.rejected)

    def of_candidate(self, candidate_id: str) -> str | None:
        """What is to be written for a candidate; None where candidates write nothing."""
        view = self.corpus_view
        return None if view is None else view.generated(candidate_id) or ""


@dataclass(frozen=True)
class TextRecipe:
    """Renders queries and candidates.

    Attributes:
        query_view: text of queries.
        corpus_view: text of candidates.
        rule: how a text is tidied.
        instructions: put before a query's text; None leaves them out.
        mixtures: what training draws from, by side; a side without one shows its view.
        written: what training teaches to write before vectors; None for nothing.
    """

    query_view: TextView
    corpus_view: TextView
    rule: TextRule
    instructions: Instructions | None
    mixtures: Mapping[Side, Mixture] = field(default_factory=dict)
    written: WrittenTexts | None = None

    @property
    def fingerprint(self) -> dict[str, str]:
        """What the text shown outside training is; plain strings."""
        return {
            "query": self.query_view.name,
            "corpus": self.corpus_view.name,
            "rule": self.rule,
            "instructions": "off" if self.instructions is None else self.instructions.name,
            **({"given": self.written.name} if self.written and self.written.given else {}),
        }

    @property
    def trained(self) -> dict[str, str]:
        """What a checkpoint remembers of the text it is trained on: mixtures in place of views."""
        mixed = {str(side): mixture.name for side, mixture in self.mixtures.items()}
        taught = {} if self.written is None else {"written": self.written.name}
        return {**self.fingerprint, **mixed, **taught}

    def candidate(self, item: Item, draw: str = "") -> str | None:
        """Text of a candidate, never with an instruction; None if it has none."""
        return format_text(self._text("corpus", item, draw), self.rule) or None

    def _text(self, side: Side, item: Item, draw: str) -> str | None:
        mixture = self.mixtures.get(side) if draw else None
        if mixture is not None:
            return mixture.draw(item, Random(f"{draw}:{side}:{item.id}"))  # noqa: S311
        return (self.query_view if side == "query" else self.corpus_view).text(item)

    def query(
        self, query: Query, target: Modality, random: Random | None = None, draw: str = ""
    ) -> str | None:
        """Text of a query behind its instruction; None if there is neither.

        Args:
            query: the query.
            target: the wanted candidate's modality; part of the instruction's key.
            random: draws one of the instructions, as in training. None takes the first, so that
                evaluation does not depend on chance (UniIR draws in evaluation too).
            draw: see :meth:`candidate`.

        Raises:
            DataError: if instructions are on and the table has none for this kind of query.
        """
        text = self._text("query", query.item, draw)
        if self.instructions is None:
            return self.instructed(text, None)
        prompts = self.instructions.get(query.item.dataset, query.item.modality, target)
        if not prompts:
            return self.instructed(text, None)
        return self.instructed(text, random.choice(prompts) if random is not None else prompts[0])

    def instructed(self, text: str | None, prompt: str | None) -> str | None:
        """A query's text, tidied, behind an instruction; None if there is neither."""
        if not prompt:
            return format_text(text, self.rule) or None
        # UniIR formats the instruction, joins, and formats again.
        joined = f"{format_text(prompt, self.rule)} {(text or '').strip()}"
        return format_text(joined, self.rule) or None


def check_recipe(
    trained: Mapping[str, str], shown: Mapping[str, str], allow: bool, exact: bool = False
) -> None:
    """Refuse text of another recipe than the one trained on, unless allowed.

    A retriever that was trained on a mixture knows each of its views, so any one of them may be
    shown.

    Args:
        trained: what the checkpoint remembers.
        shown: what the data shows.
        allow: accept anything.
        exact: a view of a mixture does not stand for it, and what is taught to be written counts,
            as where training goes on.

    Raises:
        MismatchError: names what differs and how to go on.
    """
    taught = () if exact else ("written", "given")
    names = [name for name in ({**trained, **shown} if exact else trained) if name not in taught]
    differing = [
        name
        for name in names
        if shown.get(name) != trained.get(name)
        and (
            exact
            or name not in ("query", "corpus")
            or shown.get(name) not in named_views(trained[name])
        )
    ]
    if allow or not differing:
        return
    seen = "; ".join(
        f"{name}: trained on {trained.get(name)}, data shows {shown.get(name)}"
        for name in differing
    )
    raise MismatchError(
        f"the checkpoint was trained on another text recipe ({seen}). Show the same text through "
        "data.query, data.corpus, data.text_rule and data.instructions, or pass "
        "--model.allow_mismatch=true (to embed, mine or rerank: --allow_mismatch=true) to measure "
        "the shift on purpose"
    )


def check_untrained(*views: ViewConfig) -> None:
    """Refuse settings of training where nothing is trained.

    Raises:
        DataError: names them.
    """
    if any(view.varies for view in views):
        raise DataError(
            "mix, dropout and sentences vary the text in training, and nothing is trained here; "
            "leave them out"
        )
