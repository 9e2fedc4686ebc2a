import json
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score
from tiny_hubert import tiny_config
from typer.testing import CliRunner

from mambavox.cli import app
from mambavox.data import Example, read_examples, synth
from mambavox.errors import ConfigError, DataError
from mambavox.hubert import MambaHubertModel
from mambavox.units import LayerFeatures, MfccFeatures, UnitQuantizer
from mambavox.units.phones import (
    SENTENCES,
    SILENCE,
    AlignedSpeech,
    PhoneSegment,
    aligned_speech,
    frame_phones,
    quality_speech,
    segments_of,
    synthesized_speech,
)
from mambavox.units.quality import UnitQuality, count_pairs, measure_layers, quantizer_quality


def brute_force(units, phones):
    """Purities frame by frame."""
    pairs = list(zip(units, phones, strict=True))
    by_unit = sum(max(pairs.count((unit, phone)) for phone in set(phones)) for unit in set(units))
    by_phone = sum(max(pairs.count((unit, phone)) for unit in set(units)) for phone in set(phones))
    return by_unit / len(pairs), by_phone / len(pairs)


def test_quality_by_brute_force():
    generator = np.random.default_rng(0)
    units = generator.integers(0, 7, 300).astype(np.int32)
    phones = np.array(list("abcde"))[(units + generator.integers(0, 3, 300)) % 5]
    quality = UnitQuality.from_counts(count_pairs([units[:100], units[100:]], [phones[:100], phones[100:]]))
    phone_purity, cluster_purity = brute_force(units.tolist(), phones.tolist())
    _, unit_counts = np.unique(units, return_counts=True)
    _, phone_counts = np.unique(phones, return_counts=True)
    assert quality.phone_purity == pytest.approx(phone_purity)
    assert quality.cluster_purity == pytest.approx(cluster_purity)
    assert quality.pnmi == pytest.approx(mutual_info_score(units, phones) / entropy(phone_counts))
    assert quality.perplexity == pytest.approx(np.exp(entropy(unit_counts)))
    assert (quality.units_used, quality.frames) == (7, 300)
    assert quality.chance_purity == pytest.approx(phone_counts.max() / 300)


def test_quality_of_perfect_and_of_useless_units():
    phones = np.array(list("aabbccdd"))
    perfect = UnitQuality.from_counts(count_pairs([np.repeat(np.arange(4, dtype=np.int32), 2)], [phones]))
    assert (perfect.phone_purity, perfect.cluster_purity) == (1.0, 1.0)
    assert perfect.pnmi == pytest.approx(1.0) and perfect.perplexity == pytest.approx(4.0)
    single = UnitQuality.from_counts(count_pairs([np.zeros(8, np.int32)], [phones]))
    assert (single.phone_purity, single.cluster_purity) == (0.25, 1.0)
    assert single.pnmi == pytest.approx(0.0, abs=1e-12) and single.perplexity == pytest.approx(1.0)


def test_frames_without_a_phone_do_not_count():
    counts = count_pairs([np.array([0, 1, 1], np.int32)], [np.array(["a", "", "b"])])
    np.testing.assert_array_equal(counts, [[1, 0], [0, 1]])
    with pytest.raises(DataError, match="no frame"):
        UnitQuality.from_counts(count_pairs([np.zeros(2, np.int32)], [np.array(["", ""])]))


def test_the_phone_of_a_frame_is_that_at_its_centre():
    phones = [PhoneSegment("a", 0.0, 0.1), PhoneSegment("ʃ", 0.1, 0.15), PhoneSegment("b", 0.2, 0.3)]
    found = frame_phones(phones, 6, 20.0, 0.0251)
    assert found.tolist() == ["a", "a", "ʃ", "", "b", "b"]
    assert frame_phones([], 2, 20.0, 0.0).tolist() == ["", ""]


def test_silence_inside_phones_is_cut_out():
    waveform = np.ones(16_000, np.float32)
    waveform[4000:6400] = 0
    found = segments_of(waveform, [synth.Phone("ˈa", 0.1), synth.Phone("s", 0.3), synth.Phone("t", 0.5)])
    assert [(segment.phone, round(segment.start, 3), round(segment.end, 3)) for segment in found] == [
        (SILENCE, 0.0, 0.1),
        ("a", 0.1, 0.25),
        (SILENCE, 0.25, 0.4),
        ("s", 0.4, 0.5),
        ("t", 0.5, 1.0),
    ]


def high_shares(speech, shift):
    """Share of energy above 3 kHz in sibilants and in vowels, and the loudest samples of silences."""
    found = {"sibilant": [], "vowel": [], "silence": []}
    for recording in speech:
        for segment in recording.phones:
            start, end = (round((time + shift) * 16_000) for time in (segment.start, segment.end))
            sound = recording.waveform[start:end]
            if segment.phone == SILENCE:
                found["silence"].append(np.abs(sound).max(initial=0))
            elif len(sound) > 400 and segment.phone in ("s", "ʃ", "iː", "uː", "ɔː", "æ", "ɛ"):
                power = np.abs(np.fft.rfft(sound)) ** 2
                kind = "sibilant" if segment.phone in ("s", "ʃ") else "vowel"
                found[kind].append(power[len(power) * 3 // 8 :].sum() / power.sum())
    return found


def test_espeaks_phone_times_are_where_the_sounds_are():
    pytest.importorskip("espeakng_loader", reason="the extra synth is not installed")
    speech = list(synthesized_speech(per_speaker=3, speakers=("m6", "f5")))
    for recording in speech:
        assert all(before.end == pytest.approx(after.start) for before, after in pairwise(recording.phones))
        assert recording.phones[-1].end == pytest.approx(len(recording.waveform) / 16_000)
    there = high_shares(speech, 0.0)
    assert len(there["sibilant"]) > 8 and len(there["vowel"]) > 10
    assert min(there["sibilant"]) > 2 * max(there["vowel"])
    assert np.median(there["silence"]) < 0.01
    # Elsewhere it would not be so.
    elsewhere = high_shares(speech, 0.08)
    assert min(elsewhere["sibilant"]) < max(elsewhere["vowel"]) and np.median(elsewhere["silence"]) > 0.02


def test_speech_to_fit_to_and_to_measure_on_share_neither_speaker_nor_sentence():
    pytest.importorskip("espeakng_loader", reason="the extra synth is not installed")
    fit, test = quality_speech(per_speaker=1)
    assert {recording.speaker for recording in fit}.isdisjoint(recording.speaker for recording in test)
    assert len(set(SENTENCES)) == len(SENTENCES) == 32
    again, _ = quality_speech(per_speaker=1)
    np.testing.assert_array_equal(fit[3].waveform, again[3].waveform)
    with pytest.raises(ConfigError, match="at least 34 sentences"):
        quality_speech(per_speaker=17)


def tone_speech(count, seed):
    """Recordings of two tones, whose phones are known."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        order = generator.permutation(["low", "high"]).tolist()
        time = np.arange(1600) / 16_000
        pieces = [np.sin(2 * np.pi * {"low": 300, "high": 3000}[phone] * time) for phone in order]
        waveform = 0.3 * np.concatenate(pieces) + 0.01 * generator.standard_normal(3200)
        phones = [PhoneSegment(order[0], 0.0, 0.1), PhoneSegment(order[1], 0.1, 0.2)]
        yield AlignedSpeech(waveform.astype(np.float32), tuple(phones), f"speaker {number % 2}")


def test_units_of_two_tones_are_pure():
    fit, test = list(tone_speech(6, 0)), list(tone_speech(6, 1))
    (row,) = measure_layers(MfccFeatures(), fit, test, 2)
    # Windows on the border between the tones hold both.
    assert row.quality.phone_purity > 0.9 and row.quality.pnmi > 0.6 and row.quality.chance_purity < 0.6
    assert row.phone_pwcca > 0.9 and row.phone_cca > 0.95
    features = MfccFeatures()
    quantizer = UnitQuantizer.fit(features([speech.waveform for speech in fit]), 2, 0)
    assert quantizer_quality(quantizer, features, test) == row.quality


@pytest.mark.parametrize("max_bytes", [1 << 30, 1])
def test_each_layer_has_its_row(max_bytes):
    features = LayerFeatures(MambaHubertModel(tiny_config()), 0)
    fit, test = list(tone_speech(3, 0)), list(tone_speech(8, 1))
    rows = measure_layers(features, fit, test, 4, max_bytes=max_bytes)
    assert [row.source for row in rows] == [f"MambaHubertModel:{layer}" for layer in range(3)]
    alone = measure_layers(features, fit, test, 4, layers=[1])
    assert alone == [rows[1]] and rows[1] != rows[2]
    assert rows[0].speaker_cca is not None
    few = measure_layers(features, fit, test[:3], 4, layers=[1])[0]
    assert few.speaker_cca is None and few.phone_cca is None
    with pytest.raises(ConfigError, match="layer 3"):
        measure_layers(features, fit, test, 4, layers=[3])


def test_alignments_come_from_a_field_and_are_checked(tones):
    example = read_examples(tones)[0]
    given = Example(example.audio, fields={"alignment": [["a", 0.0, 0.1], ["b", 0.1, 0.2]], "speaker": "x"})
    (found,) = aligned_speech([given])
    assert found.phones == (PhoneSegment("a", 0.0, 0.1), PhoneSegment("b", 0.1, 0.2)) and found.speaker == "x"
    for fields, message in (
        ({"phones": ["a", "b"]}, "'phones' has no times: a canonical transcription is no alignment"),
        ({}, "no field 'alignment'; expected"),
        ({"alignment": ["a", "b"]}, "is no list of"),
        ({"alignment": [["a", 0.0, 0.2], ["b", 0.1, 0.3]]}, "'b' lies at 0.1 to 0.3 s, after one that ends at 0.2 s"),
    ):
        with pytest.raises(DataError, match=message):
            list(aligned_speech([Example(example.audio, fields=fields)]))


def test_canonical_phones_of_real_speech_are_not_taken_for_aligned(recordings):
    with pytest.raises(DataError, match="canonical transcription is no alignment"):
        list(aligned_speech(read_examples(recordings / "librispeech_subset", label_column=None)[:1]))


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["units", *map(str, arguments)])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def test_commands_fit_and_label(tones, tmp_path):
    out = run("fit", "--data", tones, "--source", "mfcc", "--num-clusters", 4, "--output", tmp_path / "km", "--json")
    assert json.loads(out.stdout)["num_clusters"] == 4
    run("fit", "--data", tones, "--source", "mfcc", "--output", tmp_path / "km", code=1)
    label = ("label", "--data", tones, "--output", tmp_path / "units")
    assert "12 recordings" in run(*label, "--quantizer", tmp_path / "km").stdout
    run(*label, "--quantizer", tmp_path / "km")
    assert "num_clusters was 4 and is 5" in run(*label, "--source", "mfcc", "--num-clusters", 5, code=1).stderr
    run(*label, code=2)
    run("fit", "--data", tones, "--source", "mfcc", "--num-clusters", 4, "--seed", 1, "--output", tmp_path / "other")
    assert "of another quantizer" in run(*label, "--quantizer", tmp_path / "other", code=1).stderr


def test_command_quality_writes_table_and_plot(tmp_path):
    pytest.importorskip("espeakng_loader", reason="the extra synth is not installed")
    MambaHubertModel(tiny_config()).save_pretrained(tmp_path / "it1")
    arguments = (
        "quality",
        "mfcc",
        f"{tmp_path / 'it1'}:2",
        "--num-clusters",
        10,
        "--per-speaker",
        1,
        "--device",
        "cpu",
    )
    result = run(*arguments, "--output", tmp_path / "quality", "--json")
    rows = json.loads(result.stdout)
    assert [row["source"] for row in rows] == ["mfcc", f"{tmp_path / 'it1'}:2"]
    # 800 frames a second from random weights hold less of the phones than cepstra do.
    assert rows[0]["phone_purity"] > max(rows[1]["phone_purity"], rows[0]["chance_purity"] + 0.1)
    assert json.loads((tmp_path / "quality" / "quality.json").read_text()) == rows
    assert f"{rows[0]['phone_purity']:.3f}" in (tmp_path / "quality" / "quality.md").read_text()
    assert (tmp_path / "quality" / "quality.png").stat().st_size > 10_000
