"""Finds outliers, wrongly labelled items, and images that are also in another index; spreads labels to unlabelled
items; chooses diverse items; draws maps.

`cleanup` moves, trashes or hard-links duplicates.
"""
