"""Text embeddings as learned codes of 0.5 to 2 bits per dimension, searched like a FAISS index and re-ranked."""

from faiss_qama._version import __version__
from faiss_qama.index.factory import index_factory
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.quantizer.quantizer import Quantizer

__all__ = ["QamaIndex", "Quantizer", "__version__", "index_factory"]
