"""The families of Hugging Face's models: config fields and tensor names mapped to ours, one file per family.

A family reads a config.json into a ModelConfig and writes one; whether it can represent a ModelConfig is decided by
reading the written config back. A new family is a file here, a line in registry.py and a row of tests/families.py.
"""
