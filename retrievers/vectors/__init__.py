"""Vectors: kept on disk, made from examples, searched."""
