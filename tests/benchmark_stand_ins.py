"""What ann-benchmarks and VectorDBBench ask of a module and a client, for where they are not installed.

The signatures are those of ``ann_benchmarks/algorithms/base/module.py`` at commit f402b2c of
github.com/erikbern/ann-benchmarks, and of ``backend/clients/api.py`` and ``backend/filter.py`` in the wheel of
vectordb-bench 2.0.0. Where the packages can be imported, a test compares them.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
from abc import ABC, abstractmethod
from types import ModuleType

import pydantic


def provide(name, **contents):
    """Put a module into ``sys.modules``, with the packages above it."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        above = sys.modules.setdefault(".".join(parts[:end]), ModuleType(".".join(parts[:end])))
        above.__path__ = []
    vars(above).update(contents)


class BaseANN:
    def done(self):
        pass

    def fit(self, X):
        pass

    def query(self, q, n):
        return []

    def batch_query(self, X, n):
        self.res = [self.query(q, n) for q in X]

    def get_batch_results(self):
        return self.res


class FilterOp(str, enum.Enum):
    NumGE = "NumGE"
    StrEqual = "Label"
    NonFilter = "NonFilter"


class NonFilter:
    type = FilterOp.NonFilter


@dataclasses.dataclass
class IntFilter:
    int_value: int
    filter_rate: float
    type = FilterOp.NumGE


@dataclasses.dataclass
class LabelFilter:
    label_percentage: float
    type = FilterOp.StrEqual

    @property
    def label_value(self):
        percent = self.label_percentage * 100
        return f"label_{int(percent)}p" if percent >= 1 else f"label_{percent:.1f}p"


class MetricType(str, enum.Enum):
    L2 = "L2"
    COSINE = "COSINE"
    IP = "IP"
    DP = "DP"


class DBConfig(ABC, pydantic.BaseModel):
    db_label: str = ""

    @abstractmethod
    def to_dict(self): ...


class DBCaseConfig(ABC):
    @abstractmethod
    def index_param(self): ...

    @abstractmethod
    def search_param(self): ...


class VectorDB(ABC):
    supported_filter_types = [FilterOp.NonFilter]

    @classmethod
    def filter_supported(cls, filters):
        return filters.type in cls.supported_filter_types

    def need_normalize_cosine(self):
        return False

    def prepare_filter(self, filters):
        return

    @abstractmethod
    def __init__(self, dim, db_config, db_case_config, collection_name, drop_old=False, **kwargs): ...

    @abstractmethod
    def init(self): ...

    @abstractmethod
    def insert_embeddings(self, embeddings, metadata, labels_data=None, tenant_labels_data=None, **kwargs): ...

    @abstractmethod
    def search_embedding(self, query, k=100, payload_profile="ids_only", tenant=None): ...

    @abstractmethod
    def optimize(self, data_size=None): ...


try:
    import ann_benchmarks.algorithms.base.module  # noqa: F401
except ImportError:
    provide("ann_benchmarks.algorithms.base.module", BaseANN=BaseANN)
try:
    import vectordb_bench.backend.clients.api  # noqa: F401
except ImportError:
    interfaces = (DBConfig, DBCaseConfig, MetricType, VectorDB)
    filters = (FilterOp, NonFilter, IntFilter, LabelFilter)
    provide("vectordb_bench.backend.clients.api", **{kind.__name__: kind for kind in interfaces})
    provide("vectordb_bench.backend.filter", Filter=object, **{kind.__name__: kind for kind in filters})
