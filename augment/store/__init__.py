"""The store of generated text: append-only, content-addressed, many writers, no server.

::

    STORE/store.json       version of this layout
    STORE/wal/             one log per living writer, and of those that ended with little in it
    STORE/texts/ links/ failures/ pictures/    sealed Parquet files
    STORE/recipes/ runs/   what was run here; chosen-<side>.json where somebody chose a recipe
    STORE/cache/           may be deleted at any time

A writer appends to its own log (:mod:`augment.store.wal`). When the log is long or the run ends,
its records are written to Parquet files that appear under their names complete
(:mod:`augment.store.segments`), then the log is removed. A crash in between leaves both, which
doubles nothing: readers take one row per key, the earliest text and the latest link, whatever the
order of the files. So any number of processes and hosts may write and seal at once.
"""

from augment.store.links import Failure, Judged, Link, as_link
from augment.store.runs import RunRecord, Scope
from augment.store.store import Store
from augment.store.texts import Texts
from augment.store.wal import SYNC_SECONDS

__all__ = [
    "SYNC_SECONDS",
    "Failure",
    "Judged",
    "Link",
    "RunRecord",
    "Scope",
    "Store",
    "Texts",
    "as_link",
]
