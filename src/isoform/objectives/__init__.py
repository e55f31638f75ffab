"""Objectives: a training task is a view of the data and a loss."""
