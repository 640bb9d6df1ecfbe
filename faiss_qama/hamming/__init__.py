"""The first stage: codes by row, the nearest by Hamming distance."""
