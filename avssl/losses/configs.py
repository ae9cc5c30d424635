"""What each loss can be told: its keys, as dataclasses. Without PyTorch, so that help and errors in keys come at once.

A loss of your own has its configuration beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from avssl.types import Agreement, LossConfig


@dataclass
class PairConfig(LossConfig):
    """Base of the configurations of losses that compare two views of a sample.

    >>> PairConfig(name="simclr", modalities=("video", "audio")).augments
    ()
    """

    modalities: tuple[str, ...] = ("image", "image")  # or video video, audio audio, video audio
    augments: tuple[str, ...] = ()  # a set per view; empty: the paper's sets for images, the run's own for others


@dataclass
class CaptionConfig(PairConfig):
    """Base of the configurations of losses that compare samples with the text of their captions.

    >>> CaptionConfig(name="mine", text_encoder={"name": "hf/ORG/NAME"}).without_caption
    'error'
    """

    # name: hf/ORG/NAME or hf/FOLDER of a model that reads text; the run adds its commit, SHA-256 and dim
    text_encoder: dict[str, Any] = field(default_factory=dict)
    text_rows: str = ""  # file with the embeddings of the captions, which runs may share; default in the run's folder
    without_caption: Literal["error", "skip"] = "error"  # skip: such samples are not compared with text
    cut_long_captions: bool = False  # read the beginning of captions that are longer than the text encoder reads


@dataclass
class AVIDConfig(LossConfig):
    """Defaults are those of the published Kinetics runs."""

    name: str = "avid"
    variant: Literal["cross", "self", "joint"] = "cross"
    num_negatives: int = 1024
    temperature: float = 0.07
    bank_momentum: float = 0.5
    projector_hidden_dims: tuple[int, ...] = (512, 512)
    embedding_dim: int = 128
    projector_final_batch_norm: bool = False  # after each projector; not in the paper, see docs/decisions.md
    shard_banks: bool = False  # split the banks' rows over the ranks: for banks that fit on no single device
    num_negatives_same_clip: int = 0  # other moments of a clip, negatives of each other; not in the paper


@dataclass
class AVIDCMAConfig(AVIDConfig):
    """Defaults are those of the published runs."""

    name: str = "avid_cma"
    agreement: Agreement = "consensus"
    num_positives: int = 32
    num_negatives_within: int = 64
    search_every_epochs: int = 5  # the positives are searched anew
    instance_across_weight: float = 1.0
    instance_within_weight: float = 0.0
    positive_within_weight: float = 1.0
    positive_across_weight: float = 0.0


@dataclass
class BarlowTwinsConfig(PairConfig):
    """Defaults are those of the paper's ImageNet runs."""

    name: str = "barlow_twins"
    projector_hidden_dims: tuple[int, ...] = (8192, 8192)
    embedding_dim: int = 8192
    redundancy_weight: float = 0.0051  # lambda of eq. 1, of the entries off the diagonal


@dataclass
class BYOLConfig(PairConfig):
    """Defaults are those of the paper's 1000 epochs on ImageNet."""

    name: str = "byol"
    projector_hidden_dims: tuple[int, ...] = (4096,)
    embedding_dim: int = 256
    predictor_hidden_dims: tuple[int, ...] = (4096,)
    teacher_momentum: float = 0.996  # at the first step; it rises to 1 along a cosine
    teacher_start: Literal["independent", "copy"] = "independent"  # copy: for short runs


@dataclass
class CLIPFrozenTextConfig(CaptionConfig):
    """Defaults are a start, not those of a published run."""

    name: str = "clip_frozen_text"
    modalities: tuple[str, ...] = ("video", "audio")  # or one of video, audio and image
    temperature: float = 0.07  # at the start; the paper's
    learn_temperature: bool = True
    projector_hidden_dims: tuple[int, ...] = ()  # none: one linear layer into the text encoder's space
    across_weight: float = 1.0  # of video against audio of the same sample; the text of each modality has 1


@dataclass
class MultiCropConfig(PairConfig):
    """Options of the losses on two large crops and several small ones."""

    num_small_crops: int = 6  # of the image or the video; audio has none. 0: only the two large crops


@dataclass
class CropConfig(MultiCropConfig):
    """Defaults are those of the paper's 800 epochs with eight crops."""

    num_prototypes: int = 3000
    temperature: float = 0.1
    projector_hidden_dims: tuple[int, ...] = (2048,)
    embedding_dim: int = 128
    projector_final_batch_norm: bool = False  # after the projector; not in the papers, see docs/decisions.md


@dataclass
class DeepClusterConfig(PairConfig):
    """Defaults are those of the published AlexNet."""

    name: str = "deepcluster"
    modalities: tuple[str, ...] = ("image",)  # or video, audio, or both of these: labels are swapped
    num_clusters: int = 10_000
    cluster_every_epochs: int = 1  # more for a small corpus: a new classifier needs some hundred steps
    pca_dim: int = 256  # at most the features' dim, and less than the number of samples
    kmeans_iterations: int = 20
    projector_dims: tuple[int, ...] = (4096, 4096)  # layers between encoder and features; []: the encoder's output


@dataclass
class DeepClusterV2Config(CropConfig):
    """Defaults are those of the published 800 epochs with eight crops."""

    name: str = "deepcluster_v2"
    num_heads: int = 3  # clusterings of num_prototypes each
    kmeans_iterations: int = 10


@dataclass
class TeacherConfig:
    """A frozen network, or what it made of every sample: one of run, encoder and embeddings (train/teacher.py)."""

    run: str = ""  # a run, hf://owner/name, or a public model (timm/NAME.TAG, hf/ORG/NAME), as `avssl embed` takes it
    encoder: dict[str, Any] = field(default_factory=dict)  # or {name: ..., weights: FILE, and its options}
    embeddings: str = ""  # or a folder of `avssl embed`: rows by key, the mean over the windows of a sample
    modality: str = ""  # that it looks at; "": that of the students if it can, else its first
    output: Literal["feature", "embedding"] = "feature"  # of its encoder, or behind its head
    views: dict[str, Any] = field(default_factory=dict)  # keys of its views, {fps: 4}; of a run they are fixed
    dim: int = 0  # of its output; these three are filled in when the run begins
    fingerprint: str = ""  # of its weights, or of the files of rows
    license: str = ""  # of a public model, as its card says


@dataclass
class DINOConfig(MultiCropConfig):
    """Defaults are those of the authors' code: a vision transformer in 100 epochs."""

    name: str = "dino"
    num_small_crops: int = 8
    num_prototypes: int = 65_536
    temperature: float = 0.1
    teacher_temperature: float = 0.04  # the authors saw most runs become unstable above 0.07
    teacher_temperature_start: float = 0.04  # from which it rises linearly in the first
    teacher_temperature_epochs: int = 0
    teacher_momentum: float = 0.996  # at the start; goes to 1. The authors take 0.9995 for a batch of 256
    center_momentum: float = 0.9
    freeze_epochs: int = 1  # at the start, without updates of the prototypes
    projector_hidden_dims: tuple[int, ...] = (2048, 2048)
    projector_batch_norm: bool = False
    embedding_dim: int = 256


@dataclass
class DistilConfig(PairConfig):
    """Queue and the student's temperature are those of SEED's code; the rest is a start."""

    name: str = "distil"
    modalities: tuple[str, ...] = ("image",)  # of the students: image, video, audio, or video audio
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    regression_weight: float = 1.0  # of the squared distance to the teacher's output, both made unit; 0: none
    similarity_weight: float = 1.0  # of the similarities to a queue of the teacher's outputs; 0: none, and no queue
    queue_size: int = 65_536
    teacher_temperature: float = 0.01
    student_temperature: float = 0.2
    projector_hidden_dims: tuple[int, ...] = (2048,)  # to the dim of the teacher


@dataclass
class LeJEPAConfig(MultiCropConfig):
    """Defaults are a start, not those of a published run."""

    name: str = "lejepa"
    sigreg_weight: float = 0.05  # in (0, 1), the one hyperparameter; the rest is the weight of the views' agreement
    num_directions: int = 256  # random ones of each batch, on which embeddings must look Gaussian
    projector_hidden_dims: tuple[int, ...] = (2048, 2048)
    embedding_dim: int = 128


@dataclass
class MoCoConfig(PairConfig):
    """Defaults are those of v1 on ImageNet."""

    name: str = "moco"
    temperature: float = 0.07
    queue_size: int = 65_536
    teacher_momentum: float = 0.999
    projector_hidden_dims: tuple[int, ...] = ()
    embedding_dim: int = 128
    shuffle_groups: int = 8  # groups of the global batch for batch norm; 0: none, to be used with sync_batch_norm
    num_negatives_same_clip: int = 0  # [video, audio]: other moments of a clip; not in the papers


@dataclass
class MoCoV3Config(PairConfig):
    """Defaults are those of the authors' ResNet-50 runs of 100 and 300 epochs."""

    name: str = "moco_v3"
    temperature: float = 1.0
    teacher_momentum: float = 0.99  # at the start
    projector_hidden_dims: tuple[int, ...] = (4096,)
    predictor_hidden_dims: tuple[int, ...] = (4096,)
    predictor_final_batch_norm: bool = False
    embedding_dim: int = 256


@dataclass
class NPIDConfig(PairConfig):
    """Defaults are those of the authors' ImageNet runs."""

    name: str = "npid"
    modalities: tuple[str, ...] = ("image",)  # or video, audio; or two views: image image, video audio, ...
    num_negatives: int = 4096
    temperature: float = 0.07
    bank_momentum: float = 0.5
    embedding_dim: int = 128
    projector_final_batch_norm: bool = False  # after the projector; not in the paper, see docs/decisions.md
    shard_banks: bool = False  # split the banks' rows over the ranks: for banks that fit on no single device


@dataclass
class PIRLConfig(PairConfig):
    """Defaults are those of VISSL's reproduction."""

    name: str = "pirl"
    num_negatives: int = 32_000
    temperature: float = 0.07
    bank_momentum: float = 0.5
    jigsaw_weight: float = 0.5  # lambda; the whole has 1 - lambda
    projector_hidden_dims: tuple[int, ...] = ()
    embedding_dim: int = 128
    projector_final_batch_norm: bool = False  # after both heads; not in the paper, see docs/decisions.md
    shard_banks: bool = False  # split the banks' rows over the ranks: for banks that fit on no single device


@dataclass
class PublicModelConfig(LossConfig):
    """The modalities that the model embeds."""

    name: str = "public_model"
    modalities: tuple[str, ...] = ("image",)


@dataclass
class SeLaConfig(PairConfig):
    """Defaults are those of the published ResNet-50 with ten heads."""

    name: str = "sela"
    modalities: tuple[str, ...] = ("image",)  # or video, audio, or both of these: shared labels
    num_heads: int = 10
    num_clusters: int = 3000  # of each head
    sharpness: float = 25.0  # lambda
    num_relabelings: int = 100
    relabel_epochs: int = 400  # over which they are spread: the epochs of the run
    swap_labels: bool = False  # across modalities: each takes the labels of the other's predictions, not of the product


@dataclass
class SimCLRConfig(PairConfig):
    """Defaults are those of the paper's ImageNet runs."""

    name: str = "simclr"
    temperature: float = 0.1
    projector_hidden_dims: tuple[int, ...] = (2048,)
    embedding_dim: int = 128
    projector_batch_norm: bool = True  # after every layer, as in the authors' code
    num_negatives_same_clip: int = 0  # [video, audio]: other moments of a clip; not in the paper


@dataclass
class SimSiamConfig(PairConfig):
    """Defaults are those of the paper's ImageNet runs."""

    name: str = "simsiam"
    projector_hidden_dims: tuple[int, ...] = (2048, 2048)
    embedding_dim: int = 2048
    predictor_hidden_dims: tuple[int, ...] = (512,)


@dataclass
class SwAVConfig(CropConfig):
    """Defaults are those of the published runs with a global batch of 4096."""

    name: str = "swav"
    epsilon: float = 0.05  # of Sinkhorn: smaller gives harder codes
    sinkhorn_iterations: int = 3
    freeze_steps: int = 313  # optimizer steps at the start without updates of the prototypes (one epoch of ImageNet)
    queue_size: int = 0  # embeddings of each large crop, of all ranks; 3840 in the paper for a global batch of 256
    queue_from_epoch: int = 15  # first epoch that uses the queue


@dataclass
class VICRegConfig(PairConfig):
    """Defaults are those of the paper's ImageNet runs."""

    name: str = "vicreg"
    projector_hidden_dims: tuple[int, ...] = (8192, 8192)
    embedding_dim: int = 8192
    invariance_weight: float = 25.0
    variance_weight: float = 25.0
    covariance_weight: float = 1.0


@dataclass
class XDCConfig(DeepClusterConfig):
    """Defaults are DeepCluster's, on the encoders' own features."""

    name: str = "xdc"
    modalities: tuple[str, ...] = ("video", "audio")
    projector_dims: tuple[int, ...] = ()


# {name of one of the program's own losses: its configuration}
CONFIGURATIONS: dict[str, type[LossConfig]] = {
    kind.name: kind
    for kind in (
        AVIDCMAConfig,
        AVIDConfig,
        BYOLConfig,
        BarlowTwinsConfig,
        CLIPFrozenTextConfig,
        DeepClusterConfig,
        DeepClusterV2Config,
        DINOConfig,
        DistilConfig,
        LeJEPAConfig,
        MoCoConfig,
        MoCoV3Config,
        NPIDConfig,
        PIRLConfig,
        PublicModelConfig,
        SeLaConfig,
        SimCLRConfig,
        SimSiamConfig,
        SwAVConfig,
        VICRegConfig,
        XDCConfig,
    )
}
