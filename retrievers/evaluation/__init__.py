"""Runs, judgements, metrics, and what two runs differ by."""
