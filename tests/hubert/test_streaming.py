"""Streaming gives what the whole recording gives, however it is cut."""

import itertools
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny_hubert import CAUSAL_KINDS, HYBRID, KINDS, tiny_config

from mambavox.adapters import BottleneckConfig, ConformerAdapterConfig, GCLoraConfig, MambAdapterConfig
from mambavox.errors import ConfigError, DataError, HostError
from mambavox.hubert import (
    MambaHubertConfig,
    MambaHubertForCTC,
    MambaHubertModel,
    MambaHubertState,
    stream_in_chunks,
)

STEP, FIELD, SAMPLES = 20, 40, 1200
CAUSAL = [*CAUSAL_KINDS, HYBRID]
HYPOTHESIS = settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def new_model(encoder="mamba", kind=MambaHubertModel, **overrides):
    return kind(tiny_config(encoder, **overrides)).eval()


def values(output):
    return output.last_hidden_state if output.logits is None else output.logits


def whole(model, waveforms):
    with torch.no_grad():
        output = model(waveforms)
    return output.logits if "logits" in output else output.last_hidden_state


@torch.no_grad()
def streamed(model, waveforms, sizes, state=None):
    """The outputs of pieces of the sizes given, the last one repeated to the end."""
    state = model.init_streaming_state(len(waveforms)) if state is None else state
    pieces, begin = [], 0
    for size in itertools.chain(sizes, itertools.repeat(sizes[-1])):
        if begin >= waveforms.shape[1]:
            return torch.cat(pieces, dim=1), state
        output, state = model.stream(waveforms[:, begin : begin + size], state)
        pieces.append(values(output))
        begin += size


@torch.no_grad()
def streamed_rows(model, waveforms, plan, state=None, padding=float("nan")):
    """Outputs of each row, where the steps of the plan give each row its own number of samples."""
    state = model.init_streaming_state(len(waveforms)) if state is None else state
    rows, at = [[] for _ in waveforms], [0] * len(waveforms)
    for counts in plan:
        piece = torch.full((len(waveforms), max(counts) + 2), padding)
        for row, count in enumerate(counts):
            piece[row, :count] = waveforms[row, at[row] : at[row] + count]
            at[row] += count
        output, state = model.stream(piece, state, lengths=torch.tensor(counts))
        for row, frames in enumerate(output.lengths.tolist()):
            assert not values(output)[row, frames:].any()
            rows[row].append(values(output)[row, :frames])
    return [torch.cat(row) for row in rows], state


def close(got, expected, tolerance=1e-5):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


class TestSplits:
    @pytest.mark.parametrize("pre_norm", [False, True])
    @pytest.mark.parametrize("encoder", CAUSAL)
    @HYPOTHESIS
    @given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=8).filter(any), seed=st.integers(0, 9))
    def test_any_split_gives_the_uncut_output(self, encoder, pre_norm, sizes, seed):
        torch.manual_seed(seed)
        model = new_model(encoder, do_stable_layer_norm=pre_norm)
        waveforms = torch.randn(2, SAMPLES)
        got, _ = streamed(model, waveforms, [*sizes, 100])
        close(got, whole(model, waveforms))

    @pytest.mark.parametrize("encoder", CAUSAL)
    def test_one_sample_at_a_time(self, encoder):
        model = new_model(encoder)
        waveforms = torch.randn(1, 400)
        close(streamed(model, waveforms, [1])[0], whole(model, waveforms))

    @pytest.mark.parametrize("encoder", ["mamba", "mamba2", "causal-transformer"])
    @pytest.mark.parametrize("milliseconds", [20, 333])
    def test_pieces_of_real_front_ends(self, encoder, milliseconds):
        model = MambaHubertModel(MambaHubertConfig.nano(encoder, num_hidden_layers=2)).eval()
        waveforms = torch.randn(1, 16_000)
        got, _ = streamed(model, waveforms, [16 * milliseconds])
        close(got, whole(model, waveforms))

    @pytest.mark.parametrize("encoder", CAUSAL)
    def test_pieces_of_ten_seconds(self, encoder):
        front = {"conv_dim": (8,) * 7, "conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2)}
        model = new_model(encoder, **front)
        waveforms = torch.randn(1, 16 * 21_000)
        got, state = streamed(model, waveforms, [16 * 10_000])
        assert got.shape[1] == 1049 and state.samples == [16 * 21_000]
        close(got, whole(model, waveforms), 1e-4)  # float32 over a thousand frames, whose sums differ by machine

    def test_a_frame_is_put_out_with_its_last_sample(self):
        model = new_model()
        state = model.init_streaming_state()
        seen = []
        for samples in (FIELD - 1, 1, STEP - 1, 1, 0):
            output, state = model.stream(torch.randn(1, samples), state)
            seen.append(output.lengths.tolist())
            assert output.last_hidden_state.shape == (1, seen[-1][0], 16)
        assert seen == [[0], [1], [0], [1], [0]]

    @pytest.mark.parametrize("encoder", CAUSAL)
    def test_logits(self, encoder):
        model = new_model(encoder, MambaHubertForCTC)
        waveforms = torch.randn(2, SAMPLES)
        got, _ = streamed(model, waveforms, [70, 333])
        assert got.shape[2] == 32
        close(got, whole(model, waveforms))

    def test_a_kernel_of_one_frame_and_long_pieces(self):
        waveforms = torch.randn(2, SAMPLES)
        for overrides in ({"num_conv_pos_embeddings": 1}, {"d_conv": 1}, {"feat_extract_activation": "relu"}):
            model = new_model(**overrides)
            close(streamed(model, waveforms, [30, 700])[0], whole(model, waveforms))

    def test_the_cache_grows_over_many_blocks(self):
        model = new_model("causal-transformer")
        waveforms = torch.randn(1, 20 * 700)
        got, state = streamed(model, waveforms, [20 * 90])
        close(got, whole(model, waveforms))
        room = state.layers[0].mixer.key.shape[2]
        assert 699 <= room <= 699 * 9 / 8 + 64

    def test_real_recordings(self, recordings):
        from mambavox.data import read_audio

        path = sorted((recordings / "librispeech_subset").rglob("*.flac"))[0]
        waveforms = torch.as_tensor(read_audio(path))[None, :48_000]
        model = MambaHubertForCTC(MambaHubertConfig.nano(("mamba", "causal-transformer"), num_hidden_layers=2)).eval()
        close(streamed(model, waveforms, [5120, 777])[0], whole(model, waveforms))


class TestRows:
    PLANS = st.lists(st.tuples(*[st.integers(0, 200)] * 3), min_size=2, max_size=8)

    @pytest.mark.parametrize("encoder", CAUSAL)
    @HYPOTHESIS
    @given(plan=PLANS, seed=st.integers(0, 9))
    def test_each_row_goes_its_own_way_whatever_the_padding_holds(self, encoder, plan, seed):
        torch.manual_seed(seed)
        model = new_model(encoder, do_stable_layer_norm=bool(seed % 2))
        waveforms = torch.randn(3, sum(map(max, plan)) + FIELD)
        rows, _ = streamed_rows(model, waveforms, plan)
        for row, got in enumerate(rows):
            samples = sum(counts[row] for counts in plan)
            assert len(got) == max(0, (samples - FIELD) // STEP + 1)
            if len(got):
                close(got, whole(model, waveforms[row : row + 1, :samples])[0])

    @pytest.mark.parametrize("encoder", CAUSAL)
    def test_a_row_without_new_samples_is_untouched(self, encoder):
        model = new_model(encoder)
        _, state = streamed(model, torch.randn(2, 200), [200])
        _, after = streamed_rows(model, torch.randn(2, 300), [(0, 300)], state)
        before, after = state.reorder([0]), after.reorder([0])
        assert after.samples == [200]
        _equal(before, after)

    @pytest.mark.parametrize("encoder", CAUSAL)
    def test_streams_start_and_stop(self, encoder):
        model = new_model(encoder, MambaHubertForCTC)
        waveforms = torch.randn(4, 500)
        _, state = streamed_rows(model, waveforms[:2], [(300, 120)])
        # Row 0 ends, a new stream takes its place, a third joins behind.
        _, state = model.stream(torch.zeros(2, 0), state, final=torch.tensor([True, False]))
        assert state.ended == [True, False]
        state = MambaHubertState.join([state.reset([0]), model.init_streaming_state(1)])
        assert (state.samples, state.ended) == ([0, 120, 0], [False] * 3)
        rest = torch.stack([waveforms[2], waveforms[1].roll(-120), waveforms[3]])
        rows, state = streamed_rows(model, rest, [(77, 200, 0), (23, 180, 410)], state)
        close(rows[0], whole(model, waveforms[2:3, :100])[0])
        close(rows[1], whole(model, waveforms[1:2])[0, -len(rows[1]) :])
        close(rows[2], whole(model, waveforms[3:, :410])[0])

    @pytest.mark.parametrize("encoder", CAUSAL)
    def test_rows_change_places(self, encoder):
        model = new_model(encoder)
        waveforms = torch.randn(3, 600)
        _, state = streamed_rows(model, waveforms, [(300, 100, 200)])
        order = [2, 0, 0]
        rest = torch.stack([waveforms[2].roll(-200), waveforms[0].roll(-300), torch.randn(600)])
        rows, _ = streamed_rows(model, rest, [(400, 300, 250)], state.reorder(torch.tensor(order)))
        close(rows[0], whole(model, waveforms[2:])[0, -len(rows[0]) :])
        close(rows[1], whole(model, waveforms[:1])[0, -len(rows[1]) :])
        other = torch.cat([waveforms[0, :300], rest[2, :250]])
        close(rows[2], whole(model, other[None])[0, -len(rows[2]) :])

    @pytest.mark.parametrize("encoder", CAUSAL)
    def test_states_are_split_and_joined(self, encoder):
        model = new_model(encoder)
        waveforms = torch.randn(3, 600)
        _, state = streamed_rows(model, waveforms, [(300, 100, 200)])
        one, two = state.split([1, 2])
        assert (one.batch_size, two.batch_size) == (1, 2)
        # Alone, one stream goes on for longer than the room of the others' cache.
        alone, one = streamed(model, torch.cat([waveforms[:1, 300:], torch.randn(1, 2000)], dim=1), [300], one)
        together = MambaHubertState.join([two, one])
        more, _ = streamed_rows(model, torch.randn(3, 300), [(200, 0, 300)], together)
        assert [len(row) for row in more] == [10, 0, 15]
        expected, _ = streamed_rows(model, waveforms[:, 300:], [(300, 0, 0)], state)
        close(alone[0, : len(expected[0])], expected[0])

    @pytest.mark.parametrize("encoder", CAUSAL)
    def test_some_rows_go_on_alone_and_are_put_back(self, encoder):
        model = new_model(encoder)
        waveforms = torch.randn(3, 2400)
        _, state = streamed_rows(model, waveforms, [(300, 100, 200)])
        # Long enough for the room of their caches to grow.
        chosen = torch.stack([waveforms[2].roll(-200), waveforms[0].roll(-300)])
        rows, some = streamed_rows(model, chosen, [(1700, 900)], state.reorder([2, 0]))
        state = state.put([2, 0], some)
        assert state.samples == [1200, 100, 1900]
        rest = torch.stack([waveforms[0].roll(-1200), waveforms[1].roll(-100), waveforms[2].roll(-1900)])
        after, _ = streamed_rows(model, rest, [(500, 600, 0)], state)
        close(torch.cat([rows[1], after[0]]), whole(model, waveforms[:1, :1700])[0, -len(rows[1]) - len(after[0]) :])
        close(after[1], whole(model, waveforms[1:2, :700])[0, -len(after[1]) :])
        with pytest.raises(ConfigError, match="1 rows are to be replaced by 2"):
            state.put([0], some)

    @pytest.mark.parametrize("form", [list, tuple, torch.tensor], ids=["list", "tuple", "tensor"])
    def test_some_rows_end(self, form):
        model = new_model()
        _, state = model.stream(torch.randn(2, 110), model.init_streaming_state(2), final=form([False, True]))
        assert state.ended == [False, True]
        _, state = model.stream(torch.randn(2, 110), state, torch.tensor([110, 0]), torch.tensor(True))
        assert state.ended == [True, True]
        with pytest.raises(ConfigError, match="final has 1 entries"):
            model.stream(torch.randn(2, 50), model.init_streaming_state(2), final=[True])

    def test_lengths_that_are_all_full_are_as_none(self):
        model = new_model("causal-transformer")
        waveforms = torch.randn(2, 300)
        rows, _ = streamed_rows(model, waveforms, [(300, 300)])
        close(torch.stack(rows), whole(model, waveforms))


class TestState:
    @pytest.mark.parametrize("encoder", CAUSAL)
    def test_a_state_can_be_gone_on_from_more_than_once(self, encoder):
        model = new_model(encoder)
        waveforms = torch.randn(1, 900)
        _, state = streamed(model, waveforms[:, :400], [150])
        kept = state.detach()
        other = torch.randn(1, 500)
        first, _ = streamed(model, other, [100], state)
        for again in (state, kept):
            second, _ = streamed(model, waveforms[:, 400:], [100], again)
            close(second, whole(model, waveforms)[:, -second.shape[1] :])
        close(first, whole(model, torch.cat([waveforms[:, :400], other], dim=1))[:, -first.shape[1] :])

    @pytest.mark.parametrize("encoder", ["mamba", "mamba2", "causal-transformer"])
    def test_gradients_flow_through_it_and_detach_cuts_them(self, encoder):
        model = new_model(encoder)
        waveforms = torch.randn(1, 400, requires_grad=True)
        _, state = model.stream(waveforms[:, :200], model.init_streaming_state())
        for cut in (False, True):
            later, _ = model.stream(waveforms[:, 200:], state.detach() if cut else state)
            (gradient,) = torch.autograd.grad(later.last_hidden_state.square().sum(), waveforms, retain_graph=True)
            assert bool(gradient[0, :160].any()) is not cut
            assert gradient[0, 220:].any()

    @pytest.mark.parametrize("encoder", ["mamba", "mamba2", "causal-transformer"])
    def test_gradients_are_those_of_the_whole(self, encoder):
        model = new_model(encoder).double()
        waveforms, weight = torch.randn(2, 400).double(), torch.randn(19, 16)
        gradients = []
        for sizes in ([400], [150, 90, 160]):
            model.zero_grad()
            state, outputs = model.init_streaming_state(2), []
            for piece in waveforms.split(sizes, dim=1):
                output, state = model.stream(piece, state)
                outputs.append(output.last_hidden_state)
            (torch.cat(outputs, dim=1) * weight).sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("encoder", [HYBRID, "causal-transformer"])
    def test_pause_and_resume_in_another_process(self, encoder, tmp_path):
        model = new_model(encoder, MambaHubertForCTC)
        waveforms = torch.randn(2, 700)
        _, state = streamed_rows(model, waveforms, [(400, 250)])
        rows, _ = streamed_rows(model, waveforms[:, 400:], [(300, 290)], state)
        state.save(tmp_path / "paused.safetensors")
        model.save_pretrained(tmp_path / "model")
        save_file({"x": waveforms[:, 400:].contiguous()}, tmp_path / "x.safetensors")
        code = f"""
import sys, torch
from safetensors.torch import load_file, save_file
from mambavox.hubert import MambaHubertForCTC, MambaHubertState
folder = {str(tmp_path)!r}
torch.set_num_threads(1)
model = MambaHubertForCTC.from_pretrained(folder + "/model").eval()
state = MambaHubertState.load(folder + "/paused.safetensors")
with torch.no_grad():
    x = load_file(folder + "/x.safetensors")["x"]
    output, state = model.stream(x, state, lengths=torch.tensor([300, 290]))
save_file({{"logits": output.logits, "lengths": output.lengths}}, folder + "/y.safetensors")
"""
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
        got = load_file(tmp_path / "y.safetensors")
        for row, expected in enumerate(rows):
            close(got["logits"][row, : len(expected)], expected)
        assert got["lengths"].tolist() == [len(row) for row in rows]
        assert not list(tmp_path.glob("*partial*")) and not list(tmp_path.glob(".*"))

    def test_what_is_saved_comes_back_bit_for_bit(self, tmp_path):
        model = new_model(HYBRID)
        _, state = streamed(model, torch.randn(2, 300), [77])
        state.save(tmp_path / "state")
        _equal(state, MambaHubertState.load(tmp_path / "state"))

    def test_files_that_are_no_states_are_told(self, tmp_path):
        path = tmp_path / "state"
        with pytest.raises(DataError, match=r"state: cannot be read"):
            MambaHubertState.load(path)
        path.write_bytes(b"nothing of the kind")
        with pytest.raises(DataError, match=r"state: is no streaming state or damaged"):
            MambaHubertState.load(path)
        for header in ({}, {"mambavox_state": "{"}, {"mambavox_state": json.dumps({"state": "os", "fields": {}})}):
            save_file({"x": torch.zeros(1)}, path, metadata=header)
            with pytest.raises(DataError, match="is no streaming state or damaged"):
                MambaHubertState.load(path)
        new_model().init_streaming_state().layers[0].mixer.save(path)
        with pytest.raises(DataError, match="holds a MambaState; expected a MambaHubertState"):
            MambaHubertState.load(path)

    def test_its_size(self):
        model = new_model("causal-transformer")
        state = model.init_streaming_state(2)
        empty = state.nbytes
        assert empty == 4 * 2 * (39 + 7 * 16)
        _, state = streamed(model, torch.randn(2, 400), [400], state)
        assert state.nbytes == empty + 4 * 2 * 2 * 2 * 64 * 16
        fixed = new_model("mamba")
        _, later = streamed(fixed, torch.randn(2, 4000), [400])
        assert later.nbytes == fixed.init_streaming_state(2).nbytes

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("encoder", [HYBRID, "causal-transformer"])
    def test_half_precision(self, encoder, dtype, tmp_path):
        model = new_model(encoder)
        waveforms = torch.randn(2, 600)
        expected = whole(model, waveforms)
        model = model.to(dtype)
        got, state = streamed(model, waveforms, [90])
        assert got.dtype == dtype
        close(got.float(), expected, 0.1)
        state.save(tmp_path / "state")
        assert MambaHubertState.load(tmp_path / "state").positions.dtype == dtype

    def test_autocast(self):
        model = new_model(HYBRID)
        waveforms = torch.randn(1, 600)
        with torch.autocast("cpu", torch.bfloat16):
            got, state = streamed(model, waveforms[:, :400], [90])
        close(got.float(), whole(model, waveforms[:, :400]), 0.1)
        more, _ = streamed(model, waveforms[:, 400:], [90], state)
        close(more.float(), whole(model, waveforms)[:, -more.shape[1] :], 0.1)

    def test_inference_mode_and_no_grad_follow_one_another(self):
        model = new_model(HYBRID)
        waveforms = torch.randn(1, 600)
        with torch.inference_mode():
            _, state = streamed(model, waveforms[:, :300], [100])
        got, _ = streamed(model, waveforms[:, 300:], [100], state)
        close(got, whole(model, waveforms)[:, -got.shape[1] :])

    def test_new_weights_act_at_once(self):
        model = new_model()
        waveforms = torch.randn(1, 300)
        streamed(model, waveforms, [100])
        with torch.no_grad():
            for parameter in model.encoder.pos_conv_embed.parameters():
                parameter.mul_(1.5)
        close(streamed(model, waveforms, [100])[0], whole(model, waveforms))
        for parameter in model.encoder.pos_conv_embed.parameters():
            parameter.data.mul_(0.5)
        close(streamed(model, waveforms, [100])[0], whole(model, waveforms))


class TestMistakes:
    @pytest.mark.parametrize("encoder", sorted(set(KINDS) - set(CAUSAL_KINDS)))
    def test_layers_that_are_not_causal_are_named(self, encoder):
        model = new_model(("mamba", encoder), causal_positions=True)
        with pytest.raises(ConfigError, match=rf"layers 1 \({encoder}\) see .*stream_in_chunks"):
            model.init_streaming_state()

    def test_positions_and_group_norms_that_look_ahead_are_named(self):
        model = new_model(causal_positions=False, feat_extract_norm="group")
        with pytest.raises(ConfigError, match=r"positions see 3 frames ahead.*first norm .*feat_extract_norm") as error:
            model.init_streaming_state()
        assert "layers" not in str(error.value)

    def test_states_that_do_not_fit(self):
        model = new_model()
        state = model.init_streaming_state(2)
        with pytest.raises(ConfigError, match="batch = 2"):
            model.stream(torch.randn(1, 50), state)
        with pytest.raises(ConfigError, match=r"\(batch, samples\)"):
            model.stream(torch.randn(50), state)
        with pytest.raises(ConfigError, match="state is a NoneType"):
            model.stream(torch.randn(2, 50), None)
        with pytest.raises(ConfigError, match="of another model"):
            new_model("mamba2").stream(torch.randn(2, 50), state)
        with pytest.raises(ConfigError, match="the state is on meta"):
            model.stream(torch.randn(2, 50), state.to("meta"))
        with pytest.raises(ConfigError, match="lengths lie in"):
            model.stream(torch.randn(2, 50), state, lengths=torch.tensor([0, 51]))
        with pytest.raises(ConfigError, match="final has 3 entries"):
            model.stream(torch.randn(2, 50), state, final=torch.tensor([True] * 3))
        with pytest.raises(ConfigError, match="batch_size is 0"):
            model.init_streaming_state(0)
        with pytest.raises(ConfigError, match="no states"):
            MambaHubertState.join([])
        with pytest.raises(ConfigError, match="different models"):
            MambaHubertState.join([state, new_model("mamba2").init_streaming_state(2)])

    def test_nothing_comes_after_the_last_samples(self):
        model = new_model()
        output, state = model.stream(torch.randn(2, 110), model.init_streaming_state(2), final=True)
        assert output.lengths.tolist() == [4, 4]
        with pytest.raises(ConfigError, match=r"rows 0, 1 have had their last samples"):
            model.stream(torch.randn(2, 50), state)
        with pytest.raises(ConfigError, match=r"rows 1 have"):
            model.stream(torch.randn(2, 50), state.reset([0]))
        output, _ = model.stream(torch.randn(2, 50), state.reset([0]), lengths=torch.tensor([50, 0]))
        assert output.lengths.tolist() == [1, 0]


SMALL = {"bottleneck_dim": 4, "d_conv": 5, "train_norms": False}


def _adapted(model, config):
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return adapted


class TestAdapters:
    @pytest.mark.parametrize(
        ("encoder", "placement"),
        [(encoder, "attention") for encoder in CAUSAL] + [(HYBRID, "both"), ("causal-transformer", "ffn")],
    )
    @HYPOTHESIS
    @given(
        sizes=st.lists(st.integers(0, 300), min_size=1, max_size=8).filter(any),
        plan=TestRows.PLANS,
        seed=st.integers(0, 9),
    )
    def test_mambadapter(self, encoder, placement, sizes, plan, seed):
        torch.manual_seed(seed)
        config = MambAdapterConfig(bottleneck_dim=4, d_conv=5, placement=placement, insertion="sequential")
        model = _adapted(new_model(encoder, MambaHubertForCTC, do_stable_layer_norm=bool(seed % 2)), config)
        waveforms = torch.randn(3, 700)
        expected = whole(model, waveforms)
        with model.disable_adapter():
            assert (whole(model, waveforms) - expected).abs().max() > 1e-3
        close(streamed(model, waveforms, [*sizes, 100])[0], expected)
        # Each row goes as far as the plan, and then to its end.
        done, steps = [0, 0, 0], []
        for counts in [*plan, (700,) * 3]:
            steps.append(tuple(min(count, 700 - at) for count, at in zip(counts, done, strict=True)))
            done = [at + count for at, count in zip(done, steps[-1], strict=True)]
        rows, _ = streamed_rows(model, waveforms, steps)
        close(torch.stack(rows), expected)

    @pytest.mark.parametrize(
        "config",
        [
            MambAdapterConfig(bottleneck_dim=4, mixer="mamba2", placement="both", sharing="none"),
            MambAdapterConfig(bottleneck_dim=4, mixer="none", sharing="low-rank-delta:2"),
            BottleneckConfig(bottleneck_dim=4),
        ],
        ids=["mamba2", "none", "bottleneck"],
    )
    def test_other_adapters_that_look_back_or_nowhere(self, config, tmp_path):
        model = _adapted(new_model("mamba-mlp", MambaHubertForCTC), config)
        waveforms = torch.randn(2, 500)
        _, state = streamed(model, waveforms[:, :200], [50])
        state.save(tmp_path / "state")
        got, _ = streamed(model, waveforms[:, 200:], [130], MambaHubertState.load(tmp_path / "state"))
        close(got, whole(model, waveforms)[:, -got.shape[1] :])

    def test_two_adapters_stacked(self):
        model = _adapted(new_model("mamba-mlp", MambaHubertForCTC), MambAdapterConfig(**SMALL))
        model.add_adapter("second", MambAdapterConfig(**SMALL))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".second." in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        for stack in (False, True):
            model.base_model.combine_adapters(["default", "second"], [1.0, 0.5], stack=stack)
            waveforms = torch.randn(1, 500)
            close(streamed(model.eval(), waveforms, [130])[0], whole(model, waveforms))

    @pytest.mark.parametrize(
        ("encoder", "config", "words"),
        [
            ("mamba-mlp", MambAdapterConfig(bottleneck_dim=4, mixer="bimamba"), "its ExtBiMamba"),
            ("mamba-mlp", ConformerAdapterConfig(bottleneck_dim=4), "its ConformerConvolution"),
            ("causal-transformer", GCLoraConfig(r=2), "its GatedConvolutionUpdate"),
        ],
        ids=["bimamba", "conformer", "gc-lora"],
    )
    def test_adapters_that_look_ahead_are_refused(self, encoder, config, words):
        model = _adapted(new_model(encoder, MambaHubertForCTC), config)
        with pytest.raises(HostError, match=words):
            model.init_streaming_state()
        with model.disable_adapter():
            model.init_streaming_state()

    def test_adapters_may_not_change_during_a_stream(self):
        plain = new_model("mamba", MambaHubertForCTC)
        begun = plain.init_streaming_state()
        model = _adapted(plain, MambAdapterConfig(bottleneck_dim=4, placement="attention"))
        with pytest.raises(ConfigError, match="given a MambaState as its state; expected a SublayerState"):
            model.stream(torch.randn(1, 100), begun)
        state = model.init_streaming_state()
        with model.disable_adapter(), pytest.raises(ConfigError, match=r"began with \['default'\]"):
            model.stream(torch.randn(1, 100), state)
        with pytest.raises(ConfigError, match="given a SublayerState as its state; expected a MambaState"):
            model.unload().stream(torch.randn(1, 100), state)


class TestApproximateStreaming:
    @pytest.mark.parametrize("kind", [MambaHubertModel, MambaHubertForCTC])
    def test_every_frame_comes_once_and_what_is_not_seen_makes_the_difference(self, kind):
        model = new_model("ext-bimamba", kind)
        waveforms = torch.randn(2, 2010)
        expected = whole(model, waveforms)
        seconds = STEP / 16_000
        errors = []
        for context in (0, 4, 200):
            pieces = waveforms.split(150, dim=1)
            lengths = {"chunk": 7 * seconds, "look_ahead": context * seconds, "left_context": context * seconds}
            with torch.no_grad():
                chunks = list(stream_in_chunks(model, pieces, **lengths))
            assert all(chunk.shape[1] == 7 for chunk in chunks[:-1])
            got = torch.cat(chunks, dim=1)
            assert got.shape == expected.shape
            errors.append((got - expected).abs().max().item())
        assert errors[2] < 1e-5 < errors[1] < errors[0]

    def test_a_causal_model_needs_no_look_ahead(self):
        model = new_model("causal-transformer")
        waveforms = torch.randn(1, 1000)
        with torch.no_grad():
            got = torch.cat(list(stream_in_chunks(model, [waveforms], 0.01, 0.0, 10.0)), dim=1)
        close(got, whole(model, waveforms))

    def test_what_is_held_does_not_grow(self):
        model = new_model("ext-bimamba")
        heard = []
        model.register_forward_pre_hook(lambda module, args: heard.append(args[0].shape[1]))
        with torch.no_grad():
            list(stream_in_chunks(model, (torch.randn(1, 500) for _ in range(20)), 0.02, 0.01, 0.04))
        assert max(heard) <= (16 + 8 + 32 - 1) * STEP + FIELD

    def test_mistakes(self):
        model = new_model("ext-bimamba")
        assert list(stream_in_chunks(model, [])) == []
        assert list(stream_in_chunks(model, [torch.randn(1, FIELD - 1)])) == []
        with pytest.raises(ConfigError, match="chunk=0,"):
            stream_in_chunks(model, [], chunk=0)
        with pytest.raises(ConfigError, match="batch = 1"):
            list(stream_in_chunks(model, [torch.randn(1, 9), torch.randn(2, 9)]))


def _equal(first, second):
    """States with the same rows, bit for bit; of a cache only what has been written counts."""
    assert type(first) is type(second)
    for name, ours in vars(first).items():
        theirs = getattr(second, name)
        if isinstance(ours, tuple):
            for one, other in zip(ours, theirs, strict=True):
                _equal(one, other)
        elif hasattr(ours, "reorder"):
            _equal(ours, theirs)
        elif isinstance(ours, torch.Tensor):
            if hasattr(first, "written"):
                frames = max(first.written)
                ours, theirs = ours[:, :, :frames], theirs[:, :, :frames]
            assert torch.equal(ours, theirs), name
        else:
            assert ours == theirs, name
