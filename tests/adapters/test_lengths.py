"""A row alone gives what it gives in a padded batch, on hosts whose front end normalises each frame by itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapters.conftest import (
    METHOD_OPTIONS,
    SMALL,
    make_hubert,
    make_wav2vec2,
    make_wavlm,
    train_without_dropout,
    trainable,
)
from peft import get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from mambavox.adapters import METHODS, MambAdapterConfig
from mambavox.adapters.hosts import mask_lengths
from mambavox.adapters.sublayer import SublayerAdapter
from mambavox.errors import HostError

SAMPLES, LONGEST = (400, 640, 250), 640
# The front end has kernels 10, 8 and strides 5, 4: (samples - 10) // 5 + 1, then (frames - 8) // 4 + 1.
FRAMES = (18, 30, 11)
FRONT: dict[str, Any] = {"feat_extract_norm": "layer", "conv_bias": True}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "wav2vec2-post-norm": lambda: make_wav2vec2(**FRONT),
    "wav2vec2-pre-norm": lambda: make_wav2vec2(**FRONT, do_stable_layer_norm=True),
    "hubert-pre-norm": make_hubert,
    "wavlm-post-norm": lambda: make_wavlm(**FRONT),
    "wavlm-pre-norm": lambda: make_wavlm(**FRONT, do_stable_layer_norm=True),
}
TEMPORAL: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": METHOD_OPTIONS["mambadapter-both"],
    "residual": METHOD_OPTIONS["residual-part-own"],
    "mamba2": METHOD_OPTIONS["mamba2-placement-channel"],
    "bimamba": METHOD_OPTIONS["bimamba-groups-token"],
    "conformer": METHOD_OPTIONS["conformer"],
    "conformer-even": METHOD_OPTIONS["conformer-shared"],
    "convpass": METHOD_OPTIONS["convpass"],
    "moa-soft": METHOD_OPTIONS["moa-soft"],
}


def adapted(base: PreTrainedModel, method: str, options: dict[str, Any]) -> nn.Module:
    """The backbone with an adapter that does something, in evaluation mode."""
    config = METHODS[method].config
    assert config is not None
    model = get_peft_model(base.base_model, config(**options)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def batch() -> tuple[list[Tensor], Tensor, Tensor]:
    """Waveforms, the padded batch (the padding holds noise) and its mask."""
    waveforms = [torch.randn(samples) for samples in SAMPLES]
    mask = torch.zeros(len(SAMPLES), LONGEST, dtype=torch.int64)
    padded = 5 * torch.randn(len(SAMPLES), LONGEST)
    for row, waveform in enumerate(waveforms):
        padded[row, : len(waveform)] = waveform
        mask[row, : len(waveform)] = 1
    return waveforms, padded, mask


def check_rows(model: nn.Module) -> None:
    model.double()
    waveforms, padded, mask = batch()
    with torch.no_grad():
        together = model(padded.double(), attention_mask=mask).last_hidden_state
        for row, waveform in enumerate(waveforms):
            alone = model(waveform[None].double()).last_hidden_state[0]
            assert len(alone) == FRAMES[row]
            torch.testing.assert_close(together[row, : FRAMES[row]], alone, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("host", MODELS)
@pytest.mark.parametrize("method", TEMPORAL)
def test_row_alone_and_in_a_padded_batch(host: str, method: str) -> None:
    check_rows(adapted(MODELS[host](), *TEMPORAL[method]))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("placement", ["ffn", "attention"])
def test_every_kind_of_mask(attention: str, placement: str) -> None:
    model = adapted(make_hubert(), "mambadapter", {**SMALL, "mixer": "bimamba", "placement": placement})
    model.get_base_model().set_attn_implementation(attention)
    check_rows(model)


def test_two_methods_in_one_host() -> None:
    """The second wraps what the first has wrapped, the attention whose mask both read included."""
    base = make_hubert().base_model
    for name, method in (("a", "bimamba-groups-token"), ("b", "convpass")):
        config = METHODS[METHOD_OPTIONS[method][0]].config
        assert config is not None
        base.add_adapter(config(**METHOD_OPTIONS[method][1], train_norms=False), adapter_name=name)
    base.set_adapter(["a", "b"])
    with torch.no_grad():
        for parameter in trainable(base).values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    check_rows(base.eval())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_layers_run_again_with_the_lengths_of_their_own_batch(use_reentrant: bool) -> None:
    """Two batches go forward before either goes backward."""
    (_, first, first_mask), (_, second, second_mask) = batch(), batch()
    second_mask = second_mask.flip(0)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = adapted(make_hubert(), "conformer", {"bottleneck_dim": 4})
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.get_base_model().enable_input_require_grads()
        train_without_dropout(model)
        outputs = [
            model(padded, attention_mask=mask).last_hidden_state[row, : mask[row].sum() // 20 - 2]
            for padded, mask in ((first, first_mask), (second, second_mask))
            for row in range(2)
        ]
        sum(output.square().sum() for output in outputs).backward()
        gradients.append({name: p.grad for name, p in trainable(model).items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_masks_and_lengths() -> None:
    valid = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    wide = valid[:, None, None, :].expand(2, 1, 3, 3)
    scores = torch.zeros(2, 1, 3, 3).masked_fill(~wide, torch.finfo(torch.float32).min)
    for mask in (valid, valid.long(), wide, scores):
        assert mask_lengths(mask).tolist() == [2, 3]
    with pytest.raises(HostError, match=r"a dict as its mask.*attn_implementation 'sdpa'"):
        mask_lengths({})


def test_no_mask_stays_behind() -> None:
    model = adapted(make_hubert(), "convpass", {"bottleneck_dim": 4, "placement": "both"})
    check_rows(model)
    assert all(module.call is None for module in model.modules() if isinstance(module, SublayerAdapter))


def test_an_adapter_of_single_frames_reads_no_mask() -> None:
    model = adapted(make_hubert(), "mambadapter", {"bottleneck_dim": 4, "mixer": "none"})
    seen = []
    for module in model.modules():
        if hasattr(module, "is_temporal"):
            assert not module.is_temporal()
            seen.append(module)
    assert seen
    check_rows(model)


def test_config_of_a_causal_mixer_is_causal() -> None:
    contexts = {mixer: MambAdapterConfig(mixer=mixer).context() for mixer in ("none", "mamba", "mamba2", "bimamba")}
    assert contexts == {"none": "frame", "mamba": "past", "mamba2": "past", "bimamba": "all"}
