"""Encoders: from examples to vectors."""
