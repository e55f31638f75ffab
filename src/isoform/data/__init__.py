"""Where records come from, in what order, in what rows."""
