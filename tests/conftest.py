"""What all tests share."""

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The same examples in every run; `--hypothesis-profile=default` draws new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

#: Kinds of warnings by which other packages announce what they will change.
ANNOUNCEMENTS = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "UserWarning")

#: pytest's own note of the test that runs.
CURRENT = "PYTEST_CURRENT_TEST"


def pytest_configure(config: pytest.Config) -> None:
    if sys.version_info < (3, 11):
        # asyncio 3.10 forgets the socket of a connection that is cancelled while it is made; the
        # warning comes when the collector closes it, in whatever test runs then.
        config.addinivalue_line("filterwarnings", "ignore:unclosed:ResourceWarning")
    if os.environ.get("DEPRECATIONS") == "error":
        return  # `make test-latest`: what others announce is an error there, and only there
    for kind in ANNOUNCEMENTS:
        config.addinivalue_line("filterwarnings", f"ignore::{kind}")
        for package in ("augment", "retrievers", "benchmarks", "tests"):
            config.addinivalue_line("filterwarnings", rf"error::{kind}:{package}(\..*)?$")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What a test leaves in the environment reaches no other: Lightning leaves ranks and ports."""
    before = {name: value for name, value in os.environ.items() if name != CURRENT}
    yield
    for name in set(os.environ) - set(before) - {CURRENT}:
        del os.environ[name]
    os.environ.update(before)
