"""Offline enrichment: from M-BEIR files to generated text with provenance.

::

    from augment import DataRoot, Store, enrich, load_engine, open_view

What is named here is loaded when it is used, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from augment.checks import Limits as Limits
    from augment.data import DataRoot as DataRoot
    from augment.data.sources import import_data as import_data
    from augment.engines import Engine as Engine
    from augment.engines import load_engine as load_engine
    from augment.enrichment.account import Summary as Summary
    from augment.enrichment.export import export as export
    from augment.enrichment.pipeline import Options as Options
    from augment.enrichment.pipeline import enrich as enrich
    from augment.prompts import Prompt as Prompt
    from augment.prompts import load_prompt as load_prompt
    from augment.records import Enrichment as Enrichment
    from augment.records import Item as Item
    from augment.records import Query as Query
    from augment.store import Store as Store
    from augment.store.report import report as report
    from augment.store.upkeep import differences as differences
    from augment.store.upkeep import merge as merge
    from augment.store.upkeep import status as status
    from augment.store.upkeep import verify as verify
    from augment.views import TextView as TextView
    from augment.views import open_view as open_view

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
