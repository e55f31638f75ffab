"""Evaluation: losses and bits per byte, streamed over whole splits."""
