import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.fft import dct
from tiny_hubert import tiny_config
from transformers import HubertConfig, HubertModel
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from mambavox.errors import AudioError, ConfigError, HostError
from mambavox.hubert import MambaHubertForPreTraining, MambaHubertModel
from mambavox.units import LayerFeatures, MfccFeatures, load_features
from mambavox.units.features import split_source
from mambavox.units.mfcc import deltas, mfcc

LENGTHS = (3000, 1000, 2345, 100)


def waveforms(lengths=LENGTHS):
    generator = np.random.default_rng(0)
    return [(0.1 * generator.standard_normal(length)).astype(np.float32) for length in lengths]


def golden_signal():
    spec = importlib.util.spec_from_file_location("kaldi_golden", Path(__file__).with_name("kaldi_golden.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.signal()


# Printed by kaldi_golden.py, which runs Kaldi's own code.
# fmt: off
KALDI = {
    0: [-3.119, -14.509, 16.663, 14.546, 7.035, -7.405, -15.389, -25.095, -33.405, -42.470, -29.920, -22.451, -18.485],
    20: [-5.705, -31.291, -27.898, -29.364, 16.473, 19.422, -34.574, -49.856, -15.382, 23.662, 13.718, -35.681,
         -22.170],
    40: [-5.327, -36.335, -23.416, 9.152, -2.252, -41.463, 21.019, 20.913, -31.650, 18.059, 31.351, -29.419, -13.871],
}
# fmt: on


def test_mfcc_are_kaldis():
    found = mfcc(golden_signal())
    assert found.shape == (48, 13)
    for frame, expected in KALDI.items():
        np.testing.assert_allclose(found[frame], expected, rtol=0, atol=1e-3)


def test_mfcc_by_definition():
    waveform = waveforms([8000])[0]
    log_mel = spectrogram(
        waveform,
        window_function(400, "povey", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=mel_filter_bank(257, 23, 20, 8000, 16_000, mel_scale="kaldi", triangularize_in_mel_space=True),
        log_mel="log",
        mel_floor=np.finfo(np.float32).eps,
        remove_dc_offset=True,
    ).T
    lifter = 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    expected = dct(log_mel, type=2, norm="ortho", axis=1)[:, :13] * lifter
    np.testing.assert_allclose(mfcc(waveform), expected, atol=1e-3)


def test_a_long_recording_is_cut_into_blocks_without_a_seam(monkeypatch):
    waveform = waveforms([8000])[0]
    whole = mfcc(waveform)
    monkeypatch.setattr("mambavox.units.mfcc._BLOCK", 7)
    np.testing.assert_array_equal(mfcc(waveform), whole)


def test_deltas_by_their_formula():
    features = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    expected = np.zeros_like(features)
    for t in range(7):
        for n in (1, 2):
            expected[t] += n * (features[min(t + n, 6)] - features[max(t - n, 0)]) / 10
    np.testing.assert_allclose(deltas(features), expected, atol=1e-6)
    ramp = np.arange(9, dtype=np.float32)[:, None] * 2
    np.testing.assert_allclose(deltas(ramp)[2:-2], 2.0)


def test_mfcc_features_are_cepstra_and_their_deltas():
    features = MfccFeatures()
    waveform = waveforms([4000])[0]
    (found,) = features([waveform])
    cepstra = mfcc(waveform)
    assert found.shape == (23, 39) and features.dim == 39 and features.frame_rate == 100.0
    np.testing.assert_array_equal(found, np.concatenate([cepstra, deltas(cepstra), deltas(deltas(cepstra))], axis=1))


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2)])
def test_mfcc_frames_are_whole_windows(samples, frames):
    assert MfccFeatures()([np.ones(samples, np.float32)])[0].shape == (frames, 39)


def test_silence_has_finite_mfcc():
    assert np.isfinite(MfccFeatures()([np.zeros(1600, np.float32)])[0]).all()


def folder_of(family, backbone, tmp_path):
    if family.startswith("mamba"):
        norm = family.removeprefix("mamba-")
        MambaHubertForPreTraining(tiny_config("ext-bimamba", feat_extract_norm=norm)).save_pretrained(tmp_path)
        return str(tmp_path)
    return backbone(family)


@pytest.mark.parametrize("family", ["mamba-layer", "mamba-group", "hubert", "wav2vec2", "wavlm", "whisper"])
def test_a_recording_alone_gives_what_it_gives_in_a_batch(family, backbone, tmp_path):
    features = LayerFeatures(folder_of(family, backbone, tmp_path), 1, "cpu")
    clips = waveforms()
    together = features(clips)
    for clip, found in zip(clips, together, strict=True):
        assert found.shape == (features.num_frames(len(clip)), features.dim) and found.dtype == np.float32
        np.testing.assert_allclose(found, features([clip])[0], atol=1e-5)


@pytest.mark.parametrize(
    ("family", "runs"), [("mamba-layer", 1), ("mamba-group", 2), ("hubert", 1), ("wav2vec2", 2), ("whisper", 3)]
)
def test_what_can_be_run_together_is(family, runs, backbone, tmp_path):
    features = LayerFeatures(folder_of(family, backbone, tmp_path), 1, "cpu")
    clips = waveforms((3000, 1000, 3000, 10) if family != "whisper" else (3000, 1000, 3000))
    calls = []
    features.model.register_forward_hook(lambda *_: calls.append(None))
    together = features.padded_layers(clips, [2])[2]
    assert len(calls) == runs and together.shape == (len(clips), features.num_frames(3000), features.dim)
    for row, clip in enumerate(clips):
        time = features.num_frames(len(clip))
        np.testing.assert_allclose(together[row, :time], features.all_layers([clip], [2])[0][2], atol=1e-5)
        assert not together[row, time:].any()


@pytest.mark.parametrize("family", ["mamba-layer", "mamba-group", "hubert", "wav2vec2", "wavlm", "whisper"])
def test_one_layer_alone_is_that_of_a_whole_run(family, backbone, tmp_path):
    folder = folder_of(family, backbone, tmp_path)
    clips = waveforms()
    whole = LayerFeatures(folder, 0, "cpu").all_layers(clips)
    for layer in range(3):
        features = LayerFeatures(folder, layer, "cpu")
        for found, states in zip(features(clips), whole, strict=True):
            np.testing.assert_array_equal(found, states[layer])
        # Nothing is left behind that would end the next run.
        assert sorted(features.all_layers(clips)[0]) == [0, 1, 2]


def test_layer_features_are_the_models_hidden_states(tmp_path):
    model = MambaHubertModel(tiny_config()).eval()
    model.save_pretrained(tmp_path)
    clip = waveforms([1000])[0]
    with torch.no_grad():
        expected = model(torch.from_numpy(clip)[None], output_hidden_states=True).hidden_states
    for layer in range(3):
        np.testing.assert_allclose(LayerFeatures(str(tmp_path), layer)([clip])[0], expected[layer][0], atol=1e-6)
    found = LayerFeatures(model, 0).all_layers([clip])[0]
    assert sorted(found) == [0, 1, 2]
    np.testing.assert_allclose(found[2], expected[2][0], atol=1e-6)


def test_a_normalising_feature_extractor_is_obeyed(backbone):
    features = LayerFeatures(backbone("hubert"), 1)
    clip = waveforms([2000])[0]
    np.testing.assert_allclose(features([clip])[0], features([3 * clip + 0.5])[0], atol=1e-4)


def test_whisper_hears_recordings_longer_than_its_window(backbone):
    features = LayerFeatures(backbone("whisper"), 2)
    clip = waveforms([40_000])[0]
    (found,) = features([clip])
    assert found.shape == (125, 16) and features.frame_rate == 50.0
    np.testing.assert_allclose(found[50:100], features([clip[16_000:32_000]])[0], atol=1e-5)


def test_frame_rate_comes_from_the_strides():
    config = HubertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config.update({"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2})
    features = LayerFeatures(HubertModel(config), 1)
    assert features.frame_rate == 50.0
    assert [features.num_frames(samples) for samples in (0, 399, 400, 719, 720, 16_000)] == [0, 0, 1, 1, 2, 49]


def test_fingerprint_differs_between_weights_of_one_name(tmp_path):
    prints = []
    for _ in range(2):
        MambaHubertModel(tiny_config()).save_pretrained(tmp_path)
        prints.append(LayerFeatures(str(tmp_path), 1).fingerprint)
    assert prints[0] != prints[1] == LayerFeatures(str(tmp_path), 2).fingerprint


@pytest.mark.parametrize("kind", [MfccFeatures, lambda: LayerFeatures(MambaHubertModel(tiny_config()), 1)])
def test_waveforms_that_are_none_are_refused(kind):
    features = kind()
    broken = waveforms([1000])[0]
    broken[7] = np.nan
    with pytest.raises(AudioError, match=r"1 of 1000 samples .* the first is sample 7"):
        features([broken])
    with pytest.raises(AudioError, match=r"shape \(2, 500\)"):
        features([np.zeros((2, 500), np.float32)])


@pytest.mark.parametrize("source", ["mfccs", "runs/it1", "runs/it1:", ":3", "runs/it1:-1", "runs/it1:last"])
def test_sources_that_are_none_are_refused(source):
    with pytest.raises(ConfigError, match="expected mfcc, or MODEL:LAYER"):
        load_features(source)


def test_a_source_may_hold_colons():
    assert split_source("C:/runs/it1:6") == ("C:/runs/it1", 6)


def test_layers_and_models_that_are_not_there(backbone, tmp_path):
    with pytest.raises(ConfigError, match=r"layer 3 .* 0 .* to 2"):
        LayerFeatures(backbone("hubert"), 3)
    with pytest.raises(ConfigError, match="holds no model that transformers can load"):
        LayerFeatures(str(tmp_path), 1)
    with pytest.raises(HostError, match="speech model"):
        LayerFeatures(backbone("ast"), 1)


def test_a_checkpoint_without_all_weights_is_refused(backbone, tmp_path):
    from safetensors.torch import load_file, save_file

    MambaHubertModel(tiny_config()).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.layers.1.mamba.A_log"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(HostError, match=r"lacks 1 weights, such as encoder\.layers\.1\.mamba\.A_log"):
        LayerFeatures(str(tmp_path), 1)


def test_a_recording_that_is_too_long_is_told(monkeypatch):
    """A model takes it whole, and an hour would take 24 GB."""
    monkeypatch.setattr("mambavox.units.features.MAX_SECONDS", 1.5)
    features = LayerFeatures(MambaHubertModel(tiny_config()), 1)
    assert len(features([np.zeros(24_000, np.float32)])[0])
    with pytest.raises(AudioError, match=r"a waveform: is 0\.0 minutes long.*--cut-seconds"):
        features([np.zeros(24_001, np.float32)])
    MfccFeatures().check_length(24_001, "long")
