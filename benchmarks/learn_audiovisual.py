"""Whether every cross-modal loss learns: all of them on the demo corpus, with the same number of clips seen.

    python benchmarks/learn_audiovisual.py [--seeds 2] [--losses avid,simclr] [--out FOLDER] [--teacher RUN]

The corpus is that of `make demo`: 600 training and 300 test clips of 8 shapes and 8 timbres that agree in nine of ten.
Each loss trains the demo's two small networks from scratch by recipes/pretrain.py; recipes/evaluate.py judges them by
kNN on shape (video) and timbre (audio) and by retrieval over 300 pairs, beside the same networks untrained and chance.
distil's students of video and sound learn the sound features of the run --teacher, by default this script's AVID of
seed 0; they are computed once. What stands behind a colon is a variant: one part of distil's loss alone, or a teacher
that sees. Results are kept below --out and not computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from avssl import losses
from benchmarks import learning
from benchmarks.claims import machine
from recipes.demo import SHARD_OPTIONS

NUM_TRAIN, NUM_TEST, BATCH_SIZE, STEPS = 600, 300, 32, 900
EPOCHS = STEPS * BATCH_SIZE // NUM_TRAIN
# The same for every loss: networks and views of the demo, optimizer, budget.
SHARED = [
    "cpu=true",
    "epochs=1000",
    "log_every_steps=20",
    "checkpoint_every_steps=100000",
    f"data.global_batch_size={BATCH_SIZE}",
    "data.num_workers=0",
    "data.cache_decoded=500_000_000",
    "views.video.num_frames=4",
    "views.video.fps=8",
    "views.video.size_px=48",
    "views.video.augment={crop_scale: [0.6, 1.0], brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.0}",
    "views.audio={seconds: 1.0, rate_hz: 16000, transform: log_mel, num_mels: 40, window_samples: 512,"
    " hop_samples: 320, num_frames: 50}",
    "encoders.video={name: avid_video, depth: 10, width: 8}",
    "encoders.audio={name: avid_audio, width: 8}",
    "optim.name=adamw",
    "optim.lr=2e-3",
    "optim.weight_decay=1e-4",
    "optim.schedule=cosine",
    "optim.warmup_steps=50",
]
PAIR = "loss.modalities=[video,audio]"
DISTIL = [PAIR, "loss.projector_hidden_dims=[128]", "loss.queue_size=576"]
HEAD = ["loss.projector_hidden_dims=[128]", "loss.embedding_dim=64"]
AVID = [
    "loss.num_negatives=256",
    "loss.temperature=0.2",
    "loss.projector_hidden_dims=[]",
    "loss.projector_final_batch_norm=true",
]
# Settings of each loss: heads for 64 features; banks, queues, prototypes for 600 clips; temperatures and teachers for a
# short run.
SETTINGS: dict[str, list[str]] = {
    "avid": AVID,
    "avid_cma": [
        *AVID,
        "loss.num_positives=64",
        "loss.num_negatives_within=64",
        "loss.search_every_epochs=2",
    ],
    "npid": [PAIR, "loss.num_negatives=256", "loss.temperature=0.2", "loss.projector_final_batch_norm=true"],
    "simclr": [PAIR, *HEAD, "loss.temperature=0.2"],
    "moco": [
        PAIR, *HEAD, "loss.temperature=0.2", "loss.queue_size=96", "loss.teacher_momentum=0.99",
        "loss.shuffle_groups=2",
    ],
    "moco_v3": [PAIR, *HEAD, "loss.predictor_hidden_dims=[128]", "loss.temperature=0.2"],
    # Frozen prototypes and centered embeddings: without either of them the predictions become uniform.
    "swav": [
        PAIR, "loss.projector_hidden_dims=[128]", "loss.embedding_dim=16", "loss.num_prototypes=16",
        "loss.num_small_crops=0", f"loss.freeze_steps={STEPS}", "loss.epsilon=0.1",
        "loss.projector_final_batch_norm=true", "loss.temperature=0.3",
        "loss.queue_size=480", "loss.queue_from_epoch=1",
    ],
    "deepcluster_v2": [PAIR, *HEAD, "loss.num_prototypes=32", "loss.num_small_crops=0"],
    "sela": [
        PAIR, "loss.num_heads=3", "loss.num_clusters=16", f"loss.relabel_epochs={EPOCHS}", "loss.num_relabelings=6",
        "loss.swap_labels=true",
    ],
    "xdc": ["loss.num_clusters=16", "loss.pca_dim=32", "loss.cluster_every_epochs=8"],
    "byol": [
        PAIR, *HEAD, "loss.predictor_hidden_dims=[128]", "loss.teacher_momentum=0.99", "loss.teacher_start=copy",
    ],
    "simsiam": [
        PAIR, "loss.projector_hidden_dims=[128,128]", "loss.embedding_dim=128", "loss.predictor_hidden_dims=[32]",
    ],
    "barlow_twins": [PAIR, "loss.projector_hidden_dims=[128,128]", "loss.embedding_dim=128"],
    "distil": [*DISTIL, "loss.teacher.modality=audio"],
    "distil:regression": [*DISTIL, "loss.teacher.modality=audio", "loss.similarity_weight=0"],
    "distil:similarity": [*DISTIL, "loss.teacher.modality=audio", "loss.regression_weight=0"],
    "distil:from_video": [*DISTIL, "loss.teacher.modality=video"],
    "lejepa": [
        PAIR, "loss.projector_hidden_dims=[128,128]", "loss.embedding_dim=64", "loss.num_small_crops=0",
    ],
    "vicreg": [PAIR, "loss.projector_hidden_dims=[128,128]", "loss.embedding_dim=128"],
}  # fmt: skip
STARTS_FROM = {"avid_cma": "avid"}  # as published; each gets half of the steps
METRICS = {
    "video kNN": ("video_knn_visual", 100.0),
    "audio kNN": ("audio_knn_sound", 100.0),
    "v to a R@10": ("video_to_audio_recall_at_10", 100.0),
    "a to v R@10": ("audio_to_video_recall_at_10", 100.0),
    "v to a rank": ("video_to_audio_median_rank", 1.0),
    "a to v rank": ("audio_to_video_median_rank", 1.0),
}


def prepare(folder: Path) -> dict[str, Path]:
    """The corpus of the demo as shards."""
    shards = {split: folder / "shards" / split for split in ("train", "test")}
    if all((path / "index.json").is_file() for path in shards.values()):
        return shards
    run, videos = [sys.executable, "-m", "data_prep"], folder / "videos"
    counts = ["--num-train", str(NUM_TRAIN), "--num-test", str(NUM_TEST)]
    options = [*counts, "--difficulty", "0.5", "--agreement", "0.9"]
    learning.run_command([*run, "demo-corpus", str(videos), *options], folder / "corpus.log")
    for split, path in shards.items():
        manifest, source = str(folder / f"{split}.jsonl"), videos / split
        index = [*run, "index", str(source), "--out", manifest, "--labels", str(source / "labels.csv")]
        learning.run_command(index, folder / f"index_{split}.log")
        learning.run_command(
            [*run, "write", manifest, "--out", str(path), *SHARD_OPTIONS.split()], folder / f"write_{split}.log"
        )
    return shards


def teacher_rows(folder: Path, shards: dict[str, Path], teacher: str) -> Path:
    """The folder of embeddings of the training clips by the teacher of distil."""
    rows = folder / "teacher" / Path(teacher).name
    if not (rows / "index.json").is_file():
        command = [sys.executable, "-m", "avssl", "embed", teacher, str(shards["train"]), "--out", str(rows)]
        learning.run_command([*command, "--num-workers", "0"], rows.with_suffix(".log"))
    return rows


def one_run(name: str, seed: int, folder: Path, shards: dict[str, Path], teacher: str) -> dict[str, dict[str, float]]:
    """Train and evaluate: {"trained", "untrained", "chance"} -> metrics, and the seconds of training."""
    loss = name.partition(":")[0]
    run = folder / "runs" / f"{name.replace(':', '_')}-{seed}"
    shared = [*SHARED, f"seed={seed}", f"loss.seed={seed}", f"data.shards={shards['train']}"]
    seconds, steps, start = 0.0, STEPS, []
    if name in STARTS_FROM:
        before, steps = STARTS_FROM[name], STEPS // 2
        first = run.with_name(f"{run.name}-start")
        seconds = learning.pretrain(first, [f"loss.name={before}", *shared, *SETTINGS[before], f"steps={steps}"])
        start = [f"init_from={first}"]
    if loss == "distil":
        start = [f"loss.teacher.embeddings={teacher_rows(folder, shards, teacher)}"]
    seconds += learning.pretrain(run, [f"loss.name={loss}", *shared, *SETTINGS[name], f"steps={steps}", *start])
    result = run / "evaluation.json"
    if not result.is_file():
        splits = [f"{split}={path}" for split, path in shards.items()]
        command = [
            sys.executable,
            "recipes/evaluate.py",
            str(run),
            "recipes/configs/evaluate/standard.yaml",
            "num_workers=0",
        ]
        learning.run_command([*command, *splits], run.parent / f"{run.name}-evaluation.log")
    evaluation = json.loads(result.read_text())
    return {**evaluation["results"], "chance": evaluation["chance"], "seconds": {"seconds": seconds}}


def report(names: list[str], results: dict[tuple[str, int], dict[str, dict[str, float]] | Exception]) -> str:
    """The table in Markdown, and the runs that failed."""
    good = {key: value for key, value in results.items() if not isinstance(value, Exception)}
    rows = [
        ["loss", "family", *METRICS, "seconds"],
        ["chance", "", *cells([next(iter(good.values()))["chance"]]), ""],
        ["untrained", "", *cells([result["untrained"] for result in good.values()]), ""],
    ]
    for name in names:
        runs = [result for (loss, _), result in sorted(good.items()) if loss == name]
        if runs:
            times = learning.mean_and_spread([result["seconds"]["seconds"] for result in runs], 1.0)
            rows.append(
                [name, losses.get(name.partition(":")[0]).family, *cells([result["trained"] for result in runs]), times]
            )
    failures = [f"{name}: {value}" for name, value in results.items() if isinstance(value, Exception)]
    head = f"{machine()}; {NUM_TRAIN} clips, {STEPS} steps of {BATCH_SIZE}; test {NUM_TEST}"
    return "\n\n".join([head, learning.markdown(rows), *failures])


def cells(results: list[dict[str, float]]) -> list[str]:
    """Mean and spread of every metric over runs."""
    return [
        learning.mean_and_spread([metrics[key] for metrics in results], scale) if key in results[0] else ""
        for key, scale in METRICS.values()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--losses", default=",".join(SETTINGS), help="comma-separated names")
    parser.add_argument("--out", type=Path, default=Path(".cache/learn_audiovisual"))
    parser.add_argument("--teacher", default="", help="a run, for distil")
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, each on one core")
    arguments = parser.parse_args()
    folder = arguments.out.resolve()
    shards = prepare(folder)
    names = arguments.losses.split(",")
    teacher = arguments.teacher or str(folder / "runs" / "avid-0")
    if any(name.startswith("distil") for name in names):
        if not arguments.teacher:
            one_run("avid", 0, folder, shards, "")
        teacher_rows(folder, shards, teacher)
    jobs = {
        (name, seed): lambda n=name, s=seed: one_run(n, s, folder, shards, teacher)
        for seed in range(arguments.seeds)
        for name in names
    }
    print(report(names, learning.in_parallel(jobs, arguments.parallel)))


if __name__ == "__main__":
    main()
