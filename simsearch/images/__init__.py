"""Finding, reading, decoding and preparing images."""
