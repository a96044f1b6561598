"""Engines: what answers requests. ``load_engine`` picks one; only transformers' needs torch."""

from augment.engines.base import Ask, Asked, Engine, EngineOptions, Pause, Replies, load_engine

__all__ = ["Ask", "Asked", "Engine", "EngineOptions", "Pause", "Replies", "load_engine"]
