"""Texts that stand for several pictures: a retriever cannot tell these apart by them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import final

from augment.records import Enrichment, Item
from augment.store.reporting.tally import Sample


@final
@dataclass(frozen=True)
class Repeats:
    """Accepted texts that were written for several different contents.

    A content is an item's picture, or its text where it has none. Items that send the very same
    share one generation and count once; so does a picture that is asked about in several requests.

    Attributes:
        contents: all different ones that have an accepted text among the repeated.
        texts: how many texts stand for several.
        most: for how many the most repeated one stands.
        words: that one.
        pictures: whether all these contents are pictures.
        samples: one item for each of the most repeated texts.
    """

    contents: int = 0
    texts: int = 0
    most: int = 0
    words: str = ""
    pictures: bool = True
    samples: tuple[Sample, ...] = ()

    @property
    def noun(self) -> str:
        """What the contents are."""
        return "pictures" if self.pictures else "pictures or requests"


def repeats(
    texts: Mapping[str, Enrichment],
    often: Collection[int],
    find: Callable[[str], Item | None],
    most: int,
) -> Repeats:
    """Count the contents of texts that came more than once.

    Args:
        texts: item id -> text.
        often: hashes of texts that several generations gave; only these are looked at.
        find: the item with an id.
        most: how many samples.
    """
    contents: dict[int, set[int]] = defaultdict(set)
    first: dict[int, Sample] = {}
    keys: set[int] = set()
    pictures = True
    for item_id, text in texts.items() if often else ():
        mark, key = hash(text.text), hash(text.key)
        if mark not in often or text.rejected or key in keys:
            continue
        keys.add(key)
        item = find(item_id)
        pictures &= item is None or item.image is not None
        contents[mark].add(hash((item.image or item.text) if item else item_id))
        first.setdefault(mark, Sample(item_id, text))
    numbers = Counter({mark: len(found) for mark, found in contents.items() if len(found) > 1})
    if not numbers:
        return Repeats()
    noun = "pictures" if pictures else "pictures or requests"
    samples = tuple(
        first[mark]._replace(why=f"the very same words for {number:,} different {noun}")
        for mark, number in numbers.most_common(most)
    )
    (top, highest), *_ = numbers.most_common(1)
    said = first[top].text
    words = said.text if said else ""
    return Repeats(numbers.total(), len(numbers), highest, words, pictures, samples)
