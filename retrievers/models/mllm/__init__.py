"""Multimodal language models of the Qwen-VL family as encoders."""
