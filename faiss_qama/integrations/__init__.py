"""Adapters for clients that need more than a FAISS-like index: one module per client.

``faiss_qama.integrations.langchain.QamaVectorStore`` (extra ``langchain``),
``faiss_qama.integrations.llama_index.QamaVectorStore`` (extra ``llama-index``),
``faiss_qama.integrations.haystack.QamaDocumentStore`` (extra ``haystack``), ``faiss_qama.integrations.txtai.Qama``,
``faiss_qama.integrations.sentence_transformers.semantic_search_faiss``, ``faiss_qama.integrations.mteb.QamaEncoder``
(extra ``mteb``).
"""
