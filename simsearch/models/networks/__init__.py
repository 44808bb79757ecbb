"""The networks, each as in its paper."""
