"""Clients of vector indexes that refuse a Python object, or ask for more than a search: a file a client.

``faiss_qama.integrations.langchain.QamaVectorStore`` (extra ``langchain``),
``faiss_qama.integrations.llama_index.QamaVectorStore`` (extra ``llama-index``),
``faiss_qama.integrations.sentence_transformers.semantic_search_faiss``, ``faiss_qama.integrations.mteb.QamaEncoder``
(extra ``mteb``).
"""
