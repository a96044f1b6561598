"""Search with a typed query, a picture or both, over the pools of a data root.

::

    from retrievers import Searcher

    searcher = Searcher.open("runs/flags/checkpoints/last.ckpt", "data/flagland")
    for result in searcher.search("a red cross on white", image="photo.jpg", k=10):
        print(result.rank, result.score, result.id, result.text)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import final

from augment.data import DataRoot, InstructionRow
from augment.errors import DataError, StoreError
from augment.records import Item, Modality, one_picture
from augment.views import TextView, open_view
from retrievers.data.datasets import CandidateBook
from retrievers.data.examples import Example, make_inputs
from retrievers.data.texts import TextRecipe
from retrievers.models.loading import load_retriever, open_recipe
from retrievers.search.answers import Answer, Result
from retrievers.search.candidates import datasets, encode, pool_files
from retrievers.search.opening import (
    device_named,
    index_words,
    open_vectors,
    shown_view,
    words_view,
)
from retrievers.search.pictures import QueryPictures
from retrievers.search.rewriting import QueryRewriter
from retrievers.training.base import Retriever
from retrievers.vectors.bm25 import Bm25Index
from retrievers.vectors.index import Index, Vectors

#: In place of a checkpoint: search by words.
BM25 = "bm25"


@final
class Searcher:
    """A retriever, the text it was trained on, and the embedded candidates. See :meth:`open`.

    Searching is safe from several threads; one query is embedded at a time.
    """

    def __init__(
        self,
        retriever: Retriever | None,
        recipe: TextRecipe,
        root: DataRoot,
        pools: Sequence[Path],
        index: Index[Vectors] | Bm25Index,
        shown: TextView,
        rewriter: QueryRewriter | None = None,
        pictures: QueryPictures | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.root = root.path
        self.pictures = pictures or QueryPictures()
        self._notes = tuple(notes)
        self._retriever = retriever
        self._recipe = recipe
        self._book = CandidateBook(pools)
        self._index = index
        self._shown = shown
        self._rewriter = rewriter
        self._lock = Lock()
        self._instructions: tuple[InstructionRow, ...] = ()
        if recipe.instructions is not None:
            found = datasets(pools)
            rows = recipe.instructions.rows
            self._instructions = tuple(row for row in rows if row.dataset_id in found)

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        root: str | Path,
        *,
        store: str | Path | None = None,
        pools: Sequence[str] = (),
        vlm: str | None = None,
        embeddings: str | Path | None = None,
        device: str = "auto",
        allow_mismatch: bool = False,
        pictures: QueryPictures | None = None,
    ) -> Searcher:
        """Load a checkpoint, and the vectors of the candidates or else the candidates themselves.

        Args:
            checkpoint: a ``.ckpt`` file that ``fit`` wrote, or a model to take as it is
                (``flagland-clip``, ``local-dir:FOLDER``, ``hf-hub:NAME``), or ``bm25``: words
                instead of vectors, in published text and, with a store, generated text behind it.
            root: folder in M-BEIR's layout.
            store: folder of generated texts; needed by a checkpoint trained on them, and shown
                beside the results of others.
            pools: names of local pools (``flags`` or ``flags_task0``); none takes all of them.
            vlm: rewrites queries as those of the training were, such as ``flagland-vlm``.
            embeddings: folder of ``python -m retrievers embed``. None takes ``embeddings`` beside
                the checkpoint's folder if that was made by this checkpoint, else embeds.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            allow_mismatch: go on with text of another recipe than the one trained on.
            pictures: where the pictures of queries are kept; shared by several searchers.

        Raises:
            DataError: if there is no such checkpoint, the root has no such pools, or a store is
                needed and not given.
            StoreError: if the store or the embeddings cannot be read.
            MismatchError: if the text is not of the recipe that the checkpoint was trained on, or
                the embeddings are not of this checkpoint.
            EngineError: if there is no such VLM.
        """
        data = DataRoot(Path(root))
        files = pool_files(data, pools)
        texts = None if store is None else Path(store)
        if texts is not None and not texts.is_dir():
            raise StoreError(f"{texts}: no such folder of generated texts")
        if str(checkpoint) == BM25:
            if embeddings is not None or vlm is not None:
                raise DataError("bm25 has no embeddings and no rewritten queries; leave them out")
            recipe = TextRecipe(open_view("query", "raw"), words_view(texts), "plain", None)
            words = index_words(files, recipe)
            return cls(None, recipe, data, files, words, recipe.corpus_view, None, pictures)
        retriever = load_retriever(checkpoint, device_named(device))
        recipe = open_recipe(retriever.trained_on, data, texts, allow_mismatch)
        pictures = pictures or QueryPictures()
        rewriter = (
            QueryRewriter(vlm, pictures.folder, recipe.query_view, allow_mismatch) if vlm else None
        )
        found = open_vectors(retriever, recipe, data, files, device, checkpoint, embeddings)
        shown = shown_view(recipe.corpus_view, texts)
        return cls(
            retriever, recipe, data, files, found.index, shown, rewriter, pictures, found.notes
        )

    def __len__(self) -> int:
        return len(self._index)

    @property
    def corpus_view(self) -> str:
        """Which text of candidates the retriever reads: raw, append or replace."""
        return self._recipe.corpus_view.view

    @property
    def query_view(self) -> str:
        """Which text of queries the retriever was trained on."""
        return self._recipe.query_view.view

    @property
    def score(self) -> str:
        """What the scores are."""
        return "BM25 score" if self._retriever is None else "Cosine similarity"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about every search."""
        if self._rewriter is not None or self.query_view == "raw":
            return self._notes
        return (
            *self._notes,
            "the retriever was trained on rewritten queries and gets them as typed; name a model "
            "with --vlm to have them rewritten",
        )

    def rewrite_with(self, vlm: str, allow_mismatch: bool = False) -> None:
        """Have queries rewritten from now on; see :meth:`open`.

        Raises:
            EngineError: if there is no such VLM.
            MismatchError: if the training queries were not rewritten, or otherwise.
        """
        view = self._recipe.query_view
        self._rewriter = QueryRewriter(vlm, self.pictures.folder, view, allow_mismatch)

    @property
    def vlm(self) -> str | None:
        """Name of the model that rewrites queries."""
        return None if self._rewriter is None else self._rewriter.model

    def instructions(self, modality: Modality | None = None) -> tuple[InstructionRow, ...]:
        """Rows of the root's table for the searched data sets, and for one kind of query.

        Empty where the retriever was trained without instructions.
        """
        return tuple(
            row
            for row in self._instructions
            if row.prompts and modality in (None, row.query_modality)
        )

    def item(self, id: str) -> Item | None:  # noqa: A002 - the word of the format
        """A candidate as published, or None."""
        return self._book.find(id)

    def search(
        self,
        query: str = "",
        image: str | Path | None = None,
        k: int = 10,
        instruction: str | None = None,
    ) -> Answer:
        """The best candidates for a query.

        Args:
            query: text; may be empty where there is a picture.
            image: file of a picture.
            k: how many candidates, at least 1.
            instruction: put before the query. None takes the first one that the root has for this
                kind of query, an empty one leaves it out.

        Raises:
            DataError: if there is neither text nor picture, or ``k`` is below 1.
            ImageError: if the picture cannot be used.
            EngineError: if the VLM cannot rewrite the query.
        """
        return self.search_picture(
            query, None if image is None else self.pictures.add_file(image), k, instruction
        )

    def search_picture(
        self,
        query: str = "",
        picture: str | None = None,
        k: int = 10,
        instruction: str | None = None,
    ) -> Answer:
        """As :meth:`search`, with a picture by its name in :attr:`pictures`."""
        text = query.strip() or None
        if text is None and picture is None:
            raise DataError("the query is empty; type a text or give a picture")
        if k < 1:
            raise DataError(f"cannot find {k} candidates; ask for at least 1")
        modality: Modality = (
            "text" if picture is None else "image" if text is None else "image,text"
        )
        digest = hashlib.sha256(f"{text}\0{picture}".encode()).hexdigest()[:16]
        item = Item(f"typed:{digest}", text, one_picture(picture), modality)
        with self._lock:
            notes: list[str] = []
            shown, rewritten = text, None
            if self._rewriter is not None:
                shown, rewritten, note = self._rewriter(item)
                notes += [note] if note else []
            asked = self._instruction(modality, instruction, notes)
            read = self._recipe.instructed(shown, asked)
            if read is None and picture is None:
                raise DataError(f"nothing is left of the query {text!r}; type some words")
            results = self._find(read, picture, k, notes)
        seen = picture is not None and self._retriever is not None
        return Answer(results, read, seen, asked, rewritten, tuple(notes))

    def _instruction(self, modality: Modality, given: str | None, notes: list[str]) -> str | None:
        if self._recipe.instructions is None:
            if given:
                notes.append("the retriever was trained without instructions; none was used")
            return None
        if given is not None:
            return given.strip() or None
        rows = self.instructions(modality)
        if not rows:
            notes.append(f"the root has no instruction for queries of kind {modality!r}")
            return None
        names = dict.fromkeys(row.dataset_name for row in rows)
        if len(names) > 1:
            notes.append(
                f"{len(names)} data sets have an instruction for such a query; that of "
                f"{rows[0].dataset_name} was taken"
            )
        return rows[0].prompts[0]

    def _find(
        self, text: str | None, picture: str | None, k: int, notes: list[str]
    ) -> tuple[Result, ...]:
        if isinstance(self._index, Bm25Index):
            if picture is not None:
                notes.append("BM25 reads words and does not see the picture")
            run = self._index.run(["query"], [text], k, "words") if text is not None else None
            hits = run.to_run()["query"] if run is not None else []
            return tuple(
                self._result(rank, hit.score, hit.did) for rank, hit in enumerate(hits, start=1)
            )
        assert self._retriever is not None  # noqa: S101 - only bm25 has none
        image = None
        if picture is not None:
            image = self._retriever.processor.image(self.pictures.open(picture))
        batch = make_inputs([Example(0, text, image)], self._retriever.processor)
        vector = encode(self._retriever, batch, "query")
        found = self._index.search(vector, min(k, len(self._index)))
        ids, scores = self._index.ids.take(found.rows[0]).to_pylist(), found.scores[0].tolist()
        return tuple(
            self._result(rank, score, did)
            for rank, (did, score) in enumerate(zip(ids, scores, strict=True), start=1)
        )

    def _result(self, rank: int, score: float, did: str) -> Result:
        item = self._book.find(did)
        assert item is not None  # noqa: S101 - the index was made from the plan
        found = self._shown.enrichment(did)
        generated = found.text if found is not None and not found.rejected else None
        return Result(rank, round(score, 6), did, item.text, generated, item.image)
