"""Retrievers and losses side by side on the same data: ``python -m benchmarks.retrievers``."""
