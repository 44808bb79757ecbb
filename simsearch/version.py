"""The version of simsearch."""

__version__ = "0.1.0"
