"""Training by gradient descent: from a quantizer without training to a trained one.

Nothing outside this folder and ``published/`` needs torch (extra ``train``), and ``fit`` imports them only to train.
"""
