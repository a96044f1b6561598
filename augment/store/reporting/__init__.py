"""What the report of a store shows, gathered from the store and a root."""
