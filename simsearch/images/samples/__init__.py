"""Drawn pictures, for trying things without any data.

Everything in which two pictures of a kind differ (colour, number, place, size, tilt, light, background) comes from the
random generator.
"""
