"""The tasks of `avssl evaluate`: one file per task in this folder, found by its name. `register_task` adds yours.

A task is a configuration and a function. The recipe calls the function once with the run's weights and once with random
ones, averages over repeats (folds, seeds), and writes RUN/evaluations/<task>-<name>.json:

    @dataclass
    class Config(LabelTaskConfig):              # avssl/eval/configs.py: the keys of tasks on labels
        num_neighbors: int = 20                 # keys of the YAML; unknown ones are refused

    @register("knn", Config)
    def knn(embedder: Embedder, config: Config) -> Outcome: ...

Arguments. `embedder` (avssl/embedding/embedder.py) has the networks of the run in eval mode on its device:
`embedder.encoders` and `.projectors` {modality: module}, `.views` (raw views -> tensors), `.config` (the run's),
`.modalities`, `.device`, `.weights_hash`, `.run_folder`. It belongs to the caller: a task that trains changes a copy
(copy.deepcopy). The function runs in every process of torchrun; each reads a part of the samples (as
avssl/eval/features.py does; avssl.distributed has the collectives) and returns the same Outcome. Only the first process
writes.

Return value. An `Outcome`: one `Repeat` per fold or seed, with the keys of the test rows, columns (arrays with an entry
per row), and `Metric`s that are computed from those columns alone, so that a comparison can resample the rows and
compute the metrics again. For classification `classified(...)` in outcome.py makes a Repeat from scores and targets.
`Outcome.protocol` says what the configuration does not: sizes, layers, what is frozen, which rows were left out and
why. The recipe adds the configuration, the hashes of the sample lists, versions, the commit and the hash of the
weights.

Bad input is a ValueError that says what was given, what is allowed and what to do. A sample that cannot be read is an
error: a smaller test set would be another test set.
"""

from __future__ import annotations

from avssl.eval.registry import Task, get, names, plugin_of
from avssl.eval.registry import register_task as register

__all__ = ["Task", "get", "names", "plugin_of", "register"]
