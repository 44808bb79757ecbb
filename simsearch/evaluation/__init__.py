"""Measures of quality: classification, retrieval, recall and robustness."""
