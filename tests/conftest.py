"""Session-wide fixtures: a tiny corpus as shards, made once."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
# One unless asked otherwise: the test runner uses a process per core. Commands that tests start follow it, too.
NUM_THREADS = os.environ.get("AVSSL_TEST_THREADS", "1")
torch.set_num_threads(int(NUM_THREADS))
# By how many of 256 levels a resized byte may differ from torchvision's: it resizes bytes in fixed point, as we do,
# where PyTorch has AVX2, and elsewhere in float32, which may round another way.
HAS_AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
RESIZE_LEVELS = 0 if HAS_AVX2 else 1

# A run of the recipes that takes a second or two: small frames, short audio, narrow networks.
TINY = [
    "cpu=true",
    "mixed_precision=fp32",
    "log_every_steps=1",
    "data.global_batch_size=4",
    "data.num_workers=0",
    "data.order_lanes=2",
    "views.video.num_frames=4",
    "views.video.size_px=32",
    "views.audio.seconds=0.5",
    "views.audio.window_samples=256",
    "views.audio.hop_samples=480",
    "views.audio.num_frames=25",
    "encoders.video={name: avid_video, depth: 10, width: 2}",
    "encoders.audio={name: avid_audio, width: 2}",
    "loss.num_negatives=8",
    "loss.projector_hidden_dims=[16]",
    "loss.embedding_dim=8",
    "optim.lr=1e-3",
]
TINY_CMA = ["loss.num_positives=2", "loss.num_negatives_within=4", "loss.search_every_epochs=1"]


def run_python(*arguments, check=True, **environment):
    """A command of the project as a user runs it, on one thread; the finished process with its output as text."""
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": NUM_THREADS} | environment,
    )
    if check and process.returncode:
        raise AssertionError(f"{arguments} left with {process.returncode}\n{process.stdout}\n{process.stderr}")
    return process


def run_ranks(num_processes, claim, *arguments):
    """A claim of tests/ranks.py on this many processes of torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", num_processes]
    return run_python(*launcher, "-m", "tests.ranks", claim, *arguments, EXPECTED_WORLD_SIZE=str(num_processes))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with train/ (18 clips) and test/ (6 clips) as real media files with labels.csv."""
    from data_prep.demo.corpus import make_demo_corpus

    folder = tmp_path_factory.mktemp("corpus")
    make_demo_corpus(
        folder, num_train=18, num_test=6, seed=3, size_px=32, duration_seconds=1.5, workers=1, progress=False
    )
    return folder


@pytest.fixture(scope="session")
def shards(corpus, tmp_path_factory):
    """{"train": shard folder of 18 samples in 3 shards, "test": of 6 samples}."""
    from data_prep.index.build import IndexOptions, build_manifest
    from data_prep.transcode.options import WriteOptions
    from data_prep.write.run import write_shards

    folder = tmp_path_factory.mktemp("shards")
    for split in ("train", "test"):
        manifest = folder / f"{split}.jsonl"
        build_manifest(corpus / split, manifest, IndexOptions(labels=str(corpus / split / "labels.csv")))
        write_shards(manifest, folder / split, WriteOptions(short_side_px=32, samples_per_shard=7))
    return {split: folder / split for split in ("train", "test")}


@pytest.fixture(scope="session")
def tiny_run(shards, tmp_path_factory):
    """A finished AVID run of three steps on the tiny shards."""
    run = tmp_path_factory.mktemp("runs") / "avid"
    run_python(
        "recipes/pretrain.py",
        "recipes/configs/avid.yaml",
        *TINY,
        f"run={run}",
        f"data.shards={shards['train']}",
        "steps=3",
    )
    return run


@pytest.fixture(scope="session")
def image_shards(tmp_path_factory):
    """Shards of twelve synthetic images of two classes."""
    import numpy as np
    from PIL import Image

    from data_prep.index.build import IndexOptions, build_manifest
    from data_prep.transcode.options import WriteOptions
    from data_prep.write.run import write_shards

    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(12):
        path = folder / "images" / ("light" if number % 2 else "dark") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        low = 128 if number % 2 else 0
        Image.fromarray(generator.integers(low, low + 128, size=(40, 48, 3), dtype=np.uint8)).save(path)
    build_manifest(folder / "images", folder / "images.jsonl", IndexOptions())
    write_shards(folder / "images.jsonl", folder / "shards", WriteOptions(samples_per_shard=5))
    return folder / "shards"


@pytest.fixture
def own_registries():
    """What this test registers is gone afterwards: other tests of this process list the losses and the encoders."""
    from avssl import losses, models

    losses.names()  # Each file registers once, when it is imported: all must be there before the copy is made.
    kept = [(table, dict(table)) for table in (losses.registry._REGISTRY, models.ENCODERS)]
    yield
    for table, before in kept:
        table.clear()
        table.update(before)


def pytest_collection_modifyitems(items):
    """Of a test marked quick(n) the first n cases are quick, and the others are slow: a grid keeps a representative."""
    seen = Counter()
    for item in items:
        mark = item.get_closest_marker("quick")
        if mark is None:
            continue
        test = item.nodeid.partition("[")[0]
        seen[test] += 1
        if seen[test] > mark.args[0]:
            item.add_marker("slow")
