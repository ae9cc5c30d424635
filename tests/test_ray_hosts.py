"""Ray on two hosts of network namespaces, with the commands of docs/clusters.md: the bytes are those of one process."""

import shutil
import subprocess
import time

import pytest

import avssl
from avssl.embedding.folder import FolderJob
from data_prep.write.run import write_shards
from tests.clips import OPTIONS, digest, make_clip
from tests.conftest import run_python
from tests.docs_pages import known_as
from tests.two_hosts import NAMESPACES, missing, two_hosts, wait_until

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
NUM_CLIPS = 24
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "HOME": "/tmp"}  # nothing is told to anybody; each host has a home
WRITE = "--short-side-px 48 --samples-per-shard 3"
GRID = {"window_seconds": 0.5, "stride_seconds": 0.25, "sources_per_block": 4}
EMBED = "--window 0.5 --stride 0.25 --sources-per-block 4 --num-workers 1"


@pytest.fixture(scope="module")
def shared(tiny_run, tmp_path_factory):
    """The folder that both hosts see: videos, their list, a run; and what one process makes of them."""
    folder = tmp_path_factory.mktemp("shared")
    for seed in range(NUM_CLIPS):
        make_clip(folder / "videos" / f"clip_{seed:02d}.mp4", seed, seconds=0.5)
    run_python("-m", "data_prep", "index", folder / "videos", "--out", folder / "corpus.jsonl")
    write_shards(folder / "corpus.jsonl", folder / "written", OPTIONS)
    shutil.copytree(tiny_run, folder / "run")
    embedder = avssl.load_embedder(str(folder / "run"))
    job = FolderJob.begin(embedder, [folder / "videos"], folder / "embedded", **GRID)
    job.run(embedder, run_folder=folder / "run")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def on_page(name, shared):
    """A command of the page, for hosts of one core whose folder is this one."""
    command = known_as("docs/clusters.md", f"ray {name}").replace("/shared/", f"{shared}/")
    return f"{command} --num-cpus 1" if command.startswith("ray start") else command


def is_at_work(host, task):
    """Whether a task of Ray runs there: the title of its process names the function."""
    listing = ["nsenter", "--target", str(host.pid), *NAMESPACES, "ps", "axo", "args"]
    titles = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    return f"ray::{task}" in map(str.strip, titles.splitlines())


class Hosts:
    """Two hosts, and the commands of the page on them."""

    def __init__(self, shared, hosts):
        self.shared, self.log = shared, shared / "log"
        self.a, self.b = hosts
        self.export = on_page("export", shared)

    def start(self, host, command):
        return host.start(f"{self.export}; {command}", self.log, folder=self.shared, **ENVIRONMENT)

    def succeed(self, process):
        assert process.wait(500) == 0, self.log.read_text()


@pytest.fixture(scope="module")
def head(shared):
    """Two hosts, of which the first has the head of a cluster."""
    with two_hosts(shared) as both:
        hosts = Hosts(shared, both)
        hosts.a.run(on_page("token", shared), hosts.log, **ENVIRONMENT)
        hosts.succeed(hosts.start(hosts.a, on_page("head", shared)))
        yield hosts


@pytest.fixture
def hosts(head):
    """The second host has joined, again after an earlier test; at the end all of its processes are killed."""
    head.succeed(head.start(head.b, on_page("node", head.shared)))
    yield head
    head.b.kill_all()


def test_the_shards_are_those_of_one_process_when_a_host_is_lost_half_way(hosts, shared):
    writing = hosts.start(hosts.a, f"{on_page('write', shared)} {WRITE}")

    def parts():
        return len(list((shared / "shards" / ".parts").glob("part-*.json")))

    wait_until(lambda: parts() and is_at_work(hosts.b, "make_part_alone"), 500, hosts.log.read_text)
    hosts.b.kill_all()
    assert parts() < NUM_CLIPS // 3, "parts were still to be made"
    hosts.succeed(writing)
    assert digest(shared / "shards") == digest(shared / "written")


def test_both_hosts_embed_what_one_process_embeds(hosts, shared):
    command = f"avssl embed {shared}/run {shared}/videos --out embeddings {EMBED} --executor ray"
    embedding = hosts.start(hosts.b, f"RAY_ADDRESS=host-a:6379 {command}")
    at_work = set()
    while embedding.poll() is None:
        at_work |= {host.name for host in (hosts.a, hosts.b) if is_at_work(host, "embed_block")}
        time.sleep(0.05)
    hosts.succeed(embedding)
    assert at_work == {"host-a", "host-b"}
    assert contents(shared / "embeddings") == contents(shared / "embedded")
