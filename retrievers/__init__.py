"""Everything with weights: retrievers, their training, embedding, search and scoring."""
