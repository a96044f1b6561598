"""Each paper, composed of the parts of this toolkit."""
