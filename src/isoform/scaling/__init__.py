"""The scaling lab: how loss falls with size, data and compute, with honest intervals."""
