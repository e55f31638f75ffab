"""Mixers pass information between the tokens of a document: attention, or a scan with a state of fixed size."""
