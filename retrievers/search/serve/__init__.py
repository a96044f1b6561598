"""``python -m retrievers serve``: search as a small local page."""
