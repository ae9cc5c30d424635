"""avssl: self-supervised learning on audio and video."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avssl.files.plain_text import PlainRecords
from avssl.version import __version__

if TYPE_CHECKING:
    from avssl.calls import Pretrained
    from avssl.embedding.embedder import Embedder
    from avssl.prepared import Prepared

__all__ = ["__version__", "evaluate", "load_embedder", "prepare", "pretrain", "run_plugins"]

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


# What the commands do, as calls. The heavy imports happen in them, not at `import avssl`.


def prepare(videos: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> Prepared:
    """Make shards of a folder or a list of media or images, as `avssl prep index` and `avssl prep write` do.

    Called again, it goes on where it stopped; if all is done and the media are the same, it writes nothing.

    Args:
        videos: the folder, or a list that `avssl prep index` reads. out: the shard folder, a local one.
        options: those of both commands by name: labels="labels.csv", clip_seconds=10, short_side_px=128, num_workers=4.

    Returns:
        shards and manifest (paths), num_listed, num_samples, num_skipped, skipped_by_reason; as text, the accounting.

    Raises ValueError, FileNotFoundError or OSError with one message that says what to do.
    """
    from avssl import prepared

    return prepared.prepare(videos, out, options)


def pretrain(recipe: str, data: str | os.PathLike[str], out: str | os.PathLike[str] = "", **changes: Any) -> Pretrained:
    """Pretrain by a recipe, as `avssl pretrain RECIPE data.shards=DATA run=OUT key=value ...` does.

    The same call goes on from the newest checkpoint. Ctrl-C, and the stop button of a notebook, save one and return.

    Args:
        recipe: a name of `avssl recipes`, or a YAML. data: a shard folder, its URL, or a folder of media, which is
            prepared first. out: the folder of the run; "" is runs/RECIPE.
        changes: keys as on the command line: epochs=10, and with dots **{"data.global_batch_size": "auto"}.

    Returns:
        run and metrics (paths), steps, is_finished.

    Raises ValueError, OSError or FloatingPointError with one message that says what to do.
    """
    from avssl import calls

    return calls.pretrain(recipe, data, os.fspath(out), changes)


def evaluate(run: str | os.PathLike[str], task: str = "standard", **changes: Any) -> dict[str, Any]:
    """Evaluate a finished run, as `avssl evaluate RUN TASK key=value ...` does, and return the result's content.

    Args:
        run: its folder. task: a task (`avssl evaluate --help`), a name of `avssl recipes` without evaluate/, or a YAML.
        changes: keys as on the command line: train="shards", test="test_shards".

    Returns:
        {"results": {"trained": {metric: value}, "untrained": ...}, "chance": ..., "intervals": ..., ...}

    Raises ValueError or OSError with one message that says what to do.
    """
    from avssl import calls

    return calls.evaluate(os.fspath(run), task, changes)


def load_embedder(
    run: str,
    device: str = "cpu",
    *,
    plugins: Sequence[str] = (),
    changes: Sequence[str] = (),
    checkpoint: str | int = "",
) -> Embedder:
    """Embedder of a finished run, of an exchange folder, or of a hub's `owner/name` or `hf://owner/name[@revision]`.

    plugins: files of your own that the run was made with; they are run first, and must have the same contents.
    Or of a public model, `timm/NAME`, `hf/ORG/NAME[@revision]` or `hf/FOLDER`: `changes` are then keys of its views and
    encoders, such as ["views.video.fps=2"].
    checkpoint: "latest" or a step, of a run that goes on or was stopped. The rows of two steps cannot be compared.

    The hub is asked for a name only if no folder of that name exists; that needs the extra `hub`. The class is
    avssl.embedding.embedder.Embedder. The heavy imports happen here, not at `import avssl`.
    """
    from avssl.checkpoint import locate
    from avssl.embedding.embedder import Embedder
    from avssl.embedding.public import names_public_model
    from avssl.plugins import required

    required.use(plugins)
    found = run if names_public_model(run) else locate(run)
    return Embedder.from_run(found, device=device, changes=changes, checkpoint_name=str(checkpoint))
