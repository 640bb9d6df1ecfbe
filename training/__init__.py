"""Fitting quantizers. Closed-form fits need numpy alone; nothing here is imported by ``import faiss_qama``."""

from faiss_qama.training.config import FitConfig
from faiss_qama.training.fit import fit

__all__ = ["FitConfig", "fit"]
