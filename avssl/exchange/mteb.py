"""A run or a public model as a model of mteb, for its benchmarks of video and sound. The only user of mteb.

    import mteb
    from avssl.exchange.mteb import MtebModel

    mteb.evaluate(MtebModel("runs/avid_cma"), mteb.get_benchmark("MVEB(video, v1)"))

The media of a task are read as files, undecoded, by the program's own readers in processes that may be killed, so that
a row is what `avssl embed` gives for the same file: the mean of its windows. Video is read from the column `video`,
sound from the column `audio`, also where the file of `video` has sound too.

A row of several modalities, such as video and audio, is the mean of their unit vectors, divided by its length, where
they lie in one space, so that it can be compared with rows of one of them; otherwise the vectors stand one behind the
other. Text is read by public models that have a text tower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from avssl.embedding.embedder import Embedder
from avssl.embedding.search import in_one_space
from avssl.embedding.table import MODALITIES
from avssl.files.plain_text import brief
from avssl.files.scratch import temporary_folder
from avssl.media.images import IMAGE_SUFFIXES
from avssl.media.info import MEDIA_SUFFIXES
from avssl.processes.limits import Limits

ROWS_AT_ONCE = 256  # whose files lie on the disk at a time
SUFFIXES = {"video": ".mp4", "audio": ".wav", "image": ".png"}  # of contents without a name
Rows = NDArray[np.float32]


class MtebModel:
    """An encoder as mteb's EncoderProtocol has it.

    Args:
        model_name: a run folder, an exchange folder, `hf://owner/name`, or a public model, as Embedder.from_run has it.
        revision: must be None or the hash of the weights: a run has no other revisions.
        device: "cpu", "cuda", ...
        vectors: "embedding", or "feature" for what lies before the projector, whose modalities share no space.
        window_seconds, stride_seconds: as Embedder.embed. num_workers: decoding processes; 0: this process.

    Raises ImportError if mteb is not installed, otherwise as Embedder.from_run.
    """

    def __init__(
        self,
        model_name: str | Path,
        revision: str | None = None,
        *,
        device: str | None = None,
        vectors: Literal["embedding", "feature"] = "embedding",
        window_seconds: float | None = None,
        stride_seconds: float | None = None,
        num_workers: int = 2,
    ) -> None:
        try:
            from mteb.models.model_meta import ModelMeta, ScoringFunction
        except ImportError as error:
            raise ImportError(f'this needs mteb, an extra: pip install "avssl[mteb]" ({error})') from error
        if vectors not in ("embedding", "feature"):
            raise ValueError(f"vectors is {brief(vectors)}; it must be 'embedding' or 'feature'")
        self.embedder = Embedder.from_run(model_name, device=device or "cpu")
        if revision not in (None, self.embedder.weights_hash):
            raise ValueError(
                f"revision is {brief(revision)}; the weights of {model_name} are {self.embedder.weights_hash}"
            )
        self.vectors, self._num_workers = vectors, num_workers
        self._grid: dict[str, Any] = {"window_seconds": window_seconds, "stride_seconds": stride_seconds}
        names = self.embedder.modalities
        texts = ["text"] if vectors == "embedding" and self.embedder.text_modalities() else []
        dims = sorted({pair[vectors == "embedding"] for pair in self.embedder.dims(names).values()})
        parameters = sum(parameter.numel() for parameter in self.embedder.encoders.parameters())
        name = Path(model_name).resolve().name if Path(model_name).exists() else str(model_name).replace("/", "--")
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"avssl/{name}",
                "revision": self.embedder.weights_hash,
                "modalities": [*names, *texts],
                "n_parameters": parameters,
                "embed_dim": dims[0] if len(dims) == 1 else dims,
                "similarity_fn_name": ScoringFunction.COSINE,
                "framework": ["PyTorch"],
                "use_instructions": False,
            }
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int = 64,
        **_: Any,
    ) -> Rows:
        """The rows of a data set of a task, float32 (n, D), unit vectors unless they are features.

        inputs: mteb's DataLoader; its data set is read, in order. prompt_type: which side of a retrieval it is.

        ValueError names the first file that cannot be read or lacks its modality: nothing stands in for it.
        """
        dataset = inputs.dataset
        names = [name for name in MODALITIES if name in dataset.column_names and name in self.embedder.modalities]
        where = f"{task_metadata.name}, {hf_subset}, {hf_split}"
        self._check_sides(task_metadata, prompt_type, where)
        rows = {name: self._media_rows(dataset, name, batch_size, where) for name in names}
        if "text" in dataset.column_names:
            others = [name for name in self._sides(task_metadata, prompt_type)[1] if name in MODALITIES]
            rows |= {f"text of {name}": self._text_rows(dataset["text"], name) for name in others or names}
        if not rows:
            raise ValueError(
                f"{where}: the data set has {', '.join(dataset.column_names)}, and this model reads "
                f"{', '.join(self.mteb_model_meta.modalities)}"
            )
        return self._together(rows)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of all rows of both: (n, m)."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of the rows of both, pair by pair: (n,)."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    def _media_rows(self, dataset: Any, name: str, batch_size: int, where: str) -> Rows:
        """The rows of a column of media."""
        feature = dataset.features[name]
        if not hasattr(feature, "decode"):
            raise ValueError(f"{where}: the column {name} holds {brief(feature)}, and no files of {name}")
        files = dataset.select_columns([name]).cast_column(name, replace(feature, decode=False))
        parts = []
        for first in range(0, len(files), ROWS_AT_ONCE):
            numbers = range(first, min(first + ROWS_AT_ONCE, len(files)))
            with temporary_folder() as folder:
                paths = [_placed(files[number][name], folder / f"{number:08d}", name, where) for number in numbers]
                table, failures = self.embedder.embed(
                    paths, modalities=[name], batch_size=batch_size, num_workers=self._num_workers, limits=Limits(),
                    **self._grid,
                )  # fmt: skip
            found = table.select(table.has(name)).pool_by_key()
            if len(found) != len(paths):
                keys = [path.name.replace(".", "_") for path in paths]
                number = next(n for n, key in enumerate(keys) if key not in found.keys)
                reason = failures.get(keys[number], f"it has no {name}")
                raise ValueError(f"{where}, row {first + number}: the {name} cannot be embedded: {reason}")
            parts.append(getattr(found, f"{name}_{self.vectors}"))
        return np.concatenate(parts)

    def _text_rows(self, texts: Sequence[str], name: str) -> Rows:
        if self.vectors == "feature":
            raise ValueError("features lie in no space with text; use vectors='embedding'")
        firsts = range(0, len(texts), ROWS_AT_ONCE)
        return np.concatenate([self.embedder.embed_text(list(texts[n : n + ROWS_AT_ONCE]), name) for n in firsts])

    def _together(self, rows: Mapping[str, Rows]) -> Rows:
        """One row for the vectors of several modalities."""
        names = list(rows)
        if len(names) == 1:
            return rows[names[0]]
        if self._is_one_space({name.removeprefix("text of ") for name in names}):
            mean = np.mean(np.stack(list(rows.values())), axis=0, dtype=np.float64)
            unit: Rows = (mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)).astype(np.float32)
            return unit
        return np.concatenate(list(rows.values()), axis=1)

    def _is_one_space(self, names: set[str]) -> bool:
        """Whether the vectors of some modalities lie in one space."""
        first, *others = sorted(names)
        return not others or (
            self.vectors == "embedding" and all(in_one_space(self.embedder, first, other) for other in others)
        )

    def _sides(self, task_metadata: Any, prompt_type: Any) -> tuple[list[str], list[str]]:
        """(modalities of the rows, those of the rows that they are compared with)."""
        if prompt_type is None:
            return list(task_metadata.modalities), list(task_metadata.modalities)
        kinds = type(prompt_type)
        other = kinds.document if prompt_type == kinds.query else kinds.query
        return list(task_metadata.get_modalities(prompt_type)), list(task_metadata.get_modalities(other))

    def _check_sides(self, task_metadata: Any, prompt_type: Any, where: str) -> None:
        """ValueError if rows of spaces that cannot be compared would be."""
        here, there = (set(side) & set(self.embedder.modalities) for side in self._sides(task_metadata, prompt_type))
        if here and there and here != there and not self._is_one_space(here | there):
            raise ValueError(
                f"{where}: {' and '.join(sorted(here))} is compared with {' and '.join(sorted(there))}, and their "
                f"{self.vectors}s lie in different spaces"
            )


def _placed(value: Mapping[str, Any] | None, place: Path, name: str, where: str) -> Path:
    """The media of a row as a new file, which has the name of `place` and a suffix. ValueError if there are none."""
    content, given = (value or {}).get("bytes"), str((value or {}).get("path") or "")
    suffix = Path(given).suffix.lower()
    path = place.with_suffix(suffix if suffix in MEDIA_SUFFIXES | IMAGE_SUFFIXES else SUFFIXES[name])
    if content:
        path.write_bytes(content)
    elif Path(given).is_file():
        path.symlink_to(Path(given).absolute())
    else:
        why = f": {brief(given)} is no file of this machine" if given else ""
        raise ValueError(f"{where}, row {int(place.name)}: there is no {name}{why}")
    return path
