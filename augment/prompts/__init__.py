"""Prompts: versioned templates, a folder a paper, and which one an item gets."""

from augment.prompts.prompt import Prompt, PromptForm, PromptKind, load_prompt

__all__ = ["Prompt", "PromptForm", "PromptKind", "load_prompt"]
