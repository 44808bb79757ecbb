"""The parts of `simsearch.images.decode`: opening, repairing and converting image files."""
