"""QamaIndex, its factory, and its parts."""
