"""Hashing: short binary codes of features, from a deep autoencoder."""
