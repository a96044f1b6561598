"""A page about two runs: ``python -m benchmarks.report A B``."""
