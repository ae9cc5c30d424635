"""The shuffle of rows: a permutation for any number of rows, the same wherever it is cut, and well mixed."""

import numpy as np
import pytest
from scipy import stats

from data_prep.write.job import shuffled_rows


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 4, 5, 7, 16, 17, 100, 255, 256, 257, 1000, 4097, 65_537])
@pytest.mark.parametrize("seed", [0, 1, 123_456_789])
def test_every_row_comes_exactly_once(num_rows, seed):
    rows = shuffled_rows(0, num_rows, num_rows, seed)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(np.sort(rows), np.arange(num_rows))


def test_a_piece_is_the_same_however_the_order_is_cut():
    whole = shuffled_rows(0, 1000, 1000, 5)
    pieces = [shuffled_rows(begin, min(begin + 77, 1000), 1000, 5) for begin in range(0, 1000, 77)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_a_piece_of_a_hundred_million_rows_needs_no_memory_for_the_rest():
    rows = shuffled_rows(99_999_000, 100_000_000, 100_000_000, 0)
    assert len(np.unique(rows)) == 1000
    assert (rows >= 0).all()
    assert (rows < 100_000_000).all()


def test_rows_fall_evenly_over_the_order_and_neighbors_are_not_neighbors():
    num_rows = 100_000
    for seed in range(5):
        rows = shuffled_rows(0, num_rows, num_rows, seed)
        # Rows of one hundredth of the input, over the hundredths of the output: uniform, by chi-square.
        table = np.histogram2d(rows, np.arange(num_rows), bins=20)[0]
        assert 1e-4 < stats.chisquare(table.ravel()).pvalue < 1 - 1e-4
        steps = np.abs(np.diff(rows))
        assert abs(steps.mean() / (num_rows / 3) - 1) < 0.02  # what two random rows differ by on average
        assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.02


def test_another_seed_gives_an_unrelated_order():
    one, two = (shuffled_rows(0, 10_000, 10_000, seed) for seed in (0, 1))
    assert (one == two).sum() < 10  # one fixed point is expected
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.05


@pytest.mark.parametrize("span", [(-1, 3), (2, 1), (0, 11)])
def test_positions_outside_the_order_are_refused(span):
    with pytest.raises(ValueError, match="allowed"):
        shuffled_rows(*span, 10, 0)
