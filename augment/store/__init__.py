"""The store of generated text: append-only, content-addressed, many writers, no server.

::

    STORE/store.json       version of this layout
    STORE/wal/             one log per living writer, and of those that ended with little in it
    STORE/texts/*.parquet  sealed records; also in pictures/, links/RECIPE/, failures/RECIPE/
    STORE/recipes/ runs/   what was run here; chosen-<side>.json where somebody chose a recipe
    STORE/scores/          tables of python -m augment scores, for the report
    STORE/cache/           may be deleted at any time

A writer appends to its own log (:mod:`augment.store.log`). When the log is long or the run ends,
its records are written to Parquet files that appear under their names complete
(:mod:`augment.store.segments`), then the log is removed. A crash in between leaves both, which
doubles nothing: readers take one row per key, the earliest text and the latest link, whatever the
order of the files. So any number of processes and hosts may write and seal at once.
"""

from augment.store.runs import Scope as Scope
from augment.store.schema import Failure as Failure
from augment.store.schema import Judged as Judged
from augment.store.schema import pair_id as pair_id
from augment.store.schema import reason_class as reason_class
from augment.store.store import Store as Store
