"""Where weights come from: data, text, command and versions of the fit that made them."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

from retrievers.data import MBeirData
from retrievers.provenance import source_commit, versions


def origin_of_fit(data: MBeirData) -> dict[str, Any]:
    """What a checkpoint remembers of its training data; plain values.

    Reads every byte of pools and training queries once, to hash them.

    Args:
        data: the data of a running fit.
    """
    found = {
        "data": data.describe(),
        "sha256": data.digest(),
        "command": shlex.join(["python", "-m", "retrievers", *sys.argv[1:]]),
        "versions": versions(),
        "commit": source_commit(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain
