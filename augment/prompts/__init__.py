"""Prompts: versioned templates, a folder a paper, and which one an item gets."""

from augment.prompts.prompt import (
    KINDS,
    Budget,
    Prompt,
    PromptForm,
    load_prompt,
    parse_budget,
    within,
)

__all__ = [
    "KINDS",
    "Budget",
    "Prompt",
    "PromptForm",
    "load_prompt",
    "parse_budget",
    "within",
]
