"""Acts on the files of duplicates: moves, trash and hard links, each with a way back, and never on a last copy."""
