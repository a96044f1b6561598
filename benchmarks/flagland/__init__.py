"""Flagland: a generated world of fictional countries whose truth is known.

Flags come from a grammar (:mod:`benchmarks.flagland.grammar`), are drawn flat or photo-like
(:mod:`benchmarks.flagland.render`), spoken about in several ways (:mod:`benchmarks.flagland.language`)
and written out as a complete M-BEIR root with the scene graphs beside it
(:mod:`benchmarks.flagland.world`).
"""
