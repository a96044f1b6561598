"""Protocols and measurements; no model code."""
