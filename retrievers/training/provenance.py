"""Where weights come from: data, text, command and versions of the fit that made them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from retrievers.data.module import MBeirData
from retrievers.evaluation.versions import source_commit, versions


def origin_of_fit(
    data: MBeirData, arguments: Sequence[str] | None, cut_text: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a checkpoint remembers of its training data; plain values.

    Reads every byte of pools and training queries once, to hash them.

    Args:
        data: the data of a running fit.
        arguments: of the command line; None if there was none.
        cut_text: what the context of the text encoder cuts off; None where it is not known.
    """
    found = {
        "data": {"cut_text": cut_text, **data.describe()},
        "sha256": data.digest(),
        "command": None
        if arguments is None
        else shlex.join(["python", "-m", "retrievers", *arguments]),
        "versions": versions(),
        "commit": source_commit(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain
