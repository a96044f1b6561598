"""Everything with weights: retrievers, their training, embedding, search and scoring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrievers.search.answers import Answer, Result
    from retrievers.search.searcher import Searcher

__all__ = ["Answer", "Result", "Searcher"]


def __getattr__(name: str) -> Any:
    """Load what a search needs when it is asked for, so that the import itself stays light."""
    if name in __all__:
        from retrievers.search import searcher

        return getattr(searcher, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
