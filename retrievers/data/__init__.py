"""From records to what an encoder reads: examples, pairs, plans of an evaluation."""
