"""Measures: recall, ranking metrics, intervals. Fits nothing."""
