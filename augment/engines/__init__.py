"""Engines: what answers requests. ``make_engine`` picks one by name; only ``hf`` needs torch."""

from augment.engines.base import Engine, EngineOptions, Replies, make_engine

__all__ = ["Engine", "EngineOptions", "Replies", "make_engine"]
