"""What tests of retrievers share."""

import pytest

from tests import tiny_vlms
from tests.retrievers.mllms import FAMILIES, TEXTS


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """An untrained model of each family."""
    root = tmp_path_factory.mktemp("models")
    first = tiny_vlms.qwen3(root / "qwen3", TEXTS)
    others = [getattr(tiny_vlms, name)(root / name, first) for name in FAMILIES[1:]]
    return dict(zip(FAMILIES, [first, *others], strict=True))
