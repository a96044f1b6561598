"""What tests of retrievers share."""

import pytest
import torch

from tests import tiny_vlms
from tests.retrievers.mllms import FAMILIES, TEXTS
from tests.retrievers.models.test_retriever import make_config, make_root


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """An untrained model of each family."""
    root = tmp_path_factory.mktemp("models")
    first = tiny_vlms.qwen3(root / "qwen3", TEXTS)
    others = [getattr(tiny_vlms, name)(root / name, first) for name in FAMILIES[1:]]
    return dict(zip(FAMILIES, [first, *others], strict=True))


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Squares, for tests that leave them as they are."""
    return make_root(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """Of a small CLIP."""
    return make_config(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def world(root, config, tmp_path_factory):
    """Both, and a folder."""
    return root, config, tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def one_thread():
    """Sums differ in the last bit between numbers of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
