"""What numba compiles; importing this package compiles nothing."""
