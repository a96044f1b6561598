"""A page about two runs: ``python -m benchmarks.report A B``."""

from benchmarks.report.page import write_report

__all__ = ["write_report"]
