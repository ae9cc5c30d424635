"""NCE against a bank's rows read in place: equal to the plain formula, and what it reads, computes and keeps."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from avssl.ops import bank_scores, sampling
from avssl.ops.nce import mean_exponential, plain_rows_nce, rows_nce

TEMPERATURE = 0.07


def case(num_rows=300, num_anchors=6, num_positives=2, num_negatives=40, dim=16, dtype=torch.float32, seed=0):
    """anchors with gradient, rows, positives, negatives, temperature, partition: the arguments of rows_nce."""
    generator = torch.Generator().manual_seed(seed)
    rows = normalize(torch.randn(num_rows, dim, generator=generator, dtype=dtype), dim=1)
    anchors = normalize(torch.randn(num_anchors, dim, generator=generator, dtype=dtype), dim=1).requires_grad_()
    positives = torch.randint(num_rows, (num_anchors, num_positives), generator=generator)
    negatives = torch.randint(num_rows, (num_anchors, num_negatives), generator=generator)
    return anchors, rows, positives, negatives, TEMPERATURE, torch.tensor(2.2)


def run(function, arguments):
    """Loss, means and gradient."""
    anchors = arguments[0].detach().clone().requires_grad_()
    loss, means = function(anchors, *arguments[1:])
    loss.backward()
    return loss.detach(), means, anchors.grad


SHAPES = {
    "one positive": {"num_positives": 1},
    "many positives": {"num_positives": 7, "num_negatives": 3},
    "more negatives than rows": {"num_rows": 20, "num_negatives": 90},
    "one anchor": {"num_anchors": 1},
    "every negative the same row": {"num_rows": 60, "num_negatives": 50, "seed": 3},
}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_loss_gradient_and_mean_scores_equal_the_plain_formula(options):
    arguments = case(**options)
    if options.get("seed") == 3:
        arguments[3].fill_(5)
    exactly = run(
        plain_rows_nce, [one.double() if one.is_floating_point() else one for one in map(torch.as_tensor, arguments)]
    )
    for actual, expected in zip(run(rows_nce, arguments), exactly, strict=True):
        assert_same_sums(actual.double(), expected)


def assert_same_sums(actual, expected):
    """Sums of 42 terms in any order: within 42 u = 2.5e-6 of the terms, and twice that for their exponentials.

    Single entries may cancel: what rounds is as large as the largest one.
    """
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=float(5e-6 * expected.abs().max()))


@pytest.mark.parametrize("num_rows", [300, 20], ids=["in place", "gathered"])
def test_the_gradient_is_right_by_finite_differences_in_float64(num_rows):
    anchors, *rest = case(num_rows=num_rows, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: rows_nce(z, *rest)[0], (anchors,))


@pytest.mark.parametrize("blocks", [1, 3, 6])
def test_block_size_changes_no_more_than_the_rounding_of_sums(blocks, monkeypatch):
    arguments = case()
    whole = run(rows_nce, arguments)
    bytes_per_anchor = (2 + 40) * 16 * 4
    monkeypatch.setattr(bank_scores, "CPU_BLOCK_BYTES_PER_THREAD", 6 // blocks * bytes_per_anchor)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for actual, expected in zip(run(rows_nce, arguments), whole, strict=True):
        assert_same_sums(actual, expected)
        assert torch.equal(*(run(rows_nce, arguments)[2] for _ in range(2)))


class Watch(TorchDispatchMode):
    """Counts operations by name and records the numbers of elements of their results."""

    def __init__(self, bank):
        super().__init__()
        self.bank, self.counts, self.largest = bank, {}, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.counts[operation.__name__.split(".")[0]] = self.counts.get(operation.__name__.split(".")[0], 0) + 1
        for one in result if isinstance(result, tuple | list) else (result,):
            is_bank = isinstance(one, torch.Tensor) and (
                one.layout != torch.strided or one.untyped_storage().data_ptr() == self.bank.data_ptr()
            )
            if isinstance(one, torch.Tensor) and not is_bank:
                self.largest = max(self.largest, one.numel())
        return result


def test_no_row_is_copied_and_each_block_reads_the_bank_with_two_operations(monkeypatch):
    monkeypatch.setattr(bank_scores, "CPU_BLOCK_BYTES_PER_THREAD", 2 * 42 * 16 * 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    arguments = case()
    bank_scores.reads_any_rows()
    with Watch(arguments[1]) as watch:
        run(rows_nce, arguments)
    assert watch.counts["sparse_sampled_addmm"] == watch.counts["_embedding_bag_forward_only"] == 3
    assert not {"index", "index_select", "gather", "bmm"} & set(watch.counts)
    assert watch.largest == 6 * 16, "nothing larger than the gradient (B, D), let alone (B, K, D)"


def test_backward_keeps_one_row_per_anchor():
    arguments, kept = case(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        loss, _ = rows_nce(*arguments)
    loss.backward()
    assert max(kept) == arguments[0].numel()


def test_without_a_gradient_the_weighted_sums_are_not_computed():
    arguments = case()
    bank_scores.reads_any_rows()
    with torch.no_grad(), Watch(arguments[1]) as watch:
        rows_nce(*arguments)
    assert "_embedding_bag_forward_only" not in watch.counts


@pytest.mark.parametrize("bad", [-1, 300])
@pytest.mark.parametrize("which", [2, 3], ids=["positives", "negatives"])
def test_an_index_that_is_no_row_is_an_error_and_not_other_memory(bad, which):
    arguments = case()
    arguments[which][1, 1] = bad
    with pytest.raises(IndexError, match="rows are 0 to 299"):
        rows_nce(*arguments)


def test_the_kernel_takes_columns_in_any_order_and_repeated():
    assert bank_scores.reads_any_rows()


def test_rows_are_gathered_if_the_kernel_takes_no_repeated_columns(monkeypatch):
    arguments = case()
    expected = run(rows_nce, arguments)
    monkeypatch.setattr(bank_scores, "reads_any_rows", lambda: False)
    for one, other in zip(run(rows_nce, arguments), expected, strict=True):
        assert_same_sums(one, other)


def test_autocast_does_not_lower_its_precision():
    arguments = case()
    expected = run(rows_nce, arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(rows_nce, arguments)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_it_compiles_without_a_break_in_the_graph():
    arguments = case()
    torch._dynamo.reset()
    compiled = torch.compile(rows_nce, backend="eager", fullgraph=True)
    for actual, expected in zip(run(compiled, arguments), run(rows_nce, arguments), strict=True):
        assert_same_sums(actual, expected)


def test_the_partition_constant_is_the_mean_exponential_of_the_scores():
    anchors, rows, _, negatives, *_ = case()
    expected = (torch.einsum("bd,bkd->bk", anchors, rows[negatives]) / TEMPERATURE).exp().mean()
    torch.testing.assert_close(mean_exponential(anchors.detach(), rows, negatives, TEMPERATURE), expected.detach())


@pytest.mark.parametrize("num_excluded", [1, 3])
def test_draws_are_ranks_among_the_indices_that_are_left(num_excluded):
    excluded = torch.stack([torch.randperm(12)[:num_excluded] for _ in range(5)])
    drawn = sampling.draw_negatives(excluded, 200, 12, seed=4, batch=9)
    ranks = torch.randint(12 - num_excluded, (5, 200), generator=sampling.generator_for(4, 9, torch.device("cpu")))
    for row in range(5):
        left = torch.tensor([i for i in range(12) if i not in excluded[row].tolist()])
        assert torch.equal(drawn[row], left[ranks[row]])
