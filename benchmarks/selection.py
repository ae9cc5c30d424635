"""Precision and recall of the filters of `avssl prep select`, on clips of which is known what is wrong with them.

    python -m benchmarks.selection --run demo/runs/avid --out selection/
    python -m benchmarks.selection --videos FOLDER --out selection_real/     # cut from videos: no swapped sounds

Clips are those of the demo corpus with a seed of their own, or seconds of given videos. Each has one fault or none:

    swapped   the sound of another clip
    silent    no sound: zeros, or noise at -72 dBFS
    still     its first frame alone
    exact     the bytes of another clip
    encoded   another clip at another frame rate, sample rate, loudness (-9 dB), resolution and compression
    cropped   as encoded, and 3 % of each side are cut off
    cut       as encoded, and 8 % of each side are cut off

The facts are computed with the run's embeddings and with those of the same network before training. A filter is one
command; what it leaves out is compared with what is wrong. Chance: a filter that leaves out as many clips at random.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import resample_poly
from sklearn.metrics import roc_auc_score

from avssl.media.decode import probe, read_audio, read_video
from benchmarks.claims import machine
from data_prep.demo.corpus import CorpusSettings, plan_clip, render_clip
from data_prep.facts.table import read_tables
from data_prep.transcode.encode import write_media

SHARES = {"swapped": 0.2, "silent": 0.05, "still": 0.05}  # of the clips, in turn; the others have no fault
COPIES = {"exact": 0.03, "encoded": 0.06, "cropped": 0.06, "cut": 0.06}  # that are added, of clips without a fault
CROPS = {"encoded": 0.0, "cropped": 0.03, "cut": 0.08}
SEED, FPS, RATE_HZ = 1000, 16, 24_000
REAL_SECONDS, REAL_FPS, REAL_PX = 2.0, 16, 144

Clip = tuple[np.ndarray, np.ndarray]  # frames uint8 (T, H, W, 3), waveform float32 (1, n)


def demo_clips(count: int) -> Iterator[Clip]:
    """Clips that no demo run was trained on: those of another seed."""
    settings = CorpusSettings(num_train=1, num_test=count, seed=SEED, fps=FPS, audio_rate_hz=RATE_HZ)
    for number in range(count):
        clip = render_clip(settings, plan_clip(settings, "test", number))
        yield clip.frames, clip.waveform


def real_clips(folder: Path) -> Iterator[Clip]:
    """Two seconds each of the videos with sound in a folder, one after the other."""
    for path in sorted(folder.iterdir()):
        info = probe(path)
        if info.video is None or info.audio is None or not info.duration_seconds:
            continue
        for number in range(int(info.duration_seconds // REAL_SECONDS)):
            times = number * REAL_SECONDS + np.arange(int(REAL_SECONDS * REAL_FPS)) / REAL_FPS
            frames = read_video(path, times.tolist())
            height, width = frames.shape[2:]
            size = [2 * round(side * REAL_PX / min(height, width) / 2) for side in (height, width)]
            small = torch.nn.functional.interpolate(frames.float(), size, mode="area")
            sound = read_audio(path, number * REAL_SECONDS, int(REAL_SECONDS * RATE_HZ), RATE_HZ)
            yield small.round().byte().permute(0, 2, 3, 1).numpy(), sound.numpy()


def write_clip(path: Path, clip: Clip, fps: float = FPS, rate_hz: int = RATE_HZ, crf: int = 20) -> None:
    frames, waveform = clip
    write_media(
        path, video=iter(np.ascontiguousarray(frames)), video_fps=fps, audio=waveform.astype(np.float32),
        audio_rate_hz=rate_hz, video_codec="libx264", audio_codec="aac", video_options={"crf": str(crf)},
    )  # fmt: skip


def copied(clip: Clip, crop: float) -> Clip:
    """The clip at 10 frames a second, 16 kHz, -9 dB and three quarters of the size, without a share of each side."""
    frames, waveform = clip
    kept = frames[np.minimum(np.arange(0, len(frames), FPS / 10).astype(int), len(frames) - 1)]
    top, left = (round(crop * side) for side in kept.shape[1:3])
    kept = kept[:, top : kept.shape[1] - top, left : kept.shape[2] - left]
    size = [2 * round(0.75 * side / 2) for side in kept.shape[1:3]]
    planes = torch.nn.functional.interpolate(torch.from_numpy(kept).permute(0, 3, 1, 2).float(), size, mode="area")
    sound = resample_poly(waveform, 2, 3, axis=1) * 10 ** (-9 / 20)
    return planes.round().byte().permute(0, 2, 3, 1).numpy(), sound


def make_corpus(folder: Path, clips: list[Clip], has_swaps: bool) -> dict[str, dict[str, str]]:
    """Write the clips; {key: {"fault", "of"}}: of: the key of the clip that it is a copy of."""
    generator = np.random.default_rng(SEED)
    order, faults, begin = generator.permutation(len(clips)), {}, 0
    for fault, share in SHARES.items():
        count = round(share * len(clips)) if has_swaps or fault != "swapped" else 0
        faults |= dict.fromkeys(order[begin : begin + count].tolist(), fault)
        begin += count
    swapped = [number for number, fault in faults.items() if fault == "swapped"]
    sound_of = dict(zip(swapped, swapped[1:] + swapped[:1], strict=True))
    truth: dict[str, dict[str, str]] = {}
    for number, (frames, waveform) in enumerate(clips):
        fault, name = faults.get(number, ""), f"clip_{number:05d}"
        if fault == "swapped":
            waveform = clips[sound_of[number]][1]  # noqa: PLW2901
        elif fault == "silent":
            noise = 10 ** (-72 / 20) * generator.standard_normal(waveform.shape) * (number % 2)
            waveform = noise.astype(np.float32)  # noqa: PLW2901
        elif fault == "still":
            frames = np.repeat(frames[:1], len(frames), axis=0)  # noqa: PLW2901
        write_clip(folder / f"{name}.mp4", (frames, waveform))
        truth[f"{name}_mp4"] = {"fault": fault, "of": ""}  # the key that `index` gives it
    whole, begin = order[len(faults) :].tolist(), 0
    for fault, share in COPIES.items():
        for number in whole[begin : begin + round(share * len(clips))]:
            name = f"copy_{number:05d}"
            truth[f"{name}_mp4"] = {"fault": fault, "of": f"clip_{number:05d}_mp4"}
            if fault == "exact":
                shutil.copy(folder / f"clip_{number:05d}.mp4", folder / f"{name}.mp4")
            else:
                write_clip(folder / f"{name}.mp4", copied(clips[number], CROPS[fault]), 10, 16_000, 32)
        begin += round(share * len(clips))
    return truth


def avssl(*words: object) -> None:
    print("$ avssl", *words, flush=True)
    subprocess.run([sys.executable, "-m", "avssl", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def left_out(out: Path, facts: Path, *options: object) -> set[str]:
    """The keys that `select` leaves out with these options."""
    kept = out / "kept.jsonl"
    avssl("prep", "select", out / "corpus.jsonl", "--facts", facts, "--out", kept, *options)
    keys = {row["key"] for row in map(json.loads, (out / "corpus.jsonl").read_text().splitlines())}
    return keys - {row["key"] for row in map(json.loads, kept.read_text().splitlines())}


def share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def score(name: str, gone: set[str], wanted: set[str], num_clips: int) -> dict[str, Any]:
    """A row of the table. wanted: the clips that have the fault. chance: the precision of leaving out at random."""
    hits = len(gone & wanted)
    counts = {"filter": name, "wrong": len(wanted), "left_out": len(gone), "chance": len(wanted) / num_clips}
    return counts | {"precision": share(hits, len(gone)), "recall": share(hits, len(wanted))}


def score_copies(name: str, gone: set[str], truth: dict[str, dict[str, str]], fault: str) -> dict[str, Any]:
    """As `score`: of each pair of copies one is to be left out, whichever. Precision is over copies of all kinds."""
    pairs = {frozenset((key, one["of"])): one["fault"] for key, one in truth.items() if one["of"]}
    wanted = [pair for pair, kind in pairs.items() if kind == fault]
    in_pairs = {key for pair in pairs for key in pair}
    counts = {"filter": name, "wrong": len(wanted), "left_out": len(gone), "chance": len(in_pairs) / len(truth)}
    found = sum(bool(pair & gone) for pair in wanted)
    return counts | {"precision": share(len(gone & in_pairs), len(gone)), "recall": share(found, len(wanted))}


def correspondence(facts: Path, truth: dict[str, dict[str, str]], name: str) -> dict[str, Any]:
    """How well av_correspondence and av_cosine tell swapped sounds from others, whatever the threshold."""
    rows = [row for table in read_tables(facts) for row in table.to_pylist()]
    rows = [row for row in rows if truth[row["key"]]["fault"] in ("", "swapped")]
    is_swapped = [truth[row["key"]]["fault"] == "swapped" for row in rows]
    areas = {
        column: float(roc_auc_score(is_swapped, [-row[column] for row in rows]))
        for column in ("av_correspondence", "av_cosine")
    }
    mean = {}
    for what, flag in (("swapped", True), ("own", False)):
        chosen = [row["av_correspondence"] for row, one in zip(rows, is_swapped, strict=True) if one == flag]
        mean[what] = float(np.mean(chosen))
    return {"network": name, "auc": areas, "mean_av_correspondence": mean}


def measure(out: Path, run: str, truth: dict[str, dict[str, str]]) -> dict[str, Any]:
    faulty = {fault: {key for key, one in truth.items() if one["fault"] == fault} for fault in (*SHARES, *COPIES)}
    facts, rows, networks = out / "facts.parquet", [], []
    avssl("prep", "index", out / "corpus", "--out", out / "corpus.jsonl", "--labels", "none")
    avssl("prep", "facts", out / "corpus.jsonl", "--out", facts)
    for condition, fault in (("silent_share < 1", "silent"), ("still_share < 1", "still")):
        gone = left_out(out, facts, "--where", condition)
        rows.append(score(f"--where '{condition}'", gone, faulty[fault], len(truth)))
    gone = left_out(out, facts, "--dedup", "exact")
    rows.append(score_copies("--dedup exact, of equal bytes", gone, truth, "exact"))
    gone = left_out(out, facts, "--dedup", "near")
    rows += [score_copies(f"--dedup near, of copies {fault}", gone, truth, fault) for fault in COPIES]
    for name in ["trained", "untrained"] if run else []:
        own = out / f"facts_{name}.parquet"
        shutil.copy(facts, own)
        weights = ["--untrained"] if name == "untrained" else []
        avssl("embed", run, out / "corpus.jsonl", "--out", out / f"embeddings_{name}", *weights)
        avssl("prep", "facts", out / "corpus.jsonl", "--out", own, "--embeddings", out / f"embeddings_{name}")
        networks.append(correspondence(own, truth, name))
        for threshold in (0.5, 0.8, 0.95):
            condition = f"av_correspondence > {threshold}"
            gone = left_out(out, own, "--where", condition) - faulty["silent"] - faulty["still"]
            rows.append(score(f"--where '{condition}', {name}", gone, faulty["swapped"], len(truth)))
    return {
        "rows": rows,
        "networks": networks,
        "clips": dict(Counter(one["fault"] or "none" for one in truth.values())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--run", default="", help="of `python -m recipes.demo`: whose embeddings find swapped sounds")
    parser.add_argument("--clips", type=int, default=400, help="of the demo corpus")
    parser.add_argument("--videos", type=Path, help="a folder of videos to cut instead")
    arguments = parser.parse_args()
    (arguments.out / "corpus").mkdir(parents=True)
    clips = list(demo_clips(arguments.clips) if arguments.videos is None else real_clips(arguments.videos))
    truth = make_corpus(arguments.out / "corpus", clips, has_swaps=bool(arguments.run))
    (arguments.out / "truth.json").write_text(json.dumps(truth, indent=1))
    result = measure(arguments.out, arguments.run, truth) | {"machine": machine()}
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1))
    print(f"\n{result['machine']}\n{result['clips']}\n")
    for row in result["rows"]:
        scores = "   ".join(f"{name} {row[name]:.2f}" for name in ("precision", "recall", "chance"))
        print(f"{row['filter']:<52}{row['wrong']:5} wrong {row['left_out']:5} left out   {scores}")
    for network in result["networks"]:
        print(json.dumps(network))


if __name__ == "__main__":
    main()
