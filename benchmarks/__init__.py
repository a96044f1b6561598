"""Protocols and measurements; no model code."""

from augment.files import legible_output

legible_output()  # every ``python -m benchmarks...`` comes by here
