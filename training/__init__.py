"""Fits quantizers. Only a training needs torch, and ``import faiss_qama`` imports nothing from here."""

from faiss_qama.training.config import FitConfig
from faiss_qama.training.fit import fit
from faiss_qama.training.train_config import TrainConfig

__all__ = ["FitConfig", "TrainConfig", "fit"]
