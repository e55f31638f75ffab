"""Inspection of training rows, attention and hidden states."""
