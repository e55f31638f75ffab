"""How the tokens of a document hear of each other: attention, or a pass through it with a state of fixed size."""
