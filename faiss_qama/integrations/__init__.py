"""Clients of vector indexes that refuse a Python object, or ask for more than a search: a file a client."""
