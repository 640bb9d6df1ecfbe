"""Data sets, exact search, recall, ranking metrics and confidence intervals. Nothing here fits a quantizer."""
