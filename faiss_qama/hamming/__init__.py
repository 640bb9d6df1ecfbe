"""The first stage: codes by row, and search for the nearest codes by Hamming distance."""
