"""Looking at what a model is given and at what it does with it."""
