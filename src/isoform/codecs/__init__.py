"""Codecs: records to pieces and back, one file per kind of data."""
