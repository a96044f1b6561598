"""The texts of one side under one recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, final

from augment.records import Enrichment
from augment.store.keys import Recipe
from augment.store.segments import code

if TYPE_CHECKING:
    from augment.store.store import Store


@final
class Texts(Mapping[str, Enrichment]):
    """Item id -> generated text, read on demand. Pickles as the store's path.

    A text comes with the verdict on it as this item's; a refused text that a retry mended is the
    mended one.

    Attributes:
        recipe: how the texts were made.
    """

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self.recipe = recipe
        self._store = store
        self._links = store.rows("link", recipe.id)

    def __getitem__(self, item_id: str) -> Enrichment:
        link = self._store.linked(self.recipe.id, item_id)
        text = None if link is None else self._store.shown(link)
        if text is None:
            raise KeyError(item_id)
        return text

    def __contains__(self, item_id: object) -> bool:
        link = self._links.get(item_id) if isinstance(item_id, str) else None
        return link is not None and link["key"] in self._store

    def __iter__(self) -> Iterator[str]:
        for link in self._links.scan("item", "key"):
            if link["key"] in self._store:
                yield link["item"]

    def __len__(self) -> int:
        texts = self._store.rows("text")
        found = texts.index.find(self._links.codes("key_code")) >= 0
        count = int(found.sum()) + sum(r["key"] in texts for r in self._links.tail_records())
        if texts.tail:  # links that are sealed to texts that are not: few, of a killed writer
            tail = {code(key) for key in texts.tail}
            missing = self._links.codes("key_code")[~found]
            count += sum(row.tobytes() in tail for row in missing)
        return count

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._store, self.recipe)


def _reopened(store: Store, recipe: Recipe) -> Texts:
    return Texts(store, recipe)
