"""Offline enrichment: from M-BEIR files to generated text with provenance.

::

    from augment import DataRoot, Store, enrich, load_engine, open_view

What is named here is loaded when it is used, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from augment.checks import Limits
    from augment.data import DataRoot
    from augment.data.sources import import_data
    from augment.engines import Engine, load_engine
    from augment.enrichment.account import Summary
    from augment.enrichment.export import export
    from augment.enrichment.pipeline import Options, enrich
    from augment.prompts import Prompt, load_prompt
    from augment.records import Enrichment, Item, Query
    from augment.store import Store
    from augment.store.report import report
    from augment.store.upkeep import differences, merge, status, verify
    from augment.views import TextView, open_view

#: Module -> what of it is named here.
_PLACES = {
    "checks": ("Limits",),
    "data": ("DataRoot",),
    "data.sources": ("import_data",),
    "engines": ("Engine", "load_engine"),
    "enrichment.account": ("Summary",),
    "enrichment.export": ("export",),
    "enrichment.pipeline": ("Options", "enrich"),
    "prompts": ("Prompt", "load_prompt"),
    "records": ("Enrichment", "Item", "Query"),
    "store": ("Store",),
    "store.report": ("report",),
    "store.upkeep": ("differences", "merge", "status", "verify"),
    "views": ("TextView", "open_view"),
}
_MODULE = {name: (module, name) for module, names in _PLACES.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, there = _MODULE[name]
    return getattr(import_module(f"{__name__}.{module}"), there)
