"""A worker's time for the eight views of multi-crop (two of 224 px, six of 96) against one view of the same sample.

    python benchmarks/multi_crop.py [--rounds 9] [--clips 12]

Views with one clip number share the decoded frames. Measured is the CPU time of one thread from the shard file to a
stacked batch in shared memory; the methods take turns. Videos are clips of 8 frames of the loader's corpus, images are
JPEGs of 340 x 256 px of its films.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl.data.batch import Collate
from avssl.data.read_views import raw_views
from avssl.data.workers import keep_freed_memory
from avssl.media.decode import read_video
from avssl.shards.shard_set import ShardSet
from avssl.transforms.config import ViewsConfig
from avssl.types import Modality, View
from benchmarks.claims import Claim, command_line, machine, median_ratio, publish, take_turns
from benchmarks.loader import received
from benchmarks.loader_clips import FOLDER, prepared, write_shards

CONFIG = ViewsConfig()


def views_of(modality: Modality) -> list[View]:
    """SwAV's two large and six small crops."""
    large = [View(f"large{number}", modality, "swav_large") for number in range(2)]
    return large + [View(f"small{number}", modality, "swav_small") for number in range(6)]


def image_shards(films: list[Path]) -> Path:
    """The folder of shards with eight JPEGs of each film."""
    folder, shards = FOLDER / "images", FOLDER / "image_shards"
    if not (shards / "index.json").is_file():
        folder.mkdir(exist_ok=True)
        for film in films:
            for number, frame in enumerate(read_video(str(film), range(8))):
                Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{film.stem}_{number}.jpg", quality=95)
        write_shards(folder, shards)
    return shards


def claim(modality: Modality, folder: Path, rounds: int, num_samples: int) -> Claim:
    """The row of a modality."""
    shards = ShardSet(folder)
    many = views_of(modality)
    collate = Collate()

    def batch(views: list[View], first: int) -> None:
        rows = []
        for number in range(first, first + num_samples):
            epoch, index = divmod(number, len(shards))
            rows.append((index, raw_views(shards, index, views, CONFIG, 3, epoch)))
        received(collate(rows))  # type: ignore[arg-type]

    seconds: dict[str, list[float]] = {"many": [], "one": []}
    for number in range(rounds):
        first = number * num_samples  # both methods read the same seconds
        methods = {"many": partial(batch, many, first), "one": partial(batch, many[:1], first)}
        for name, values in take_turns(methods, 1, time.process_time, warm_up_rounds=int(number == 0)).items():
            seconds[name] += values
    milliseconds = {name: 1e3 * median(values) / num_samples for name, values in seconds.items()}
    return Claim(
        f"multi-crop (2 + 6 views), {modality}: a worker's time",
        milliseconds["many"],
        milliseconds["one"],
        "ms/sample",
        "one view of 224 px",
        median_ratio(seconds["many"], seconds["one"]),
        "at most",
        1.5,
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=12, help="videos in a round; images are four times as many")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    # As in a worker, where batches are stacked in shared memory.
    torch.utils.data._utils.worker._worker_info = SimpleNamespace()  # type: ignore[assignment]
    print(machine())
    films, shards = prepared()
    rows = [
        claim("video", shards, arguments.rounds, arguments.clips),
        claim("image", image_shards(films), arguments.rounds, 4 * arguments.clips),
    ]
    publish(rows, arguments.json)


if __name__ == "__main__":
    main()
