"""Searching for people and for training: typed queries, the page, mined negatives."""
