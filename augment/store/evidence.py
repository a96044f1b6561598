"""What was in the engine when a process died, so that an item that kills it can be found.

Before requests enter the engine, a writer logs their keys (a ``try`` record). Keys of a dead writer
that got neither a text nor a failure were in flight: one of them may have killed it. If the
supervising process saw the death (see :mod:`augment.enrichment.supervise`), that is strong evidence. If nobody
saw it, a power cut or a user's kill is more likely, so it counts only when it happens again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import final

#: An item that was alone in the engine at so many deaths is set aside.
SEEN_ALONE = 2
UNSEEN_ALONE = 5


@final
@dataclass(frozen=True)
class Death:
    """One death of a writer.

    Attributes:
        source: name of its log, so that a death is counted once.
        keys: in flight at that moment.
        seen: whether the supervising process saw it die.
        at: time of its last record.
    """

    source: str
    keys: frozenset[str]
    seen: bool
    at: int


@final
@dataclass(frozen=True)
class Suspects:
    """What the deaths so far say.

    Attributes:
        groups: to be asked in halves, the largest first, each key once.
        aside: keys that died alone too often.
    """

    groups: tuple[frozenset[str], ...] = ()
    aside: frozenset[str] = frozenset()


def suspects(deaths: Iterable[Death], settled: Callable[[str, int], bool]) -> Suspects:
    """Who may have killed the engine.

    Args:
        deaths: all that are known.
        settled: whether a key has a text, or a failure since a time.
    """
    open_: list[Death] = []
    alone: Counter[str] = Counter()
    alone_seen: Counter[str] = Counter()
    for death in deaths:
        keys = frozenset(key for key in death.keys if not settled(key, death.at))
        if keys:
            open_.append(replace(death, keys=keys))
            if len(death.keys) == 1:
                alone.update(keys)
                alone_seen.update(keys if death.seen else ())
    aside = {key for key in alone if alone_seen[key] >= SEEN_ALONE or alone[key] >= UNSEEN_ALONE}
    groups: list[frozenset[str]] = []
    taken = set(aside)
    for death in sorted(open_, key=lambda death: (len(death.keys), death.source)):
        strong = death.seen or any(
            other is not death and death.keys & other.keys for other in open_
        )
        keys = death.keys - taken
        if strong and keys:
            groups.append(keys)
            taken |= keys
    return Suspects(tuple(reversed(groups)), frozenset(aside))
