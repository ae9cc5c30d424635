"""Small good files of every kind that the program reads; the fuzzer damages them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from avssl.embedding.index import FileRecord, FolderIndex
from avssl.eval.configs import LabelTaskConfig
from avssl.eval.outcome import Outcome, classified
from avssl.eval.results import evaluation_of
from avssl.eval.results import write as write_result
from avssl.files.tensors import write_tensors
from avssl.shards.manifest import Entry
from tests import odd_media
from tests.odd_files import ODD
from tests.test_shards import sample, write_folder
from tests.test_tables import make_table

ROOT = Path(__file__).parents[2]
MEDIA = (
    "both_late.mp4", "both_late.mkv", "b_frames.mp4", "b_frames.avi", "no_stamps.mp4", "mpeg4.avi", "motion_jpeg.avi",
    "prores.mov", "vp8.webm", "vp9.webm", "h264.flv", "h264.ts", "mpeg2.ts", "mpeg1.mpg", "raw.avi", "windows.wmv",
    "real.rm", "broadcast.mxf", "animation.gif", "alpha_animation.mov", "turned_90.mp4", "telephone.wav", "stereo.flac",
    "stereo.mp3", "mono.opus", "stereo.ogg", "bare.aac", "lossless.m4a", "mac.aiff", "dolby.ac3", "5.1.caf",
    "sorenson.flv", "cinepak.avi", "hevc.mp4", "av1.mp4", "7.1.m4a", "interlaced_tff.mp4", "chained.ogg", "cover.mp3",
)  # fmt: skip


def make_material(folder: Path, *, num_media: int = len(MEDIA)) -> None:
    """A folder of each kind below `folder`. num_media: how many formats of media, which take the longest to make."""
    for name in ("shards", "lists", "run", "results", "media", "pictures", "configs", "table"):
        (folder / name).mkdir(parents=True)
    both = odd_media.beep(seconds=0.1).tobytes()[:700]
    write_folder(
        folder / "shards",
        [sample(number, video=both[: 300 + number], audio=b"a" * 200) for number in range(3)]
        + [sample(number, video=None, key=f"{'long/' * 30}clip_{number}") for number in range(3, 5)],
        3,
    )
    _make_lists(folder / "lists")
    _make_run(folder / "run")
    _make_table(folder / "table")
    _make_result(folder / "results")
    for name in MEDIA[:num_media]:
        ODD[name].make(folder / "media" / name)
    picture = Image.fromarray(np.stack(list(odd_media.scene([0.5])))[0])
    for suffix in ("jpg", "png", "webp", "gif", "tiff", "bmp"):
        picture.save(folder / "pictures" / f"picture.{suffix}")
    picture.convert("P").save(folder / "pictures" / "palette.png")
    picture.convert("CMYK").save(folder / "pictures" / "cmyk.jpg")
    for path in sorted((ROOT / "recipes" / "configs").rglob("*.yaml")):
        (folder / "configs" / path.name).write_bytes(path.read_bytes())


def _make_lists(folder: Path) -> None:
    entries = [
        Entry(
            f"videos/{number}.mp4", f"videos/{number}", {"label": ["dog", "cat"]},
            {"container": "mov,mp4", "duration_seconds": 2.5, "video": {"fps": 25.0, "width": 64, "height": 48,
             "codec": "h264"}, "audio": {"rate_hz": 48000, "channels": 2}},
            {"reason": "truncated", "message": "x"} if number == 2 else None, 1000 + number, None,
            (0.5, 1.5) if number == 1 else None,
        )
        for number in range(4)
    ]  # fmt: skip
    (folder / "corpus.jsonl").write_bytes(b"".join(entry.to_json() for entry in entries))
    rows = [
        {"path": f"a/{n}.mp4", "key": f"k{n}", "labels": {"label": ["x", "y"]}, "segment": [0.0, 1.5], "split": "train"}
        for n in range(3)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.csv").write_text(
        'path,label,begin_seconds,end_seconds,split\na.mp4,cat|dog,0,1.5,train\n"b,c.mp4",x,1,2,test\n'
    )
    (folder / "kinetics.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nplaying,abcdefghijk,10,20,train\nx,ABCDEFGHIJK,0,10,val\n"
    )
    (folder / "audioset.csv").write_text(
        "# Segments csv created\n# YTID, start_seconds, end_seconds, positive_labels\n"
        'abcdefghijk, 0.0, 10.0, "/m/0,/m/1"\n'
    )
    (folder / "vggsound.csv").write_text('abcdefghijk,10,"people, clapping",train\nABCDEFGHIJK,20,dog,test\n')
    (folder / "trainlist01.txt").write_text("Bow/v_Bow_g01_c01.avi 1\nRun/v_Run_g02_c01.avi 2\n")
    (folder / "brush_hair_test_split1.txt").write_text("one.avi 1\ntwo.avi 2\nthree.avi 0\n")
    (folder / "paths.txt").write_text("a.mp4\nb/c.mp4\n# comment\nhttps://host/d.mp4\n")
    table = pa.table(
        {"path": ["a.mp4", "b.mp4"], "label": ["x", None], "labels": pa.array([{"f": ["x"]}, {"f": None}]),
         "begin_seconds": [0.0, None], "end_seconds": [1.0, None]}
    )  # fmt: skip
    pq.write_table(table, folder / "rows.parquet")
    header = (2051).to_bytes(4, "big") + (3).to_bytes(4, "big") + (4).to_bytes(4, "big") * 2
    (folder / "train-images-idx3-ubyte").write_bytes(header + bytes(48))
    (folder / "train-labels-idx1-ubyte").write_bytes((2049).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(3))


def _make_run(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {f"loss.encoders.video.{n}.weight": torch.randn(4, 3, generator=generator) for n in range(3)}
    state["views.normalize_audio.mean"] = torch.zeros(5)
    write_tensors(state, folder / "encoders.safetensors", {"format": "avssl-run", "version": "1"})
    provenance = {"versions": {"avssl": "0.1.0"}, "data": {"shards": "x", "num_samples": 3}, "steps": 7, "loss": "avid"}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    np.savez(folder / "statistics.npz", mean=np.zeros(5, np.float32), std=np.ones(5, np.float32))
    line = {"step": 1, "epoch": 0, "loss": 2.5, "learning_rate": 0.1, "samples_per_second": 10.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line | {"step": n}) + "\n" for n in range(1, 4)))


def _make_table(folder: Path) -> None:
    make_table(5).write(folder / "part-000000.parquet")
    path = folder / "part-000000.parquet"
    record = FileRecord(path.name, 5, path.stat().st_size, "0" * 64)
    widths = {"video_embedding": 6, "audio_embedding": 4}
    FolderIndex({"run": "x"}, widths, 6, 5, 1, {"truncated": 1}, 5, {"video": 3, "audio": 3}, "runs/x", [record]).write(
        folder
    )


def _make_result(folder: Path) -> None:
    targets = np.arange(12) % 3
    scores = np.random.default_rng(0).normal(size=(12, 3))
    outcome = Outcome([classified([f"k{n}" for n in range(12)], scores, targets, list("abc"), train_keys=["x"])])
    config = LabelTaskConfig(task="knn", name="one")
    write_result(folder, {"trained": outcome}, evaluation_of({"trained": outcome}, config, "run", {"trained": "a"}, {}))
