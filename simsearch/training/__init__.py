"""Training: the loop, its losses, and what makes weights small enough to ship."""
