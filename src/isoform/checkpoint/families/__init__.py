"""The families of Hugging Face's models: config fields and tensor names beside ours, a family a file.

A family reads a config.json into a ModelConfig and writes one; whether a ModelConfig can be written is decided by
reading back what was written. A new family is a file here, a line in registry.py and a row of tests/families.py.
"""
