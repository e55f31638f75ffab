"""Scaling: many runs as one study, wherever their commands run."""
