"""Tiny random models of the hosts, and the methods that every behaviour is tried with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    AutoModelForAudioClassification,
    HubertConfig,
    HubertForSequenceClassification,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WavLMConfig,
    WavLMForSequenceClassification,
    WhisperConfig,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
)

from mambavox.hubert import MambaHubertConfig, MambaHubertForSequenceClassification

WIDTH, LAYERS, LABELS = 16, 2, 4

_SPEECH: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 8),
    "conv_stride": (5, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "num_labels": LABELS,
    "vocab_size": 12,
    # The models' own default drops whole layers while training (see the test of it).
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
_MAMBA_HUBERT: dict[str, Any] = {
    "encoder": ["mamba-mlp", "causal-transformer"],
    "d_state": 3,
    "expand": 2,
    "mamba_intermediate_size": 24,
    "feat_proj_dropout": 0.0,
}
_LAYER_NORM: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_WHISPER: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 24,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "classifier_proj_size": 8,
    "num_labels": LABELS,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


_AST: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 4,
    "frequency_stride": 4,
    "time_stride": 4,
    "max_length": 16,
    "num_mel_bins": 8,
    "num_labels": LABELS,
}


def make_ast(**changes: Any) -> PreTrainedModel:
    return ASTForAudioClassification(ASTConfig(**{**_AST, **changes}))


def make_whisper() -> PreTrainedModel:
    return WhisperForAudioClassification(WhisperConfig(**_WHISPER))


def make_whisper_seq2seq() -> PreTrainedModel:
    return WhisperForConditionalGeneration(WhisperConfig(**_WHISPER))


def make_wav2vec2(**changes: Any) -> PreTrainedModel:
    return Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**{**_SPEECH, **changes}))


def make_hubert(**changes: Any) -> PreTrainedModel:
    return HubertForSequenceClassification(HubertConfig(**{**_SPEECH, **_LAYER_NORM, **changes}))


def make_wavlm(**changes: Any) -> PreTrainedModel:
    return WavLMForSequenceClassification(WavLMConfig(**{**_SPEECH, "num_buckets": 8, **changes}))


def make_mamba_hubert(**changes: Any) -> PreTrainedModel:
    shared = {name: value for name, value in _SPEECH.items() if name != "apply_spec_augment"}
    return MambaHubertForSequenceClassification(MambaHubertConfig(**{**shared, **_MAMBA_HUBERT, **changes}))


@dataclass(frozen=True)
class Host:
    """One host family: how to make a tiny model of it, and a batch that suits it."""

    name: str
    make: Callable[[], PreTrainedModel]
    input_name: str
    input_shape: tuple[int, ...]
    auto_class: Any = AutoModelForAudioClassification

    def model(self, seed: int = 0) -> PreTrainedModel:
        torch.manual_seed(seed)
        return self.make().eval()

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        return {self.input_name: torch.randn(*self.input_shape, generator=generator).to(dtype)}


HOSTS = [
    Host("ast", make_ast, "input_values", (2, 16, 8)),
    Host("whisper", make_whisper, "input_features", (2, 8, 40)),
    Host("wav2vec2", make_wav2vec2, "input_values", (2, 400)),
    Host("hubert", make_hubert, "input_values", (2, 400)),
    Host("wavlm", make_wavlm, "input_values", (2, 400)),
    Host("mamba-hubert", make_mamba_hubert, "input_values", (2, 400)),
]

SMALL = {"bottleneck_dim": 4, "d_state": 3, "d_conv": 5}
RESIDUAL = {"residual": "gelu", "mixer_norm": "rms"}
METHOD_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "mambadapter": ("mambadapter", SMALL),
    "mambadapter-both": ("mambadapter", {**SMALL, "placement": "both", "insertion": "sequential"}),
    "mambadapter-own": ("mambadapter", {**SMALL, "sharing": "none", "gate": "none", "placement": "attention"}),
    "mamba2-placement-channel": (
        "mambadapter",
        {**SMALL, "mixer": "mamba2", "sharing": "placement", "placement": "both", "gate": "channel"},
    ),
    "bimamba-groups-token": ("mambadapter", {**SMALL, "mixer": "bimamba", "sharing": "groups:2", "gate": "token"}),
    "no-mixer-delta": ("mambadapter", {"bottleneck_dim": 4, "mixer": "none", "sharing": "low-rank-delta:2"}),
    "time-order": ("mambadapter", {**SMALL, "token_order": "time", "placement": "both"}),
    "both-orders-delta-token": (
        "mambadapter",
        {**SMALL, "mixer": "bimamba", "token_order": "both", "sharing": "low-rank-delta:2", "gate": "token"},
    ),
    "residual-part-own": (
        "mambadapter",
        {**SMALL, **RESIDUAL, "mixer_dim": 2, "sharing": "none", "down_init": "unit", "scale_init": 1.0},
    ),
    "residual-linear-bimamba-delta": (
        "mambadapter",
        {**SMALL, **RESIDUAL, "residual": "linear", "mixer": "bimamba", "sharing": "low-rank-delta:2"},
    ),
    "bottleneck": ("bottleneck", {"bottleneck_dim": 4}),
    "conformer": ("conformer", {"bottleneck_dim": 4, "kernel_size": 5}),
    "conformer-shared": (
        "conformer",
        {"bottleneck_dim": 4, "kernel_size": 4, "sharing": "all", "gate": "scalar", "insertion": "sequential"},
    ),
    "convpass": ("convpass", {"bottleneck_dim": 4, "placement": "both"}),
    "bitfit": ("bitfit", {}),
    "prefix": ("prefix", {"num_tokens": 3}),
    "prompt-deep": ("prompt", {"num_tokens": 3}),
    "prompt-shallow": ("prompt", {"num_tokens": 3, "depth": "shallow"}),
    "moa-soft": ("moa", {"num_experts": 3, "num_slots": 2, "bottleneck_dim": 2, "placement": "both"}),
    "moa-dense": ("moa", {"routing": "dense", "num_experts": 3, "bottleneck_dim": 2, "insertion": "sequential"}),
    "gc-lora": ("gc-lora", {"r": 4, "kernel_size": 5}),
    "lora": ("lora", {"r": 2}),
    "dora": ("dora", {"r": 2}),
    "vera": ("vera", {"r": 4}),
    "adalora": ("adalora", {"init_r": 3, "target_r": 2}),
    "ia3": ("ia3", {}),
    "linear": ("linear", {}),
}
OWN_METHODS = ("mambadapter", "bottleneck", "conformer", "convpass", "bitfit", "prefix", "prompt", "moa", "gc-lora")
"""The methods of this package, without PEFT's own."""
NOT_SILENT = ("prefix", "prompt")
"""Methods that change what the host puts out from the start."""
FAMILY = (
    "mambadapter",
    "mamba2-placement-channel",
    "residual-part-own",
    "both-orders-delta-token",
    "bottleneck",
    "conformer",
    "convpass",
    "bitfit",
    "prefix",
    "prompt-deep",
    "prompt-shallow",
    "moa-soft",
    "gc-lora",
)
"""One row for each kind of method and mixer, all of which run on AST."""
# A covering choice: every option on hosts that differ in what it touches, not on all of them.
ONLY_ON = {
    "mamba2-placement-channel": ("ast", "wavlm"),
    "bimamba-groups-token": ("wav2vec2", "hubert"),
    "no-mixer-delta": ("whisper", "hubert"),
    "time-order": ("ast",),
    "residual-part-own": ("ast", "whisper", "wav2vec2", "mamba-hubert"),
    "residual-linear-bimamba-delta": ("whisper", "hubert", "wavlm"),
    "both-orders-delta-token": ("ast",),
    "conformer": ("ast", "whisper", "wav2vec2"),
    "conformer-shared": ("hubert",),
    "convpass": ("ast", "wavlm"),
    "prefix": ("ast", "whisper", "wav2vec2", "hubert"),
    "prompt-deep": ("ast", "whisper", "wav2vec2", "hubert", "wavlm"),
    "prompt-shallow": ("ast", "whisper", "wav2vec2", "hubert", "wavlm"),
    "moa-soft": ("ast", "hubert", "wavlm"),
    "moa-dense": ("whisper", "wav2vec2"),
    "gc-lora": ("ast", "whisper", "hubert"),
    "dora": ("ast", "wavlm"),
    "vera": ("whisper", "wavlm"),
    "adalora": ("wav2vec2", "wavlm"),
    "ia3": ("ast", "whisper", "hubert", "wavlm", "mamba-hubert"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Hosts and methods for tests that ask for them and do not choose their own."""
    chosen = {name for mark in metafunc.definition.iter_markers("parametrize") for name in str(mark.args[0]).split(",")}
    asked = [name for name in ("method", "own_method") if name in metafunc.fixturenames and name not in chosen]
    if "host" not in metafunc.fixturenames or "host" in chosen:
        return
    if not asked:
        metafunc.parametrize("host", HOSTS, ids=lambda host: host.name)
        return
    pairs = [
        pytest.param(host, (method, options), id=f"{host.name}-{row}")
        for row, (method, options) in METHOD_OPTIONS.items()
        for host in HOSTS
        if host.name in ONLY_ON.get(row, [host.name for host in HOSTS])
        and (asked == ["method"] or method in OWN_METHODS)
    ]
    metafunc.parametrize(("host", *asked), pairs)


@pytest.fixture(scope="session")
def saved_hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a saved model of each host."""
    folders = {}
    for host in HOSTS:
        folders[host.name] = tmp_path_factory.mktemp(host.name)
        host.model().save_pretrained(folders[host.name])
    return folders


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Noise(torch.utils.data.Dataset[dict[str, Tensor]]):
    """A batch's worth of random clips with labels."""

    def __init__(self, host: Host) -> None:
        self.name, shape = host.input_name, host.input_shape[1:]
        self.clips = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {self.name: self.clips[index], "labels": torch.tensor(index % 4)}


@torch.no_grad()
@torch.no_grad()
def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The model's output in evaluation mode; the mode is put back.

    Nothing wants a gradient meanwhile: torch multiplies in another order, and rounds otherwise, where a weight does.
    """
    training, wanted = model.training, [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        return model.eval()(**inputs).logits
    finally:
        model.train(training)
        for parameter in wanted:
            parameter.requires_grad_(True)


def train_step(model: nn.Module, inputs: dict[str, Tensor], steps: int = 1) -> None:
    """A few steps towards arbitrary labels, which leave no trainable tensor where it was."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.0)
    for _ in range(steps):
        output = model(**inputs).logits
        loss = output.flatten(0, -2).log_softmax(-1)[:, 1].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train_without_dropout(model: nn.Module) -> None:
    """Training mode, in which nothing is random."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
