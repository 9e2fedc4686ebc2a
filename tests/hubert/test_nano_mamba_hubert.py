"""The embedded causal Mamba-HuBERT, and its Transformer twin."""

from pathlib import Path

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel

from mambavox import assets
from mambavox.data.synth import synthesize
from mambavox.hubert import MambaHubertForCTC, MambaHubertForPreTraining

NAME = "nano-mamba-hubert"
TWIN = "nano-transformer-hubert"


@pytest.mark.parametrize("name", [NAME, TWIN])
def test_it_loads_in_single_precision_and_streams(name):
    folder = Path(assets.path(name))
    assert (folder / "model.safetensors").stat().st_size <= 10e6
    model = AutoModel.from_pretrained(folder).eval()
    assert (
        model.dtype == torch.float32
        and model.config.causal
        and model.num_parameters() == pytest.approx(3.6e6, rel=0.02)
    )
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    samples = extractor(synthesize("the boat was slow"), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        whole = model(samples).last_hidden_state
        state, pieces = model.init_streaming_state(1), []
        for piece in samples.split(5000, dim=1):
            output, state = model.stream(piece, state)
            pieces.append(output.last_hidden_state)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [NAME, TWIN])
def test_it_has_learned_units_of_speech(name):
    """It is surer of a frame's unit than new weights are, and hears many units."""
    model = MambaHubertForPreTraining.from_pretrained(assets.path(name)).eval()
    new = MambaHubertForPreTraining(model.config).eval()
    speech = torch.from_numpy(synthesize("one two three four five six seven"))[None]
    with torch.inference_mode():
        best, other = (each(speech).logits.softmax(-1).max(-1) for each in (model, new))
    assert best.values.mean() > 0.1 > 10 * other.values.mean()
    assert len(best.indices.unique()) > 30


def test_a_recogniser_starts_from_it():
    model = MambaHubertForCTC.from_pretrained(assets.path(NAME), vocab_size=30)
    assert model.lm_head.out_features == 30
    encoder = AutoModel.from_pretrained(assets.path(NAME))
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, model.mamba_hubert.state_dict()[name]), name
