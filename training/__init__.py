"""Fitting quantizers. Closed-form fits need no torch; nothing here is imported by ``import faiss_qama``."""

from faiss_qama.training.config import FitConfig
from faiss_qama.training.fit import fit
from faiss_qama.training.train_config import TrainConfig

__all__ = ["FitConfig", "TrainConfig", "fit"]
