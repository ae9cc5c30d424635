"""Checkpoints of a run as files: which are kept."""

from types import SimpleNamespace

import pytest
from torch import nn

from avssl.checkpoint import checkpoints, save
from avssl.types import Progress


class Writer:
    """What `save` asks of an Accelerator, without a model."""

    is_main_process = True

    def register_save_state_pre_hook(self, hook):
        return SimpleNamespace(remove=lambda: None)

    def save_state(self, folder):
        """Nothing but progress.json is in these checkpoints."""


@pytest.mark.parametrize("keep", range(1, 11))
def test_the_newest_checkpoints_are_kept_at_every_count_of_them(keep, tmp_path):
    for step in range(1, 14):
        save(Writer(), tmp_path, nn.Identity(), Progress(total_steps=13, step=step), {}, keep)
        kept = [int(path.name.removeprefix("step_")) for path in checkpoints(tmp_path)]
        assert kept == list(range(max(1, step - keep + 1), step + 1))
