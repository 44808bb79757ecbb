"""From pixels to features: networks, runtimes, weights files and descriptors."""
