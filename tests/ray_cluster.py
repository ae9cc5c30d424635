"""A write on a real Ray cluster of this machine: a head and two nodes, of which one is killed half-way.

    python -m tests.ray_cluster MANIFEST OUT FACTS

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

from data_prep.transcode.file import transcode
from data_prep.write.run import write_shards
from tests.clips import OPTIONS


def slow(path, options, segment):
    """Long enough that a node can be killed in the middle of a part."""
    time.sleep(0.4)
    return transcode(path, options, segment)


def alive():
    return sum(node["Alive"] for node in ray.nodes())


def main(manifest, out, facts):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    os.environ["RAY_ADDRESS"] = cluster.address
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    before, killed_at = alive(), []

    def kill_one():
        while not list(Path(out).glob(".parts/part-*.json")):
            time.sleep(0.02)
        cluster.remove_node(nodes[0], allow_graceful=False)
        killed_at.append(len(list(Path(out).glob(".parts/part-*.json"))))

    killer = threading.Thread(target=kill_one)
    killer.start()
    named = import_module("tests.ray_cluster").slow  # not __main__'s: other processes must find it
    index = write_shards(manifest, out, OPTIONS, num_workers=2, transcode=named, executor="ray")
    killer.join()
    found = {"before": before, "after": alive(), "parts_at_kill": killed_at, "samples": index.num_samples}
    Path(facts).write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
