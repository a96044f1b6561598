"""Prompts: versioned templates, a folder a paper, and which one an item gets."""

from augment.prompts.prompt import KINDS, Prompt, PromptForm, load_prompt, within

__all__ = ["KINDS", "Prompt", "PromptForm", "load_prompt", "within"]
