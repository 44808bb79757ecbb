"""Helpers that are independent of images: files, cores, numbers, caches."""
