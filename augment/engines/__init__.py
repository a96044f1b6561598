"""Engines: what answers requests. ``make_engine`` picks one by name; only ``hf`` needs torch."""

from augment.engines.base import Engine, Replies, make_engine

__all__ = ["Engine", "Replies", "make_engine"]
