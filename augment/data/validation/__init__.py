"""Checks of a whole data root, for :mod:`augment.data.validate`."""

from augment.data.validation.report import FileStats, Finding, Report
from augment.data.validation.run import Options, validate_root

__all__ = ["FileStats", "Finding", "Options", "Report", "validate_root"]
