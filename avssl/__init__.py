"""avssl: self-supervised learning on audio and video."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from avssl.files.plain_text import PlainRecords
from avssl.version import __version__

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder

__all__ = ["__version__", "load_embedder"]

logging.getLogger("avssl").addFilter(PlainRecords())

_CHECKOUT = Path(__file__).parents[1]
if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "recipes").is_dir():
    __path__.append(str(_CHECKOUT))  # `avssl.recipes` lies beside the package here, and in it once installed


def load_embedder(run: str, device: str = "cpu") -> Embedder:
    """Embedder of a finished run, of an exchange folder, or of a hub's `owner/name` or `hf://owner/name[@revision]`.

    The hub is asked for a name only if no folder of that name exists; that needs the extra `hub`. The class is
    avssl.embedding.embedder.Embedder. The heavy imports happen here, not at `import avssl`.
    """
    from avssl import checkpoint
    from avssl.embedding.embedder import Embedder

    return Embedder.from_run(checkpoint.locate(run), device=device)
