"""Small audio-visual trainings in this process, judged while they run: for questions that take many of them.

The loss, the views, the order of samples, the optimizer and its rates are those of `avssl pretrain` with the same
configuration; the deterministic views of both splits are made once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from numpy.typing import NDArray
from scipy import stats

from avssl import config, losses
from avssl.data.loader import Loader
from avssl.data.statistics import measure_statistics
from avssl.eval.knn import knn
from avssl.eval.metrics import pair_auc
from avssl.eval.retrieval import retrieval_ranks
from avssl.eval.tasks.synchronization import ShiftedClips
from avssl.losses.avid import AVID
from avssl.losses.avid_cma import positive_set
from avssl.losses.base import EpochContext
from avssl.models import create_encoder
from avssl.optim.build import build_optimizer, set_schedules
from avssl.shards.shard_set import ShardSet
from avssl.transforms.raw_view import RawView
from avssl.transforms.view_maker import ViewMaker
from avssl.types import Agreement, Progress
from benchmarks import learning
from benchmarks.audiovisual_corpora import LABEL_FIELDS

MODALITIES = ("video", "audio")
AGREEMENTS: tuple[Agreement, ...] = ("consensus", "union", "video", "audio")
NUM_NEIGHBORS, KNN_TEMPERATURE, BATCH_SIZE = 20, 0.07, 64
SHIFT_SECONDS, SHIFTED_CLIPS, SILENCE_DBFS = 0.5, 2, -60.0  # of the synchronization task
Metrics = dict[str, float]


@dataclass
class Corpus:
    """A corpus as shards, with class numbers: labels[modality] are those of both splits, int64 (N,)."""

    name: str
    shards: dict[str, Path]
    labels: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for modality, label_field in zip(MODALITIES, LABEL_FIELDS[self.name], strict=True):
            texts = [self._texts(split, label_field) for split in ("train", "test")]
            names = sorted({*texts[0], *texts[1]})
            train, test = (np.array([names.index(text) for text in split], np.int64) for split in texts)
            self.labels[modality] = (train, test)

    def _texts(self, split: str, label_field: str) -> list[str]:
        shards = ShardSet(self.shards[split])
        return [shards.read_info(index).labels[label_field][0] for index in range(shards.num_samples)]


class SmallRun:
    """A training by `changes` to a recipe, and what its networks know.

    Args:
        corpus: what is learned and tested on.
        arguments: YAML files and changes, as those of `avssl pretrain`.
        begun: another run, from whose state this one begins.
    """

    def __init__(self, corpus: Corpus, arguments: list[str], begun: SmallRun | None = None) -> None:
        kept = [f"data.shards={corpus.shards['train']}", "data.num_workers=0", "data.cache_decoded=500_000_000"]
        self.cfg = cfg = config.parse(config.RunConfig, ["run=unused", *arguments, *kept])
        loss_class = losses.get(cfg.loss.name)
        set_seed(cfg.seed)
        views = loss_class.views(cfg.loss)
        self.maker = maker = ViewMaker(cfg.views, MODALITIES)
        encoders = {name: create_encoder(modality=name, **cfg.encoders[name]) for name in MODALITIES}
        train, test = (ShardSet(corpus.shards[split]) for split in ("train", "test"))
        options = {"seed": cfg.seed, "device": learning.CPU}
        self.loader = Loader(train, cfg.data, views, maker, **options)
        once = replace(cfg.data, global_batch_size=min(cfg.data.global_batch_size, test.num_samples))
        test_loader = Loader(test, once, views, maker, **options)
        self.loss = loss_class(cfg.loss, encoders, train.num_samples)
        measure_statistics(maker, self.loader)
        if begun is not None:
            self.loss.load_state_dict(begun.loss.state_dict(), strict=False)
        self.optimizer = build_optimizer(cfg.optim, self.loss.param_groups(), self.loss)
        self.progress = Progress(total_steps=cfg.steps)
        self.corpus = corpus
        name_of = {view.modality: view.name for view in reversed(views)}  # of each modality its first view
        self.views = {}
        for split, loader in (("train", self.loader), ("test", test_loader)):
            batches = [batch.views for batch in loader.every_sample_once(tuple(name_of.values()))]
            for modality, name in name_of.items():
                self.views[split, modality] = torch.cat([views[name] for views in batches])

    def train(self, every_steps: int) -> Iterator[Metrics]:
        """Train to the end; metrics before the first step and after every `every_steps`."""
        cfg, progress, loss = self.cfg, self.progress, self.loss
        yield self.metrics()
        loss.train()
        while progress.step < cfg.steps:
            if progress.batch_in_epoch == 0:
                loss.on_epoch_start(EpochContext(progress.epoch, lambda *_: iter(())))
            for batch in self.loader.epoch(progress.epoch, progress.batch_in_epoch):
                outputs = loss(batch.views)
                result = loss.loss(outputs, batch.index, progress)
                self.optimizer.zero_grad()
                result.total.backward()
                loss.before_step(progress)
                set_schedules(self.optimizer, cfg.optim, progress.step, cfg.steps)
                self.optimizer.step()
                loss.update(outputs, batch.index)
                progress.step += 1
                loss.after_step(progress)
                progress.batch += 1
                progress.batch_in_epoch += 1
                if progress.step % every_steps == 0:
                    yield {"loss": result.total.item(), **self.metrics()}
                if progress.step >= cfg.steps:
                    break
            else:
                progress.epoch, progress.batch_in_epoch = progress.epoch + 1, 0

    @torch.no_grad()
    def metrics(self) -> Metrics:
        """kNN of both modalities on features, and retrieval of test pairs by embeddings, as the task `standard`."""
        self.loss.eval()
        features, embeddings = {}, {}
        for (split, modality), views in self.views.items():
            encoder = self.loss.encoders[modality]
            rows = torch.cat([encoder(part).float() for part in views.split(BATCH_SIZE)])
            features[split, modality] = rows.numpy()
            embeddings[split, modality] = self.loss.embedding(modality, rows)
        self.loss.train()
        result: Metrics = {"step": self.progress.step}
        options = {"num_neighbors": NUM_NEIGHBORS, "temperature": KNN_TEMPERATURE}
        for modality in MODALITIES:
            train_labels, test_labels = self.corpus.labels[modality]
            train, test = features["train", modality], features["test", modality]
            result[f"{modality}_knn"] = knn(train, train_labels, test, test_labels, **options).accuracy
        ranks = [
            retrieval_ranks(embeddings["test", query], embeddings["test", gallery])
            for query, gallery in (MODALITIES, MODALITIES[::-1])
        ]
        result["median_rank"] = float(np.mean([np.median(one) for one in ranks]))
        result["recall_at_10"] = float(np.mean([(one <= 10).mean() for one in ranks]))
        return result

    @torch.no_grad()
    def synchronization(self) -> Metrics:
        """The task `synchronization` on the test clips: AUC, and the share of pairs whose aligned one is closer."""
        clips = ShiftedClips(
            str(self.corpus.shards["test"]), self.cfg.views, SHIFTED_CLIPS, SHIFT_SECONDS, SILENCE_DBFS
        )
        kept = [one.clips for one in clips.load(0) if not isinstance(one, str) and not one.reason]
        self.loss.eval()
        video, audio = (self._embedded(modality, [one[modality] for one in kept]) for modality in MODALITIES)
        self.loss.train()
        aligned, shifted = ((video * part).sum(dim=2).mean(dim=1).double().numpy() for part in audio.chunk(2, dim=1))
        auc = pair_auc(aligned, shifted, np.ones(len(kept)))
        return {"auc": auc, "pairs_told_apart": float((aligned > shifted).mean()), "num_pairs": len(kept)}

    def _embedded(self, modality: str, raw: Sequence[RawView]) -> torch.Tensor:
        """Unit embeddings (B, clips, D) of raw views (clips, ...)."""
        rows = []
        for view in raw:
            made = self.maker({"view": view}, learning.CPU)["view"]
            rows.append(self.loss.embedding(modality, self.loss.encoders[modality](made)))
        return torch.stack(rows)

    def positive_precision(self, num_positives: int) -> Metrics:
        """{"agreement, modality": share of positives with their anchor's label}, of the banks as they are now."""
        loss = self.loss
        if not isinstance(loss, AVID):
            raise TypeError(f"loss {self.cfg.loss.name} has no banks to search")
        video, audio = (loss.bank(modality).rows for modality in MODALITIES)
        result = {}
        for agreement in AGREEMENTS:
            found = positive_set(video, audio, num_positives, agreement).numpy()
            for modality in MODALITIES:
                labels = self.corpus.labels[modality][0]
                result[f"{agreement}, {modality}"] = float((labels[found] == labels[:, None]).mean())
        return result


def stored(path: Path) -> list[dict[str, object]]:
    """The lines of a file of results; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def store(path: Path, *results: Mapping[str, object]) -> None:
    """Add results to a file and show them."""
    lines = "".join(json.dumps(result) + "\n" for result in results)
    print(lines, end="", flush=True)
    with path.open("a") as file:
        file.write(lines)


def interval(values: Sequence[float]) -> str:
    """Mean and the half width of its 95 % interval over seeds (Student's t); a single value as it is."""
    array = np.array(values, float)
    if len(array) < 2 or not np.isfinite(array).all():
        return " / ".join(f"{value:.3g}" for value in values)
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5
    return f"{array.mean():.3g} ± {half:.2g}"
