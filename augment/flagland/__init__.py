"""Flagland: a generated world of fictional countries whose truth is known.

Flags come from a grammar (:mod:`augment.flagland.grammar`), are drawn flat or photo-like
(:mod:`augment.flagland.render`), spoken about in several ways (:mod:`augment.flagland.language`)
and written out as a complete M-BEIR root with the scene graphs beside it
(:mod:`augment.flagland.world`).
"""
