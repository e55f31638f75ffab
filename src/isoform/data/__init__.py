"""Sources of records, their order, and how they are packed into rows."""
