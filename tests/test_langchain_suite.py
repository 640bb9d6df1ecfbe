"""LangChain's own suite for vector stores, sync and async: it skips nothing."""

from __future__ import annotations

import pytest

suite = pytest.importorskip("langchain_tests.integration_tests")

import faiss  # noqa: E402
from conftest import fit_quietly, make_vectors  # noqa: E402

from faiss_qama import QamaIndex  # noqa: E402
from faiss_qama.integrations.langchain import QamaVectorStore  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.anyio]


@pytest.fixture
def anyio_backend():
    return "asyncio"


class TestOwnIndex(suite.VectorStoreIntegrationTests):
    @pytest.fixture(params=["EUCLIDEAN_DISTANCE", "COSINE", "MAX_INNER_PRODUCT"])
    def vectorstore(self, request):
        return QamaVectorStore(self.get_embeddings(), distance_strategy=request.param)


class TestGivenIndex(suite.VectorStoreIntegrationTests):
    @pytest.fixture(params=["Flat", "BFlat", "BHNSW32"])
    def vectorstore(self, request):
        quantizer = fit_quietly(make_vectors(300, d=6, unit=False), metric=faiss.METRIC_L2)
        return QamaVectorStore(self.get_embeddings(), QamaIndex(quantizer, base=request.param))
