"""What each task of `avssl evaluate` can be told: its keys, as dataclasses; without PyTorch, so that help comes fast.

A task of your own has its configuration beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from avssl.optim.config import OptimConfig

SLOT = "{}"  # of a template, in which the class stands


@dataclass
class TaskConfig:
    """The keys that every task of `avssl evaluate` has; a task adds its own.

    >>> TaskConfig(task="standard", test="shards/").num_workers
    2
    """

    task: str = ""  # a file of avssl/eval/tasks
    train: str = ""  # shard folder or URL that is learned from
    test: str = ""  # shard folder or URL that is scored
    checkpoint: str = ""  # "latest" or a step, of a run that goes on or was stopped; "": the finished run
    allow_overlap: bool = False  # evaluate a test set that was trained on; the result says how many samples were
    batch_size: int = 64  # clips per forward pass
    num_workers: int = 2  # decoding processes
    device: str = "cpu"
    plugins: list[Any] = field(default_factory=list)  # Python files with tasks, ... of your own: docs/plugins.md

    @property
    def name(self) -> str:
        """The name of the result; "" for a task with one result per run."""
        return ""

    @property
    def untrained(self) -> bool:
        """Whether random weights are evaluated beside the run's own."""
        return True


@dataclass
class LabelTaskConfig(TaskConfig):
    """The keys of tasks on labels and folds, of which a run may have several results.

    >>> LabelTaskConfig(task="knn", name="kinetics").label_field
    'label'
    """

    name: str = ""  # of the result: RUN/evaluations/<task>-<name>.json; default: the YAML's own
    folds: list[int] = field(default_factory=list)  # e.g. [1, 2, 3]: numbers to put for {fold} in `train` and `test`
    fold_field: str = ""  # instead of `folds`: a label field of `train` that names the folds; each is tested once
    label_field: str = "label"  # the label field of the samples
    multi_label: bool = False  # several labels per sample: mAP, AUC and d' in place of accuracies
    modality: str = "video"  # video, audio, image, or both (video and audio)
    untrained: bool = True  # evaluate random weights beside the run's own
    folder: str = ""  # of the checkpoints of a task that trains; default RUN/evaluations/<task>-<name>


@dataclass
class FrozenConfig(LabelTaskConfig):
    """The keys of tasks on stored features of frozen networks."""

    layers: list[str] = field(default_factory=lambda: ["feature"])  # feature, embedding, conv2x .. conv5x
    fuse: str = "concatenate"  # of `modality: both`: concatenate (unit features), or average (scores of two models)
    train_clips: int = 1  # evenly spaced clips per training sample
    test_clips: int = 1  # evenly spaced clips per test sample; their scores are averaged
    random_train_clips: bool = False  # draw the training clips instead of spacing them evenly
    speed: list[float] = field(default_factory=lambda: [1.0, 1.0])  # of random audio clips: range of the factor
    volume: list[float] = field(default_factory=lambda: [1.0, 1.0])  # the same for a factor on the waveform
    seed: int = 0  # of random training clips and of the classifier


@dataclass
class TrainedConfig(LabelTaskConfig):
    """The keys of classifiers that are trained on augmented clips. `batch_size` is in clips, for the test alone."""

    epochs: int = 10  # each of `clips_per_sample` passes over the training samples
    clips_per_sample: int = 1  # random clips per sample and epoch, one per pass
    train_batch_size: int = 64  # samples per step, over all processes
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4, weight_decay=0.0))
    milestone_epochs: list[float] = field(default_factory=list)  # lr times optim.gamma after these; sets the schedule
    label_smoothing: float = 0.0  # of single labels
    label_share: float = 1.0  # of the training samples of each class that is used, at least one; drawn by the seed
    seeds: list[int] = field(default_factory=lambda: [0])  # of heads, order, augmentation; a repeat per seed and fold
    augment: str = ""  # set of views.augments for images and video; "": the run's, crop and flip for images
    views: dict[str, Any] = field(default_factory=dict)  # changes to the run's views, e.g. {video: {num_frames: 32}}
    encoders: dict[str, Any] = field(default_factory=dict)  # changes to encoders' options: {image: {drop_path: 0.1}}
    test_clips: int = 10  # evenly spaced over each sample; their scores are averaged
    test_crops: int = 1  # of an image or frame: 1, the center, or 3 along the longer side
    mixed_precision: str = "fp32"  # or bf16
    order_lanes: int = 0  # as data.order_lanes in pretraining: fixes the order for any number of processes
    max_failure_rate: float = 0.01  # share of unreadable training samples at which it stops; none in the test
    log_every_steps: int = 10
    checkpoint_every_steps: int = 500


@dataclass
class ClusteringConfig(FrozenConfig):
    """The keys of k-means on the test samples; the rows are the means of their unit clips."""

    num_clusters: int = 0  # 0: as many as there are classes
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])  # of k-means
    num_restarts: int = 10  # per seed; the one with the tightest clusters counts


@dataclass
class FewLabelConfig(FrozenConfig):
    """The keys of stratified draws: the share of each class is rounded (halves up) and at least one sample."""

    fractions: list[float] = field(default_factory=lambda: [0.01, 0.1])  # of the training samples
    per_class: list[int] = field(default_factory=list)  # samples per class
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])  # of the draw
    classifier: str = "linear"  # linear (logistic regression), or knn
    cost: float = 1.0  # C of the logistic regression
    max_iterations: int = 1000
    num_neighbors: int = 20
    temperature: float = 0.07


@dataclass
class FinetuneConfig(TrainedConfig):
    """The head is dropout and a linear layer on the feature of the encoder; with `modality: both`, on both features."""

    dropout: float = 0.5  # of the feature, before the linear layer
    head_epochs: int = 0  # of the head alone, before the whole network; counted as `epochs`
    head_optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4, weight_decay=0.0))
    head_batch_norm: Literal["train", "frozen"] = (
        "frozen"  # of the encoder in these epochs: `train` moves running statistics
    )
    batch_norm: Literal["train", "frozen"] = "train"  # of the encoder in the other epochs
    encoder_lr_scale: float = 1.0  # the learning rate of the encoder over that of the head


@dataclass
class KNNConfig(FrozenConfig):
    """The keys of kNN; neighbors vote with exp(cosine / temperature)."""

    num_neighbors: int = 20
    temperature: float = 0.07


@dataclass
class LinearConfig(FrozenConfig):
    """The keys of the classifier; its L2 regularization is 1 / (2 C) |w|^2 beside the sum of the losses."""

    costs: list[float] = field(default_factory=lambda: [1.0])  # C; of several, the best on a fifth of the training set
    max_iterations: int = 1000


@dataclass
class LinearProbeConfig(TrainedConfig):
    """The keys of the probes. The defaults are no published protocol: those are in
    recipes/configs/evaluate/linear_probe_*.yaml."""

    layers: list[str] = field(default_factory=list)  # of conv2x .. conv5x and pool; []: every stage the encoder has
    probe_batch_norm: bool = True  # before each linear layer, with scale and shift


@dataclass
class RetrievalConfig(FrozenConfig):
    """The keys of retrieval by cosine; a row is the mean of the unit clips of a sample."""

    modality: str = "both"  # both: across modalities and within each; one modality: within it
    layers: list[str] = field(default_factory=lambda: ["embedding"])  # across modalities only embeddings are compared
    recall_at: list[int] = field(default_factory=lambda: [1, 5, 10, 20, 50])
    label_field: str = ""  # for retrieval within a modality; empty: only across modalities


@dataclass
class StandardConfig(TaskConfig):
    """The keys of the task. kNN takes its neighbors from `train`; retrieval is over all pairs of `test`."""

    task: str = "standard"
    num_neighbors: int = 20
    temperature: float = 0.07
    knn_on: Literal["feature", "embedding"] = "feature"  # encoder output, or the shared space after the projector
    num_positives: int = 32  # positives per anchor whose precision is computed
    window_seconds: float = 0.0  # 0: the audio clip of the run, or its video clip if it has no audio


@dataclass
class SVMConfig(FrozenConfig):
    """The keys of scikit-learn's LinearSVC."""

    cost: float = 1.0  # C
    max_iterations: int = 200
    deviation_offset: float = 0.01  # added to the standard deviation that features are divided by


@dataclass
class SynchronizationConfig(FrozenConfig):
    """The keys of the task. Cosines are averaged over test_clips evenly spaced positions per sample."""

    modality: str = "both"
    layers: list[str] = field(default_factory=lambda: ["embedding"])
    label_field: str = ""  # not used
    shift_seconds: float = 0.0  # of the shifted audio clip from the aligned one; 0: the run's audio clip length
    silence_dbfs: float = -60.0  # samples whose audio clips are all below this level are left out


@dataclass
class ZeroShotConfig(LabelTaskConfig):
    """The keys of the task. Of several test clips the cosines are averaged."""

    templates: list[str] = field(default_factory=lambda: [f"a photo of a {SLOT}."])  # {} is the class
    class_names: dict[str, str] = field(default_factory=dict)  # words for labels that are none: {n01440764: tench}
    test_clips: int = 1  # evenly spaced clips per sample
    per_class: bool = True  # a line for every class
    untrained: bool = False  # random weights beside the text of trained ones say nothing


# {name of one of the program's own tasks: its configuration}
CONFIGURATIONS: dict[str, type[TaskConfig]] = {
    "clustering": ClusteringConfig,
    "few_label": FewLabelConfig,
    "finetune": FinetuneConfig,
    "knn": KNNConfig,
    "linear": LinearConfig,
    "linear_probe": LinearProbeConfig,
    "retrieval": RetrievalConfig,
    "standard": StandardConfig,
    "svm": SVMConfig,
    "synchronization": SynchronizationConfig,
    "zero_shot": ZeroShotConfig,
}
