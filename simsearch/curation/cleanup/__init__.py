"""Moves, trashes or hard-links the files of duplicates; actions can be undone, and a last copy is never touched."""
