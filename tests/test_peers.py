"""Processes of a run look after each other: who is missing is named, in time, and nobody else is."""

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from avssl.processes import peers, slurm
from avssl.processes.peers import Watch


class Texts:
    """A store in this process. gone: every call fails, as when its host has ended; cut: no call returns."""

    def __init__(self):
        self.texts, self.lock, self.gone, self.cut = {}, threading.Lock(), False, threading.Event()

    def reach(self):
        if self.gone:
            raise RuntimeError("Connection refused")
        while self.cut.is_set():
            time.sleep(0.01)

    def set(self, key, text):
        self.reach()
        with self.lock:
            self.texts[key] = text

    def first(self, key, text):
        self.reach()
        with self.lock:
            self.texts[key] = self.texts.get(key) or text
            return self.texts[key]

    def get(self, keys):
        self.reach()
        return [self.texts[key] for key in keys]


@pytest.fixture
def quick_beats(monkeypatch):
    """A beat of 20 ms, and what follows from it."""
    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(peers, "WARN_SECONDS", 0.1)
    monkeypatch.setattr(peers, "ANSWER_SECONDS", 0.3)


@contextmanager
def three_processes(limit_seconds=0.0):
    """(store, watches of three processes on two hosts, what each gave up with)."""
    store, gave_up = Texts(), {}
    watches = [
        Watch(
            store,
            ["host-a", "host-a", "host-b"],
            rank,
            limit_seconds,
            lambda text, rank=rank: gave_up.update({rank: text}),
        )
        for rank in range(3)
    ]
    for watch in watches:
        watch.store.set(str(watch.rank), "0")
    for watch in watches:
        watch.start()
    try:
        yield store, watches, gave_up
    finally:
        store.cut.clear()
        for watch in watches:
            watch.ended.set()
            for thread in watch._threads:
                thread.join()


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def silence(watch):
    """As when its process has been killed."""
    watch.ended.set()
    for thread in watch._threads:
        thread.join()


def test_a_silent_process_is_named_first_in_a_warning_and_then_in_the_error(quick_beats, capsys):
    with three_processes(limit_seconds=0.3) as (_, watches, gave_up):
        silence(watches[2])
        until(lambda: 0 in gave_up)
        warning = capsys.readouterr().err
        assert gave_up[0] == "no sign of life from process 2 on host-b for 0.3 s (process_timeout_seconds)"
        assert "warning: no sign of life from process 2 on host-b for 0.1 s" in warning
        assert "after 0.3 s the run ends" in warning
        assert "process 1" not in warning
        assert 1 not in gave_up  # it watches the first process alone, which leaves word


def test_all_processes_miss_the_first_one_and_each_host_says_so_once(quick_beats, capsys):
    with three_processes(limit_seconds=0.3) as (_, watches, gave_up):
        silence(watches[0])
        until(lambda: {1, 2} <= gave_up.keys())
        assert "process 0 on host-a" in gave_up[1]
        assert gave_up[1] == gave_up[2]
        assert capsys.readouterr().err.count("warning: no sign of life from process 0 on host-a") == 1  # of host-b


def test_a_store_that_does_not_answer_counts_as_the_first_process(quick_beats):
    with three_processes(limit_seconds=0.3) as (store, _, gave_up):
        store.cut.set()
        until(lambda: 2 in gave_up)
        assert "process 0 on host-a" in gave_up[2]


def test_a_process_that_comes_back_or_has_left_is_not_given_up(quick_beats, capsys):
    with three_processes(limit_seconds=0.6) as (store, watches, gave_up):
        silence(watches[1])
        until(lambda: "process 1 on host-a for 0.1 s" in capsys.readouterr().err)
        store.set("1", "returned")
        until(lambda: "process 1 on host-a is back after" in capsys.readouterr().err)
        store.set("1", peers.LEFT)
        watches[2].leave()
        time.sleep(1)
        assert gave_up == {}
        assert "process 2" not in capsys.readouterr().err
        assert watches[0].missing() == ""


def test_after_a_broken_connection_every_process_names_the_one_that_was_lost_first(quick_beats):
    with three_processes() as (store, watches, _):
        silence(watches[2])
        assert watches[1].missing() == "process 2 on host-b"
        silence(watches[1])  # it ends because of that
        assert watches[0].missing() == "process 2 on host-b"
        store.gone = True
        assert watches[0].missing() == "process 0 on host-a (which holds the store of the run)"


def test_word_of_an_error_reaches_those_that_find_its_process_gone(quick_beats, monkeypatch):
    with three_processes() as (_, watches, _):
        monkeypatch.setattr(peers, "_watches", [watches[2]])
        peers.tell_others("the disk is full")
        monkeypatch.setattr(peers, "_watches", [watches[0]])
        silence(watches[2])
        expected = "process 2 on host-b (which ended with an error: the disk is full)"
        assert peers.missing_processes() == expected


def as_process_1_of_2(monkeypatch, run, first):
    """The module of run folders in the second of two processes; first: what the first one has said."""
    from avssl.train import run_folder

    monkeypatch.setattr(run_folder, "is_active", lambda: True)
    monkeypatch.setattr(run_folder, "rank", lambda: 1)
    monkeypatch.setattr(run_folder, "barrier", lambda: None)
    monkeypatch.setattr(run_folder, "broadcast_object", lambda _: ".seen-0")
    monkeypatch.setattr(run_folder, "gather_objects", lambda own: [first, own])
    monkeypatch.setattr("socket.gethostname", lambda: "host-b")
    return run_folder.refuse_unless_shared


def test_hosts_that_see_another_folder_or_other_shards_are_named(monkeypatch, tmp_path):
    refuse = as_process_1_of_2(monkeypatch, tmp_path, ("host-a", True, "5a"))
    with pytest.raises(
        ValueError, match=r"process 1 on host-b does not see what process 0 on host-a writes in .*share"
    ):
        refuse(tmp_path, "5a")
    (tmp_path / ".seen-0").touch()
    refuse(tmp_path, "5a")
    with pytest.raises(ValueError, match="process 1 on host-b has other shards than process 0 on host-a"):
        refuse(tmp_path, "77")


STEP = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "11", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
    "SLURM_STEP_NODELIST": "gpu[007-008,012]", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NODEID": "2",
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    """The variables that the module sees, as a dict that belongs to the test."""
    own = {}
    monkeypatch.setattr(slurm, "os", SimpleNamespace(environ=own))
    return own


def test_tasks_of_a_step_of_slurm_are_the_ranks_of_a_run(environment):
    environment |= STEP
    slurm.take_ranks_of_slurm()
    added = {name: value for name, value in environment.items() if name not in STEP}
    expected = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "11", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "gpu007"}
    port = int(added.pop("MASTER_PORT"))
    assert added == expected
    assert 1024 < port < 32768
    others = []
    for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"):  # another job, or another step, does not meet this one
        environment.clear()
        environment |= STEP | {name: str(int(STEP[name]) + 1)}
        slurm.take_ranks_of_slurm()
        others.append(int(environment["MASTER_PORT"]))
    assert len({port, *others}) == 3


@pytest.mark.parametrize(
    "changes",
    [{"RANK": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}, dict.fromkeys(("SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID"))],
    ids=["below torchrun", "one task", "the batch script itself"],
)
def test_elsewhere_slurm_changes_nothing(changes, environment):
    given = {name: value for name, value in (STEP | changes).items() if value is not None}
    environment |= given
    slurm.take_ranks_of_slurm()
    assert environment == given


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("vm", "vm"), ("a1,b[2-3]", "a1"), ("rack[1-2]node[3,5]", "rack1node3"), ("n[09-11,20]-ib", "n09-ib")],
)
def test_the_first_host_of_slurms_notation(hosts, first):
    assert slurm.first_host(hosts) == first


@pytest.mark.parametrize(("counts", "node", "tasks"), [("2", 0, 2), ("4(x3)", 2, 4), ("4(x2),3,8(x2)", 3, 8)])
def test_the_tasks_of_a_node_in_slurms_notation(counts, node, tasks):
    assert slurm.tasks_of_node(counts, node) == tasks
