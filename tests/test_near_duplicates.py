"""Pictures that are nearly the same: the perceptual hash, and groups of hashes that are close."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from data_prep.inspect.stats.collect import Thresholds
from data_prep.measures.near_duplicates import (
    NO_HASH,
    distances,
    equal_groups,
    near_groups,
    perceptual_hash,
    small_image,
)
from tests.clips import landscape


def hash_of(luma):
    return perceptual_hash(small_image(luma))


def test_the_hash_is_the_sign_of_scipys_dct_of_pillows_means():
    luma = landscape(1).mean(axis=2)
    small = np.array(Image.fromarray(luma.astype(np.float32)).resize((32, 32), Image.Resampling.BOX))
    frequencies = dctn(small.astype(np.float64), norm=None)
    lowest = sorted((u + v, u, v) for u in range(11) for v in range(11))[1:65]
    values = np.array([frequencies[u, v] for _, u, v in lowest])
    bits = "".join("1" if value > np.median(values) else "0" for value in values)
    assert bin(hash_of(luma) ^ int(bits, 2)).count("1") <= 1  # sums in another order


def test_the_hash_stays_through_size_jpeg_and_brightness_and_tells_images_apart():
    hashes = []
    for seed in range(30):
        image = Image.fromarray(landscape(seed)).convert("L")
        own = hash_of(np.array(image))
        hashes.append(own)
        jpeg = io.BytesIO()
        image.resize((67, 50), Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=40)
        for other in (np.array(Image.open(jpeg)), np.array(image) * 0.7 + 20):
            assert bin(own ^ hash_of(other)).count("1") <= Thresholds().max_distance
    pairs = np.array([(a, b) for position, a in enumerate(hashes) for b in hashes[:position]], np.uint64)
    assert distances(pairs[:, 0], pairs[:, 1]).min() > 2 * Thresholds().max_distance
    assert hash_of(np.full((40, 60), 99, np.uint8)) == NO_HASH


@pytest.mark.quick(3)
@pytest.mark.parametrize("max_distance", range(8))
def test_groups_are_those_of_comparing_all_with_all(max_distance):
    rng = np.random.default_rng(max_distance)
    hashes = rng.integers(1, 2**63, (300, 2), dtype=np.uint64)
    for position in range(100, 300):  # copies with a few flipped bits, in one column or both
        hashes[position] = hashes[rng.integers(position)]
        for column in range(rng.integers(1, 3)):
            for bit in rng.choice(64, rng.integers(0, 10), replace=False):
                hashes[position, column] ^= np.uint64(1 << int(bit))
    hashes[rng.choice(300, 20), 1] = NO_HASH
    hashes[rng.choice(300, 20), 0] = NO_HASH
    group_of = list(range(300))
    for one in range(300):
        for other in range(one):
            pairs = [(int(hashes[one, c]), int(hashes[other, c])) for c in range(2)]
            both_there = pairs[0][0] != 0 and pairs[0][1] != 0
            if both_there and all(a == 0 or b == 0 or bin(a ^ b).count("1") <= max_distance for a, b in pairs):
                old, new = group_of[one], group_of[other]
                group_of = [new if group == old else group for group in group_of]
    wanted = [[k for k in range(300) if group_of[k] == group] for group in set(group_of)]
    found = {tuple(group) for group in near_groups(hashes, max_distance)}
    assert found == {tuple(group) for group in wanted if len(group) > 1}


def test_equal_hashes_are_grouped_the_largest_first():
    hashes = np.array([5, 7, 0, 5, 9, 7, 0, 5], np.uint64)
    assert [group.tolist() for group in equal_groups(hashes)] == [[0, 3, 7], [1, 5]]
    assert equal_groups(np.zeros(0, np.uint64)) == near_groups(np.zeros((4, 1), np.uint64), 6) == []
