"""The networks, each after its paper."""
