"""Measurements, a module for each file or family of files in docs/results."""
