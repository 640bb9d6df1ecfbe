"""Methods from the literature, kept to compare with; no default uses them, and they need torch.

What each is worth is in docs/results/training.md. The published adapters and thresholds stay beside ours, in
``gradient/adapter.py``, ``gradient/gradient_estimators.py`` and ``thresholds.py``, because each is a line or two there.
"""
