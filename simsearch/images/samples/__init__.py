"""Draws sample pictures, to try simsearch without any data.

Two pictures of a kind differ in background and light, and in the number, places, sizes, tilts and colours of what they
show. The random generator chooses all of these.
"""
