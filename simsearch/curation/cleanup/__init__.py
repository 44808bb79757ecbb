"""Moves, trashes or hard-links duplicates. All actions can be undone; the last copy of a picture is not touched."""
