"""Flagland: a generated world of fictional countries whose truth is known.

Flags come from a grammar (``grammar``, ``edits``), are drawn flat or photo-like (``render``),
spoken about in several ways (``language``), belong to countries (``atlas``) and are written out as
a complete M-BEIR root with the scene graphs beside it (``world``). ``oracle`` tells the truth about
them; the rest makes and scores the two small models.
"""
