"""Finds faults of a data set, and items that represent it, by exact neighbours; `cleanup` acts on duplicates."""
