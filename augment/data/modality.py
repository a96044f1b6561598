"""Modalities as M-BEIR spells them, and the task codes that follow from them."""

from __future__ import annotations

from collections.abc import Mapping

from augment.records import TASKS, Modality

#: Spellings met in published data (the dataset card writes ``text,image``) -> ours.
MODALITIES: Mapping[str, Modality] = {
    "text": "text",
    "image": "image",
    "image,text": "image,text",
    "text,image": "image,text",
}
_CODES = {modalities: code for code, modalities in TASKS.items()}


def derive_task(query_modality: Modality, candidate_modality: Modality | None) -> int | None:
    """The M-BEIR task code of a query, 0 to 8; None while the wanted modality is unknown."""
    return None if candidate_modality is None else _CODES[query_modality, candidate_modality]
