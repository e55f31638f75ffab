"""Keeping what was learned: the commit protocol and, beside it, other libraries' layouts."""
