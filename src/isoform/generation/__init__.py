"""Generation: from logits to pieces, one at a time, with a cache."""
