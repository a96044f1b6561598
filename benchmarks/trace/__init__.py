"""TRACE on Flagland: its experiments (YAML), and the judge of its model filter."""
