"""Checkpoints: the commit protocol, and the formats of other libraries."""
