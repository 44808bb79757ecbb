"""Short binary codes from a deep autoencoder."""
