"""Files on disk: the bundle of an index, and atomic writes."""
