"""Draws sample pictures, to try simsearch without any data.

Two pictures of a kind differ in colour, number, place, size, tilt, light and background. The random generator chooses
all of these.
"""
