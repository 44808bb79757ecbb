"""Helpers that know nothing of images: files, cores, numbers, caches."""
