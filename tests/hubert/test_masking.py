from math import comb
from statistics import mean

import pytest
import torch

from mambavox.errors import ConfigError
from mambavox.hubert import sample_span_mask


def runs(row):
    """Lengths of the runs of hidden frames."""
    return [len(run) for run in "".join("x" if hidden else " " for hidden in row.tolist()).split()]


def test_hides_spans_inside_each_row():
    lengths = torch.tensor([200, 57, 10, 9, 0])
    mask = sample_span_mask(lengths, 200, mask_prob=0.5, mask_length=10)
    for row, length in zip(mask, lengths.tolist(), strict=True):
        assert not row[length:].any()
        assert all(run >= 10 for run in runs(row))
    assert mask[2].sum() == 10
    assert not mask[3:].any()


def test_hides_the_expected_share():
    # 0.8 * 500 / 10 = 40 different starts of 491; a frame stays visible if none is among those that cover it.
    covering = [min(frame + 1, 10, 500 - frame) for frame in range(500)]
    expected = 1 - mean(comb(491 - starts, 40) / comb(491, 40) for starts in covering)
    mask = sample_span_mask(torch.full((400,), 500), 500, 0.8, 10)
    assert mask.float().mean() == pytest.approx(expected, abs=0.003)


def test_rounds_the_number_of_spans_to_its_expectation():
    mask = sample_span_mask(torch.full((4000,), 13), 13, mask_prob=0.5, mask_length=1, min_masks=0)
    counts = mask.sum(dim=1)
    assert set(counts.tolist()) == {6, 7}
    assert counts.float().mean() == pytest.approx(6.5, abs=0.03)


def test_a_row_with_room_gets_the_least_number_of_spans():
    mask = sample_span_mask(torch.full((50,), 40), 40, mask_prob=0.01, mask_length=3, min_masks=2)
    assert (mask.sum(dim=1) > 3).all()


def test_the_generators_state_gives_the_masks_again():
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([80, 60])
    sample_span_mask(lengths, 80, generator=generator)
    state, global_state = generator.get_state(), torch.get_rng_state()
    first = sample_span_mask(lengths, 80, generator=generator)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert not torch.equal(first, sample_span_mask(lengths, 80, generator=generator))
    generator.set_state(state)
    assert torch.equal(first, sample_span_mask(lengths, 80, generator=generator))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mask_prob": 1.2}, "mask_prob is 1.2"), ({"mask_length": 0}, "mask_length is 0"), ({"time": 5}, "0..5")],
)
def test_impossible_requests(options, message):
    with pytest.raises(ConfigError, match=message):
        sample_span_mask(torch.tensor([9]), **{"time": 9, **options})
