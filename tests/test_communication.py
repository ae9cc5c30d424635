"""What a step sends to other processes: numbers of collectives and bytes, which no machine's mood changes."""

import pytest
import torch

from avssl import losses
from benchmarks.collectives import pretended_world
from tests.tiny import Run

DIM, ROWS = 128, 8  # of an AVID embedding; samples of this process


def calls_of_a_step(name, num_processes, **options):
    run = Run(name, losses.get(name).pairs[0], **options)
    run.step()  # measures the partition constant, once a run
    index = torch.arange(ROWS)
    views = run.make_views(index, (), 0)
    with pretended_world(num_processes) as world:
        outputs = run.loss(views)
        result = run.loss.loss(outputs, index, run.progress)
        result.total.backward()
        run.loss.update(outputs, index)
        run.loss.after_step(run.progress)
    return world.calls


@pytest.mark.parametrize("num_processes", [2, 4])
def test_avid_gathers_its_indices_and_both_embeddings_once_a_step_and_nothing_of_the_banks(num_processes):
    calls = calls_of_a_step("avid", num_processes, embedding_dim=DIM)
    embeddings = ROWS * DIM * 4
    assert calls == [("all_gather", ROWS * 8), ("all_gather", embeddings), ("all_gather", embeddings)]


def test_cma_sends_no_more_than_avid_in_a_step():
    assert calls_of_a_step("avid_cma", 2, embedding_dim=DIM) == calls_of_a_step("avid", 2, embedding_dim=DIM)


def test_losses_whose_rows_do_not_meet_send_nothing():
    for name in ("byol", "simsiam"):
        assert calls_of_a_step(name, 2) == []


def test_simclr_gathers_both_views_and_returns_their_gradients():
    sent = ROWS * 8 * 4  # embeddings of 8
    assert calls_of_a_step("simclr", 2) == [("all_gather", sent)] * 2 + [("all_reduce", 2 * sent)] * 2
