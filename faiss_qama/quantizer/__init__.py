"""A vector to a code and back; knows no index."""
