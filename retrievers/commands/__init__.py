"""Commands that are no functions yet."""
