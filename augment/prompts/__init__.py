"""Prompts: versioned templates, a folder a paper, and which one an item gets."""

from augment.prompts.prompt import (
    Budget,
    Prompt,
    PromptForm,
    PromptKind,
    load_prompt,
    parse_budget,
    within,
)

__all__ = [
    "Budget",
    "Prompt",
    "PromptForm",
    "PromptKind",
    "load_prompt",
    "parse_budget",
    "within",
]
