import pytest
import torch

from mambavox.errors import ConfigError
from mambavox.lengths import check_rows, clear_padding, length_mask, pack, reverse_inside, unpack


def test_length_mask():
    assert length_mask(torch.tensor([0, 2, 3]), 3).tolist() == [
        [False, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_clear_padding_puts_zeros_where_nan_stood_and_lets_no_gradient_through():
    frames = torch.tensor([[[1.0], [2.0], [torch.nan]], [[3.0], [torch.nan], [torch.nan]]], requires_grad=True)
    cleared = clear_padding(frames, torch.tensor([2, 1]))
    assert cleared.flatten().tolist() == [1, 2, 0, 3, 0, 0]
    (gradient,) = torch.autograd.grad(cleared.sum(), frames)
    assert gradient.flatten().tolist() == [1, 1, 0, 1, 0, 0]


class TestPackedBatches:
    # The second sequence is empty.
    boundaries = torch.tensor([0, 2, 2, 5])
    packed = torch.arange(1.0, 11.0).view(1, 5, 2)

    def test_unpack_makes_a_row_of_each_sequence_with_zeros_behind(self):
        assert unpack(self.packed, self.boundaries).tolist() == [
            [[1, 2], [3, 4], [0, 0]],
            [[0, 0], [0, 0], [0, 0]],
            [[5, 6], [7, 8], [9, 10]],
        ]

    def test_pack_is_its_inverse_whatever_the_padding_holds(self):
        padded = unpack(self.packed, self.boundaries)
        padded[~length_mask(self.boundaries.diff(), 3)] = torch.nan
        assert torch.equal(pack(padded, self.boundaries), self.packed)

    def test_gradients_go_through_both(self):
        packed = self.packed.clone().requires_grad_()
        restored = pack(unpack(packed, self.boundaries), self.boundaries)
        (gradient,) = torch.autograd.grad((restored * self.packed).sum(), packed)
        assert torch.equal(gradient, self.packed)


class TestReverseInside:
    frames = torch.arange(12.0).view(3, 4, 1)

    def test_each_row_is_turned_inside_its_length_and_its_padding_stays(self):
        turned = reverse_inside(self.frames, torch.tensor([4, 0, 3]))
        assert turned.squeeze(2).tolist() == [[3, 2, 1, 0], [4, 5, 6, 7], [10, 9, 8, 11]]

    def test_without_lengths_whole_rows_are_turned(self):
        assert torch.equal(reverse_inside(self.frames, None), self.frames.flip(1))

    def test_twice_is_nothing(self):
        lengths = torch.tensor([1, 2, 3])
        assert torch.equal(reverse_inside(reverse_inside(self.frames, lengths), lengths), self.frames)


class TestCheckRows:
    x = torch.zeros(1, 6, 2)

    def test_what_is_given_comes_back_as_int64(self):
        lengths, none = check_rows(self.x, torch.tensor([4], dtype=torch.int32), None)
        assert none is None
        assert lengths.tolist() == [4]
        assert lengths.dtype == torch.int64
        none, boundaries = check_rows(self.x, None, torch.tensor([0, 2, 6], dtype=torch.int32))
        assert none is None
        assert boundaries.tolist() == [0, 2, 6]
        assert boundaries.dtype == torch.int64
        assert check_rows(self.x, None, None) == (None, None)

    @pytest.mark.parametrize(
        ("lengths", "cu_seqlens", "message"),
        [
            ([6], [0, 6], "both given"),
            ([7], None, r"lie in 7\.\.7; expected 0\.\.6"),
            ([-1], None, r"lie in -1\.\.-1; expected 0\.\.6"),
            (None, [0, 5], "rising from 0 to 6"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, lengths, cu_seqlens, message):
        lengths, cu_seqlens = (None if rows is None else torch.tensor(rows) for rows in (lengths, cu_seqlens))
        with pytest.raises(ConfigError, match=message):
            check_rows(self.x, lengths, cu_seqlens)
