"""Heads: (features, previous=None, *, train) -> (logits, out) at their own resolution."""
