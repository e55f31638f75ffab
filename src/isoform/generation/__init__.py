"""Generation: from logits to tokens, one at a time, with a cache."""
