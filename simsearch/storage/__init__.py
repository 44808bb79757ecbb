"""The files of one index."""
