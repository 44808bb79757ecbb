"""From labelled images to one weights file."""
