"""Codecs: records to tokens and back, one file per kind of data."""
