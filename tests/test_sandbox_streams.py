"""Streams from processes that may be killed: whatever one task does, the others come whole, and it has a reason."""

import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from avssl.processes.limits import Limits
from avssl.processes.parcels import receive_parcel, send_parcel
from avssl.processes.streams import MESSAGES_AHEAD, SandboxedStreams
from avssl.processes.worker import Message
from avssl.types import MediaError


class Stories:
    """Tasks named by what they do after their first message; "3 messages" gives three and does nothing else.

    log: a file to which every message that is made is written.
    """

    def __init__(self, *names, log=os.devnull):
        self.names, self.log = names, log

    def name_of(self, number):
        return self.names[number]

    def numbers(self):
        return range(len(self.names))

    def begin(self, number):
        if self.names[number] == "no shard":
            raise FileNotFoundError("the shard is missing")
        if self.names[number] == "bad sample":
            raise MediaError("bad_sample", "bad sample: its json cannot be read")
        return number

    def messages(self, number):
        word, _, rest = self.names[number].partition(" ")
        count = int(word) if rest == "messages" else 3
        for k in range(count):
            with Path(self.log).open("a") as log:
                log.write(f"{number} {k} {os.getpid()}\n")
            if k == 1:
                self.do(word, number)
            yield Message({"k": k}, {"values": np.full((2, 3), 10 * number + k)}, k == count - 1)

    def do(self, word, number):
        match word:
            case "hang":
                time.sleep(60)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(7)
            case "memory":
                bytearray(1 << 30)
            case "torch":
                import torch

                torch.zeros(1 << 30, dtype=torch.uint8)
            case "bug":
                raise IndexError("list index out of range")
            case "media":
                raise MediaError("no_audio", "media: it has none")
            case "damaged":  # by what was read before it in the same process
                if self.process_has_read_others(number):
                    os.kill(os.getpid(), signal.SIGSEGV)
            case "large":
                if self.process_has_read_others(number):
                    raise MemoryError

    def process_has_read_others(self, number):
        lines = [line.split() for line in Path(self.log).read_text().splitlines()]
        return any(int(pid) == os.getpid() and int(other) != number for other, _, pid in lines)


REASONS = {
    "hang": "timeout", "segfault": "crashed", "killed": "out_of_memory", "exit": "crashed", "memory": "out_of_memory",
    "torch": "out_of_memory", "bug": "crashed", "media": "no_audio", "bad sample": "bad_sample",
}  # fmt: skip
LIMITS = Limits(seconds=1.5, memory_bytes=256 << 20)


def told(stories, num_workers=2, limits=LIMITS):
    """{task: (its messages' k and values, its failure)} and the tasks in the order of the messages."""
    found, order = {}, []
    for number, item in SandboxedStreams(stories, num_workers, limits).run(stories.numbers):
        messages, failures = found.setdefault(stories.names[number], ([], []))
        order.append(number)
        if isinstance(item, MediaError):
            failures.append(item)
        else:
            assert not failures
            np.testing.assert_array_equal(item.arrays["values"], np.full((2, 3), 10 * number + item.values["k"]))
            messages.append(item.values["k"])
    return found, order


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_task_that_misbehaves_costs_itself_alone_and_says_why(num_workers):
    names = [f"{number} messages" for number in range(1, 11)]
    for number, word in enumerate(REASONS):
        names.insert(2 * number, word)
    found, _ = told(Stories(*names), num_workers)
    assert set(found) == set(names)
    for name, (messages, failures) in found.items():
        if name in REASONS:
            (failure,) = failures
            assert failure.reason == REASONS[name]
            assert failure.message.startswith(f"{name}: ")
            assert messages == ([] if name == "bad sample" else [0]), name
        else:
            assert (messages, failures) == (list(range(int(name.split()[0]))), [])


def test_the_messages_come_in_an_order_that_depends_on_the_tasks_alone():
    names = ["2 messages", "5 messages", "1 messages", "3 messages", "4 messages"]
    orders = [told(Stories(*names))[1] for _ in range(2)]
    # Lane 0 has tasks 0, 2 and 4, lane 1 has 1 and 3; they take turns until one of them ends.
    assert orders == [[0, 1, 0, 1, 2, 1, 4, 1, 4, 1, 4, 3, 4, 3, 3]] * 2


@pytest.mark.parametrize("word", ["damaged", "large"])
def test_damage_by_an_earlier_task_is_not_paid_for_by_a_later_one(tmp_path, word):
    log = tmp_path / "log"
    found, _ = told(Stories("2 messages", word, "1 messages", log=log), num_workers=1)
    assert found == {"2 messages": ([0, 1], []), word: ([0, 1, 2], []), "1 messages": ([0], [])}
    made = [line.split()[:2] for line in log.read_text().splitlines()]
    assert made.count(["1", "0"]) == 2, "made again, and given once"


def test_a_task_that_kills_a_fresh_process_has_no_second_try(tmp_path):
    log = tmp_path / "log"
    told(Stories("segfault", "1 messages", log=log), num_workers=1)
    assert [line.split()[:2] for line in log.read_text().splitlines()].count(["0", "1"]) == 1


def test_no_more_messages_wait_than_are_wanted_ahead(tmp_path):
    log = tmp_path / "log"
    streams = SandboxedStreams(Stories("40 messages", "1 messages", log=log), 1, LIMITS).run(lambda: range(2))
    for taken in range(1, 6):
        next(streams)
        time.sleep(0.2)
        assert len(log.read_text().splitlines()) <= taken + MESSAGES_AHEAD
    streams.close()


@pytest.mark.slow
def test_the_seconds_count_while_it_works_and_not_while_it_waits():
    """A consumer slower than the limit, and a task that takes it in all but not for one message."""
    number = 0
    for _, item in SandboxedStreams(Stories("4 messages"), 1, Limits(seconds=1.0)).run(lambda: range(1)):
        assert not isinstance(item, MediaError)
        time.sleep(1.3)
        number += 1
    assert number == 4


def test_what_ends_all_tasks_is_raised_as_it_was():
    with pytest.raises(FileNotFoundError, match="the shard is missing"):
        told(Stories("1 messages", "no shard", "1 messages"))


class Unready(Stories):
    def __setstate__(self, state):
        os._exit(9)


def test_a_process_that_ends_before_it_begins_blames_no_task():
    with pytest.raises(RuntimeError, match="status 9 before it began"):
        told(Unready("1 messages"))


def test_leaving_does_not_wait_and_leaves_no_process(tmp_path):
    log = tmp_path / "log"
    began = time.monotonic()
    streams = SandboxedStreams(Stories("3 messages", "hang", log=log), 2, Limits(seconds=50)).run(lambda: range(2))
    assert next(streams)[0] == 0
    while not (log.exists() and "1 1" in log.read_text()):
        time.sleep(0.01)
    streams.close()
    assert time.monotonic() - began < 20
    for line in log.read_text().splitlines():
        with pytest.raises(ProcessLookupError):
            os.kill(int(line.split()[2]), 0)


def test_a_parcel_keeps_what_is_in_it_and_arrives_after_its_sender_is_gone():
    ours, theirs = socket.socketpair()
    arrays = {
        "clips": np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::2],
        "sound": np.linspace(0, 1, 5, dtype=np.float32),
        "none": np.zeros((0, 2)),
    }
    send_parcel(theirs, {"key": "é/\\xff", "seconds": 0.1 + 0.2}, arrays)
    theirs.close()
    header, found = receive_parcel(ours)
    assert header == {"key": "é/\\xff", "seconds": 0.1 + 0.2}
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert receive_parcel(ours) is None
    ours.close()
