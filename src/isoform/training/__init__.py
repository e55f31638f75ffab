"""Training: configuration, optimizers, the ledger of work and one readable loop."""
