"""Training: configuration, optimizers, metrics, and one readable loop."""
