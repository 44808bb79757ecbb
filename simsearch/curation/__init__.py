"""Finds faults and representative items in a data set from exact nearest neighbours; `cleanup` acts on duplicates."""
