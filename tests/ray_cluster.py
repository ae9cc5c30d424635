"""Work on a real Ray cluster of this machine: a head and two nodes, of which one is killed half-way.

    python -m tests.ray_cluster FACTS write MANIFEST OUT
    python -m tests.ray_cluster FACTS embed RUN VIDEOS OUT

FACTS becomes a json file: how many nodes were alive before and after, what was done when the node was killed.
"""

import json
import os
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from avssl.embedding.embedder import Embedder
from avssl.embedding.folder import FolderJob, RayTasks
from data_prep.transcode.file import transcode
from data_prep.write.run import write_shards
from tests.clips import OPTIONS


def slow(path, options, segment):
    """Long enough that a node can be killed in the middle of a part."""
    time.sleep(0.4)
    return transcode(path, options, segment)


class SlowTasks(RayTasks):
    """Tasks so long that a node can be killed in the middle of a block."""

    def embedder(self):
        time.sleep(1.0)
        return super().embedder()


def write(manifest, out):
    named = import_module("tests.ray_cluster").slow  # not __main__'s: other processes must find it
    return write_shards(manifest, out, OPTIONS, num_workers=2, transcode=named, executor="ray").num_samples


def embed(run, videos, out):
    embedder = Embedder.from_run(run)
    tasks = import_module("tests.ray_cluster").SlowTasks(run, num_workers=1)
    grid = {"window_seconds": 0.5, "stride_seconds": 0.25, "sources_per_block": 2}
    job = FolderJob.begin(embedder, [videos], out, **grid)
    return job.run(embedder, run_folder=run, elsewhere=tasks).num_embedded


def alive():
    return sum(node["Alive"] for node in ray.nodes())


def main(facts, what, *arguments):
    work, pattern = {"write": (write, ".parts/part-*.json"), "embed": (embed, ".progress/block-*.json")}[what]
    out = Path(arguments[-1])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    os.environ["RAY_ADDRESS"] = cluster.address
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    before, done_at_kill = alive(), []

    def kill_one():
        while not list(out.glob(pattern)):
            time.sleep(0.02)
        cluster.remove_node(nodes[0], allow_graceful=False)
        done_at_kill.append(len(list(out.glob(pattern))))

    killer = threading.Thread(target=kill_one)
    killer.start()
    count = work(*arguments)
    killer.join()
    end = time.monotonic() + 60  # Ray knows of a node's death some seconds later
    while alive() == before and time.monotonic() < end:
        time.sleep(0.2)
    found = {"before": before, "after": alive(), "done_at_kill": done_at_kill, "count": count}
    Path(facts).write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
