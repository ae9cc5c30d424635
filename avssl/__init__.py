"""avssl: self-supervised learning on audio and video."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avssl.files.plain_text import PlainRecords
from avssl.version import __version__

if TYPE_CHECKING:
    from avssl.embedding.embedder import Embedder

__all__ = ["__version__", "load_embedder", "run_plugins"]

logging.getLogger("avssl").addFilter(PlainRecords())

_CHECKOUT = Path(__file__).parents[1]
if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "recipes").is_dir():
    __path__.append(str(_CHECKOUT))  # `avssl.recipes` lies beside the package here, and in it once installed


def run_plugins(*files: str, may_differ: bool = False) -> None:
    """Run Python files of your own that register losses, encoders, augments or tasks (docs/plugins.md).

    Their names are then known to all of avssl in this process and its workers. may_differ: the files may have other
    contents than those of the same name that a run was made with.
    Raises PluginError, a ValueError, for a file that is missing or fails, with its name and line.
    """
    from avssl.plugins import required

    required.use(files, may_differ=may_differ)


def load_embedder(
    run: str, device: str = "cpu", *, plugins: Sequence[str] = (), changes: Sequence[str] = ()
) -> Embedder:
    """Embedder of a finished run, of an exchange folder, or of a hub's `owner/name` or `hf://owner/name[@revision]`.

    plugins: files of your own that the run was made with; they are run first, and must have the same contents.
    Or of a public model, `timm/NAME`, `hf/ORG/NAME[@revision]` or `hf/FOLDER`: `changes` are then keys of its views and
    encoders, such as ["views.video.fps=2"].

    The hub is asked for a name only if no folder of that name exists; that needs the extra `hub`. The class is
    avssl.embedding.embedder.Embedder. The heavy imports happen here, not at `import avssl`.
    """
    from avssl import checkpoint
    from avssl.embedding.embedder import Embedder
    from avssl.embedding.public import names_public_model

    if plugins:
        run_plugins(*plugins)
    found = run if names_public_model(run) else checkpoint.locate(run)
    return Embedder.from_run(found, device=device, changes=changes)
