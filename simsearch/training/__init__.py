"""Training: from labelled images to one weights file."""
