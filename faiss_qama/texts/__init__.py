"""Texts to vectors (extra embed)."""
