"""Checkpoints of a run and its final export; `avssl exchange --help` converts exports for others.

Files are written under a temporary name, synced, then renamed: whole or absent.

run/
  config.yaml            resolved configuration
  metrics.jsonl          one line per logging step
  notes.jsonl            a line for each start with another number of processes: what is not exactly as before
  step_000123/           Accelerate's state (loss with all its state, optimizer, scaler, RNG per rank), statistics of
                         the views, progress.json and, last, checksums.json: without it a checkpoint does not count
  damaged_step_000123/   a checkpoint that was damaged when the run went on; nothing reads it
  .lock                  held by the first process of the run that is working in this folder
  start.json             license of the run that it started from
  encoders.safetensors   on finish: encoders, heads, statistics of the views, banks and constants; no optimizer
  provenance.json        versions, data, steps, license of the weights it started from
"""

from avssl.checkpoint.bank_rows import whole_banks
from avssl.checkpoint.checksums import DamagedCheckpointError
from avssl.checkpoint.hub import locate
from avssl.checkpoint.inherit import describe_matching, inherit, inherit_views, load_matching
from avssl.checkpoint.step_folders import checkpoints
from avssl.checkpoint.steps import at_step, read_step, resume, save, saved_world_size
from avssl.checkpoint.weights import PROVENANCE_FILE, WEIGHTS_FILE, export, keep_start, read_provenance, read_weights

__all__ = [
    "PROVENANCE_FILE", "WEIGHTS_FILE", "DamagedCheckpointError", "at_step", "checkpoints",
    "describe_matching", "export", "inherit", "inherit_views", "keep_start", "load_matching", "locate",
    "read_provenance", "read_step", "read_weights", "resume", "save", "saved_world_size", "whole_banks",
]  # fmt: skip
