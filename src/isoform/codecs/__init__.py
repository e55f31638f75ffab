"""Codecs: records to tokens and back, one file per type of data."""
