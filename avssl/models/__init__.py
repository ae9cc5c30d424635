"""Encoders by name, such as `create_encoder("avid_video", depth=10, width=8)`, and heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avssl.exports import offer

if TYPE_CHECKING:
    from avssl.models.create import create_encoder as create_encoder
    from avssl.models.create import without_weights as without_weights
    from avssl.models.heads import mlp as mlp
    from avssl.models.registry import ENCODERS as ENCODERS
    from avssl.models.registry import EncoderEntry as EncoderEntry
    from avssl.models.registry import register_encoder as register_encoder

offer(
    __name__,
    {
        "create": "create_encoder without_weights",
        "heads": "mlp",
        "registry": "ENCODERS EncoderEntry register_encoder",
    },
)
