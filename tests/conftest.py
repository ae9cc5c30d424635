"""Session-wide fixtures: a tiny corpus as shards, made once."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

from avssl.eval import intervals

ROOT = Path(__file__).parent.parent
# One unless asked otherwise: the test runner uses a process per core. Commands that tests start follow it, too.
NUM_THREADS = os.environ.get("AVSSL_TEST_THREADS", "1")
torch.set_num_threads(int(NUM_THREADS))
# Of processes that start from here on, those of the test runner among them: idle threads of NumPy's BLAS and of OpenMP
# wait actively, which takes the cores from the other processes.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), NUM_THREADS)
# The intervals of most results are nobody's concern here; the tests of intervals say how many draws they need.
intervals.NUM_DRAWS = 100
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


SERVED = [["-m", name] for name in ("avssl", "data_prep", "avssl.exchange", "avssl.losses", "torch.distributed.run")]


class _Server:
    """A process of tests/command_server.py, started at the first command."""

    process = None

    def run(self, arguments, folder, environment):
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.command_server"],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            )  # fmt: skip
        with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
            request = {"arguments": arguments, "stdout": stdout.name, "stderr": stderr.name}
            request |= {"folder": str(folder), "environment": environment}
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            status = int(self.process.stdout.readline())
            return subprocess.CompletedProcess(arguments, status, stdout.read(), stderr.read())

    def end(self):
        if self.process:
            self.process.communicate()


_SERVER = _Server()


def pytest_unconfigure():
    _SERVER.end()


def run_python(*arguments, check=True, folder=ROOT, **environment):
    """A command of the project as a user runs it in a folder, on one thread; the process with its output as text.

    Scripts and modules of the project are forked from a process that has imported the libraries already, unless an
    environment is given, such as a locale: Python reads it when it starts.
    """
    arguments = [str(argument) for argument in arguments]
    is_served = arguments[0].startswith("recipes/") or arguments[:2] in SERVED
    is_served &= environment.keys() <= {"EXPECTED_WORLD_SIZE"}
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": NUM_THREADS} | environment
    if is_served:
        process = _SERVER.run(arguments, folder, environment)
    else:
        command = [sys.executable, *arguments]
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    if check and process.returncode:
        raise AssertionError(f"{arguments} left with {process.returncode}\n{process.stdout}\n{process.stderr}")
    return process


def run_ranks(num_processes, claim, *arguments):
    """A claim of tests/ranks.py on this many processes of torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", num_processes]
    return run_python(*launcher, "-m", "tests.ranks", claim, *arguments, EXPECTED_WORLD_SIZE=str(num_processes))


def losses_of(run):
    """The loss of every logged step of a run."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def built_once(tmp_path_factory, name, build):
    """The folder `name` after `build(folder)`, which runs once for all test processes that work side by side."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            build(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with train/ (18 clips) and test/ (6 clips) as real media files with labels.csv."""
    from data_prep.demo.corpus import make_demo_corpus

    sizes = {"num_train": 18, "num_test": 6, "size_px": 32, "duration_seconds": 1.5}
    build = partial(make_demo_corpus, **sizes, seed=3, num_workers=1, progress=False)
    return built_once(tmp_path_factory, "corpus", build)


@pytest.fixture(scope="session")
def shards(corpus, tmp_path_factory):
    """{"train": shard folder of 18 samples in 3 shards, "test": of 6 samples}."""
    from data_prep.index.build import IndexOptions, build_manifest
    from data_prep.transcode.options import WriteOptions
    from data_prep.write.run import write_shards

    def build(folder):
        for split in ("train", "test"):
            manifest = folder / f"{split}.jsonl"
            build_manifest(corpus / split, manifest, IndexOptions(labels=str(corpus / split / "labels.csv")))
            write_shards(manifest, folder / split, WriteOptions(short_side_px=32, samples_per_shard=7))

    folder = built_once(tmp_path_factory, "shards", build)
    return {split: folder / split for split in ("train", "test")}


@pytest.fixture(scope="session")
def tiny_run(shards, tmp_path_factory):
    """A finished AVID run of three steps on the tiny shards; each test process has a copy, in which it may write."""

    def build(folder):
        run_python(
            "recipes/pretrain.py",
            "recipes/configs/avid.yaml",
            *TINY,
            f"run={folder}/avid",
            f"data.shards={shards['train']}",
            "steps=3",
        )

    run = tmp_path_factory.mktemp("runs") / "avid"
    shutil.copytree(built_once(tmp_path_factory, "tiny_run", build) / "avid", run)
    return run


@pytest.fixture(scope="session")
def image_shards(tmp_path_factory):
    """Shards of twelve synthetic images of two classes."""
    import numpy as np
    from PIL import Image

    from data_prep.index.build import IndexOptions, build_manifest
    from data_prep.transcode.options import WriteOptions
    from data_prep.write.run import write_shards

    def build(folder):
        generator = np.random.default_rng(0)
        for number in range(12):
            path = folder / "images" / ("light" if number % 2 else "dark") / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            low = 128 if number % 2 else 0
            Image.fromarray(generator.integers(low, low + 128, size=(40, 48, 3), dtype=np.uint8)).save(path)
        build_manifest(folder / "images", folder / "images.jsonl", IndexOptions())
        write_shards(folder / "images.jsonl", folder / "shards", WriteOptions(samples_per_shard=5))

    return built_once(tmp_path_factory, "image_shards", build) / "shards"


@pytest.fixture(scope="module")
def s3():
    """An S3 server with the empty bucket `bucket`, which this process uses; gives the environment for others."""
    from tests.stores import s3_server

    with s3_server() as environment:
        yield environment


@pytest.fixture
def web():
    """A web server that misbehaves as it is told (tests/stores.py)."""
    from tests.stores import web_server

    with web_server() as server:
        yield server


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """One second of video and audio; copy it to wherever a list wants a file."""
    from tests.clips import make_clip

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    make_clip(path)
    return path


@pytest.fixture
def media(tmp_path, clip):
    """media(name, ...) puts copies of the clip below tmp_path/media and returns that folder."""
    from tests.listed import copies_of

    return partial(copies_of, clip, tmp_path / "media")


@pytest.fixture
def own_registries():
    """What this test registers or runs as a plugin is gone afterwards: other tests of this process list the parts."""
    from avssl import losses, models
    from avssl.eval import registry
    from avssl.plugins import files, required
    from avssl.transforms.own import AUGMENTS
    from data_prep.index.lists.formats import READERS

    # Each file registers once, when it is imported: all must be there before the copies are made.
    losses.names(), models.ENCODERS.names(), registry.names()
    tables = (losses.registry._REGISTRY, models.ENCODERS, registry.TASKS, AUGMENTS, READERS, files._files)
    kept = [(table, dict(table)) for table in tables]
    yield
    required.use([], may_differ=False)
    for table, before in kept:
        table.clear()
        table.update(before)


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="all cases of grids, as in make soak")


def pytest_collection_modifyitems(config, items):
    """What quick(n) and grid(n) say of the cases of a test: a grid keeps representatives where time is short."""
    seen, left_out = Counter(), []
    for item in items:
        test = item.nodeid.partition("[")[0]
        seen[test] += 1
        quick, grid = item.get_closest_marker("quick"), item.get_closest_marker("grid")
        if quick and seen[test] > quick.args[0]:
            item.add_marker("slow")
        if grid and seen[test] > grid.args[0] and not config.getoption("--soak"):
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        names = set(left_out)
        items[:] = [item for item in items if item not in names]
