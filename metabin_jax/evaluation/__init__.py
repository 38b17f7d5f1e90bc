"""Embeddings, retrieval metrics and the protocol that says what is a query."""

from metabin_jax.evaluation.embedding import embed
from metabin_jax.evaluation.metrics import RetrievalMetrics, distance, rank_metrics, retrieval_metrics
from metabin_jax.evaluation.protocol import DomainResult, QueryGallery, evaluate_domain, query_gallery

__all__ = [
    "DomainResult",
    "QueryGallery",
    "RetrievalMetrics",
    "distance",
    "embed",
    "evaluate_domain",
    "query_gallery",
    "rank_metrics",
    "retrieval_metrics",
]
