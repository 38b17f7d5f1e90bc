"""From features to results: rankings, metrics, re-ranking, verification, intervals, tables, published protocols.

It works on records, features and numbers. Nothing here knows a config or how a model was trained.
"""

from metabin_jax.evaluation.distances import distance
from metabin_jax.evaluation.embedding import embed
from metabin_jax.evaluation.metrics import RetrievalMetrics, rank_metrics, retrieval_metrics
from metabin_jax.evaluation.protocol import QueryGallery, query_gallery
from metabin_jax.evaluation.reranking import query_expansion, rerank
from metabin_jax.evaluation.thresholds import Verification, verification

__all__ = [
    "QueryGallery",
    "RetrievalMetrics",
    "Verification",
    "distance",
    "embed",
    "query_expansion",
    "query_gallery",
    "rank_metrics",
    "rerank",
    "retrieval_metrics",
    "verification",
]
