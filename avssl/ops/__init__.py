"""Operations on embeddings: memory banks, queues, NCE, clustering, optimal transport, neighbors, diagnostics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avssl.exports import offer

if TYPE_CHECKING:
    from avssl.ops.clusters import normalized_mutual_information as normalized_mutual_information
    from avssl.ops.diagnostics import alignment as alignment
    from avssl.ops.diagnostics import effective_rank as effective_rank
    from avssl.ops.diagnostics import embedding_spread as embedding_spread
    from avssl.ops.diagnostics import uniformity as uniformity
    from avssl.ops.kmeans import spherical_kmeans as spherical_kmeans
    from avssl.ops.kmeans import whiten as whiten
    from avssl.ops.memory import MemoryBank as MemoryBank
    from avssl.ops.memory import Queue as Queue
    from avssl.ops.teacher import cosine_momentum as cosine_momentum
    from avssl.ops.transport import self_labels as self_labels
    from avssl.ops.transport import sinkhorn as sinkhorn

offer(
    __name__,
    {
        "clusters": "normalized_mutual_information",
        "diagnostics": "alignment effective_rank embedding_spread uniformity",
        "kmeans": "spherical_kmeans whiten",
        "memory": "MemoryBank Queue",
        "teacher": "cosine_momentum",
        "transport": "self_labels sinkhorn",
    },
)
