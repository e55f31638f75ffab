"""Ladders of runs whose truth is known, and how well a fit finds it again."""
