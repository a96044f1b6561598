"""Checks of a whole data root, for :mod:`augment.validate`."""

from augment.validation.report import FileStats, Finding, Report
from augment.validation.run import Options, validate_root

__all__ = ["FileStats", "Finding", "Options", "Report", "validate_root"]
