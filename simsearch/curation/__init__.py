"""What is wrong with a data set, and what represents it: judged by the exact neighbours of its items."""
