"""Ladders of runs, laws fitted to them, forecasts, claims."""
