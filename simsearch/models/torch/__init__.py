"""Networks run by torch, on the CPU or a GPU."""
