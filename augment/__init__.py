"""Offline enrichment: from M-BEIR files to generated text with provenance."""
