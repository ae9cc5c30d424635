"""Opening a data set, a table or a checkpoint never runs code."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from accelerate.utils.other import load as accelerate_load

from avssl import checkpoint
from avssl.files import storage
from avssl.files.damaged_files import open_npz
from avssl.media.decode import probe, read_video
from avssl.shards.format import dump_json
from avssl.shards.shard_set import parse_members
from avssl.types import MediaError
from data_prep.facts.run import make_facts
from data_prep.write.run import write_shards
from tests.clips import OPTIONS, make_clip


class Malicious:
    """Unpickling this makes a file: what an attacker's object would do with less restraint."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "was-run"


def test_a_pickled_member_of_a_shard_is_not_opened(canary):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("clip.json", "clip.pyd", "clip.pkl", "clip.pth"):
            payload = pickle.dumps(Malicious(canary))
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    with pytest.raises(MediaError, match="bad_sample"):
        parse_members(content.getvalue(), "shard")
    assert not canary.exists()


@pytest.mark.parametrize("read", [probe, lambda path: read_video(path, [0.0])])
def test_a_pipe_is_a_file_name_and_not_a_command(read, canary):
    with pytest.raises(MediaError, match="missing_file"):
        read(f"pipe:mkdir {canary}")
    assert not canary.exists()


def test_arrays_with_pickled_objects_are_refused(tmp_path, canary):
    path = tmp_path / "arrays.npz"
    np.savez(path, avssl=np.array([Malicious(canary)], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"), open_npz(path, "file of arrays") as arrays:
        arrays["avssl"]
    assert not canary.exists()


def test_a_pickled_optimizer_state_is_refused(tmp_path, canary):
    """What accelerator.load_state opens a checkpoint's optimizer and random states with."""
    path = tmp_path / "optimizer.bin"
    torch.save({"state": Malicious(canary)}, path)
    with pytest.raises(pickle.UnpicklingError):
        accelerate_load(path)
    assert not canary.exists()


def test_weights_that_are_a_pickle_are_refused(tmp_path, canary):
    torch.save({"loss.partition": Malicious(canary)}, tmp_path / checkpoint.WEIGHTS_FILE)
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.read_weights(tmp_path)
    assert not canary.exists()


def test_a_manifest_from_afar_puts_no_file_of_this_machine_into_shards(tmp_path):
    """As a table from afar: whoever made it shall not choose what is read here."""
    make_clip(tmp_path / "private.mp4", seconds=0.5)
    row = {"path": str(tmp_path / "private.mp4"), "key": "private", "labels": {}, "error": None}
    storage.write_bytes("memory://bucket/corpus.jsonl", dump_json(row))
    for command in (write_shards, lambda manifest, folder, _: make_facts(manifest, folder / "facts.parquet")):
        with pytest.raises(ValueError, match="which a manifest from afar may not name"):
            command("memory://bucket/corpus.jsonl", tmp_path / "out", OPTIONS)
    assert not list((tmp_path / "out").glob("*.tar"))
