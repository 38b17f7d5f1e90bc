"""Embeddings, one ranking of them, what is measured on it, and the protocols and splits that others measure by.

Nothing here trains, reads a config or writes a run's files.
"""

from metabin_jax.evaluation.distances import distance
from metabin_jax.evaluation.embedding import embed
from metabin_jax.evaluation.metrics import RetrievalMetrics, rank_metrics, retrieval_metrics
from metabin_jax.evaluation.protocol import QueryGallery, query_gallery, ranking_metrics
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
    "ranking_metrics",
    "rerank",
    "retrieval_metrics",
    "verification",
]
