"""faiss-qama as a client of VectorDBBench; README.md says how to register it."""
