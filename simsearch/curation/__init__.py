"""Finds faults of a data set, and items that represent it, by the exact neighbours of its items."""
