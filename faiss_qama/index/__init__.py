"""QamaIndex and its parts."""
