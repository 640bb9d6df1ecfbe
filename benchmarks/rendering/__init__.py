"""Tables and pictures of what is in docs/results."""
