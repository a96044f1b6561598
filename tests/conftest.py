"""What all tests share."""

import sys

import pytest
from hypothesis import settings

# The same examples in every run; `--hypothesis-profile=default` draws new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    if sys.version_info < (3, 11):
        # asyncio 3.10 forgets the socket of a connection that is cancelled while it is made; the
        # warning comes when the collector closes it, in whatever test runs then.
        config.addinivalue_line("filterwarnings", "ignore:unclosed:ResourceWarning")
