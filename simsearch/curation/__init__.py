"""Finds outliers, wrong labels and images that another index also has, spreads labels, chooses diverse items, and
draws maps.

`cleanup` moves, trashes or hard-links duplicates.
"""
