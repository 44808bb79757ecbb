"""Models turn pixels into features: networks, runtimes, weights files and descriptors."""
