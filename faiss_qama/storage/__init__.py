"""Files on disk: the bundle, and atomic writes."""
