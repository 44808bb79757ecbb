"""Trains networks on labelled images and writes weights files."""
