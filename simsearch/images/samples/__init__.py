"""Drawn pictures, for trying things without any data."""
