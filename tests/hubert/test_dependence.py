"""What a frame depends on: its own past, and neither padding nor the other rows of its batch."""

import pytest
import torch
import torch.nn.functional as F
from tiny_hubert import CAUSAL_KINDS, HYBRID, KINDS, padded_batch, tiny_config
from torch.nn.functional import scaled_dot_product_attention

from mambavox.hubert import MambaHubertModel

STEP, FIELD, SAMPLES = 20, 40, 800


def seen_by(model, frame):
    """The samples on which a frame of the output depends."""
    waveform = torch.randn(1, SAMPLES, requires_grad=True)
    output = model(waveform).last_hidden_state[0, frame]
    # Post-norm outputs sum to zero: weigh the channels.
    (gradient,) = torch.autograd.grad((output * torch.randn_like(output)).sum(), waveform)
    return gradient[0].nonzero().flatten()


def end_of(frame):
    """The last sample of a frame's own receptive field."""
    return frame * STEP + FIELD - 1


class TestCausality:
    @pytest.mark.parametrize("encoder", [*CAUSAL_KINDS, HYBRID])
    @pytest.mark.parametrize("pre_norm", [False, True])
    def test_changing_a_sample_changes_no_frame_that_ended_before(self, encoder, pre_norm):
        model = MambaHubertModel(tiny_config(encoder, do_stable_layer_norm=pre_norm)).eval()
        waveform = torch.randn(1, SAMPLES)
        before = model(waveform, output_hidden_states=True).hidden_states
        for changed_sample in (0, 39, 40, 399, 400, 799):
            changed = waveform.clone()
            changed[0, changed_sample] += 1.0
            after = model(changed, output_hidden_states=True).hidden_states
            ended = max(0, (changed_sample - FIELD) // STEP + 1)
            for old, new in zip(before, after, strict=True):
                torch.testing.assert_close(old[:, :ended], new[:, :ended], rtol=0, atol=0)
                assert not torch.equal(old[:, ended:], new[:, ended:]) or changed_sample == SAMPLES - 1

    @pytest.mark.parametrize("encoder", [*CAUSAL_KINDS, HYBRID])
    def test_a_frame_sees_its_whole_past_and_nothing_later(self, encoder):
        model = MambaHubertModel(tiny_config(encoder)).eval()
        seen = seen_by(model, 20)
        assert seen.max() == end_of(20)
        assert seen.min() == 0

    def test_padding_does_not_undo_it(self):
        model = MambaHubertModel(tiny_config("causal-transformer")).eval()
        waveforms, mask = padded_batch([SAMPLES, 500], SAMPLES)
        changed = waveforms.clone()
        changed[:, 400:] += 1.0
        before, after = (model(w, attention_mask=mask).last_hidden_state for w in (waveforms, changed))
        ended = (400 - FIELD) // STEP + 1
        assert torch.equal(before[:, :ended], after[:, :ended])

    def test_positions_as_released_leak_half_their_kernel(self):
        model = MambaHubertModel(tiny_config("mamba", causal_positions=False)).eval()
        assert seen_by(model, 20).max() == end_of(20 + 3)

    def test_a_group_norm_leaks_the_whole_recording(self):
        model = MambaHubertModel(tiny_config("mamba", feat_extract_norm="group")).eval()
        assert seen_by(model, 20).max() > end_of(37)

    @pytest.mark.parametrize("encoder", sorted(set(KINDS) - set(CAUSAL_KINDS)))
    def test_bidirectional_models_see_everything(self, encoder):
        model = MambaHubertModel(tiny_config(encoder)).eval()
        seen = seen_by(model, 20)
        # 40 samples are no multiple of the step: the last frame ends at 799.
        assert (seen.min(), seen.max()) == (0, SAMPLES - 1)


class TestPadding:
    LENGTHS = (800, 799, 410, 77)

    @pytest.mark.parametrize("encoder", [*KINDS, HYBRID])
    @pytest.mark.parametrize("pre_norm", [False, True])
    def test_a_row_alone_gives_what_it_gives_in_a_padded_batch(self, encoder, pre_norm):
        model = MambaHubertModel(tiny_config(encoder, do_stable_layer_norm=pre_norm)).eval()
        waveforms, mask = padded_batch(self.LENGTHS, SAMPLES, padding=3.0)
        batch = model(waveforms, attention_mask=mask, output_hidden_states=True)
        for row, length in enumerate(self.LENGTHS):
            alone = model(waveforms[row : row + 1, :length], output_hidden_states=True)
            frames = alone.last_hidden_state.shape[1]
            assert frames == (length - FIELD) // STEP + 1
            for together, single in zip(
                (*batch.hidden_states, batch.last_hidden_state),
                (*alone.hidden_states, alone.last_hidden_state),
                strict=True,
            ):
                torch.testing.assert_close(together[row : row + 1, :frames], single, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("encoder", [*KINDS, HYBRID])
    def test_the_other_rows_change_nothing(self, encoder):
        model = MambaHubertModel(tiny_config(encoder)).eval()
        waveforms, mask = padded_batch(self.LENGTHS, SAMPLES)
        expected = model(waveforms, attention_mask=mask).last_hidden_state[2, :19]
        others = waveforms.clone()
        others[[0, 1, 3]] = torch.randn(3, SAMPLES)
        got = model(others[[3, 2]], attention_mask=mask[[0, 2]]).last_hidden_state[1, :19]
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("encoder", ["mamba", "inn-bimamba", "transformer"])
    def test_gradients_do_not_depend_on_what_the_padding_holds(self, encoder):
        model = MambaHubertModel(tiny_config(encoder))
        waveforms, mask = padded_batch([SAMPLES, 300], SAMPLES)
        gradients = []
        for padding in (0.0, 5.0):
            model.zero_grad()
            filled = torch.where(mask.bool(), waveforms, torch.tensor(padding))
            output = model(filled, attention_mask=mask).last_hidden_state
            (output[1, :13].square() * torch.arange(16)).sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)

    def test_a_group_norm_depends_on_the_padding(self):
        model = MambaHubertModel(tiny_config("transformer", feat_extract_norm="group")).eval()
        waveforms, mask = padded_batch([SAMPLES, 300], SAMPLES)
        together = model(waveforms, attention_mask=mask).last_hidden_state[1, :14]
        alone = model(waveforms[1:, :300]).last_hidden_state[0]
        assert (together[:13] - alone[:13]).abs().max() > 1e-2

    @pytest.mark.parametrize("encoder", ["mamba2", "ext-bimamba", "transformer", "causal-transformer"])
    def test_a_row_too_short_for_a_frame_stays_finite(self, encoder, monkeypatch):
        def attention(query, key, value, mask=None, **options):
            # Some kernels give NaN for a query that may see nothing.
            assert mask is None or mask.any(dim=-1).all()
            return scaled_dot_product_attention(query, key, value, mask, **options)

        monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
        model = MambaHubertModel(tiny_config(encoder)).eval()
        waveforms, mask = padded_batch([SAMPLES, FIELD - 1], SAMPLES)
        assert model(waveforms, attention_mask=mask).last_hidden_state.isfinite().all()

    def test_frames_of_recordings_count_only_whole_receptive_fields(self):
        model = MambaHubertModel(tiny_config())
        assert [model._get_feat_extract_output_lengths(samples) for samples in (0, 39, 40, 59, 60)] == [0, 0, 1, 1, 2]
        lengths = torch.tensor([40, 800, 3])
        assert model._get_feat_extract_output_lengths(lengths).tolist() == [1, 39, 0]
        mask = model._get_feature_vector_attention_mask(39, padded_batch([800, 60, 3], 800)[1])
        assert mask.dtype == torch.bool
        assert mask.sum(dim=1).tolist() == [39, 2, 0]
        assert mask[1].tolist() == [True, True] + [False] * 37
