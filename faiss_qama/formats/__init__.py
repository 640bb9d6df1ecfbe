"""Files that hold vectors: a reader for each format, all alike to their callers."""
