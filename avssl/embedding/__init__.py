"""Embeddings: encoding windows of files and shards, tables of rows, and search in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avssl.exports import offer

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder as Embedder
    from avssl.embedding.search import EmbeddingIndex as EmbeddingIndex
    from avssl.embedding.search import search as search
    from avssl.embedding.table import EmbeddingTable as EmbeddingTable

offer(
    __name__,
    {
        "embedder": "Embedder",
        "search": "EmbeddingIndex search",
        "table": "EmbeddingTable",
    },
)
