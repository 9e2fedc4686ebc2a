"""An adapted Whisper for other runtimes: three ONNX graphs, adapters inside, and the proof that they say the same."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from mambavox.adapters import sublayer
from mambavox.adapters.cache import CacheLayerWithMixers, DecodedState
from mambavox.asr.whisper_language import prefix_ids
from mambavox.errors import ConfigError
from mambavox.files import to_json, write_atomically
from mambavox.hub import without_adapters
from mambavox.hubert.onnx_step import check_exporter, plain_operations, quiet_export
from mambavox.lengths import length_mask, reverse_inside
from mambavox.nn.streaming import MambaState

ENCODER, FIRST, NEXT = "encoder_model", "decoder_model", "decoder_with_past_model"
"""Names of the graphs, which are those of other exporters of Whisper."""
DESCRIPTION = "export.json"
_OPSET = 18
_MOST_IN_ONE_FILE = 400_000_000  # numbers; ONNX takes no file above two gigabytes
_TOLERANCE = 1e-4  # of a tensor's largest number, where that is above 1


class EncoderGraph(nn.Module):
    """A spectrogram to the keys and values that each layer of the decoder attends to.

    Args:
        model: a Whisper, adapted or not.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.host = without_adapters(model)

    def forward(self, input_features: Tensor) -> tuple[Tensor, ...]:
        """``(1, mel, frames)`` to keys and values ``(1, heads, frames / 2, width)`` of each layer in turn."""
        hidden = self.host.get_encoder()(input_features, return_dict=True).last_hidden_state
        found = []
        for layer in self.host.get_decoder().layers:
            attention = layer.encoder_attn
            for projection in (attention.k_proj, attention.v_proj):
                flat = projection(hidden)
                found.append(flat.view(1, -1, attention.num_heads, attention.head_dim).transpose(1, 2))
        return tuple(found)


class DecoderGraph(nn.Module):
    """Tokens and what came before them to the logits of what comes next.

    Args:
        model: a Whisper, adapted or not.
        mixers: what the adapters in each layer of the decoder remember, by their keys in the cache.
    """

    def __init__(self, model: Any, mixers: Sequence[Sequence[Any]] = ()) -> None:
        super().__init__()
        self.host = without_adapters(model)
        self.mixers = mixers

    def forward(self, tokens: Tensor, cross: list[Tensor], past: list[Tensor], states: list[Tensor]) -> tuple[Any, ...]:
        """One pass.

        Args:
            tokens: ``(1, number)``; a single one where there is a past.
            cross: keys and values of the sound, as :class:`EncoderGraph` gives them.
            past: keys and values of the tokens before; empty before the first.
            states: of the mixers: convolution and scan of each.

        Returns:
            Logits ``(1, vocabulary)`` of the next token, then ``past`` and ``states`` with these tokens in them.
        """
        decoder = self.host.get_decoder()
        own, sound = DynamicCache(), DynamicCache()
        left = iter(states)
        for number in range(len(decoder.layers)):
            sound.update(cross[2 * number], cross[2 * number + 1], number)
            if past:
                own.update(past[2 * number], past[2 * number + 1], number)
                if keys := self.mixers[number]:
                    own.layers[number] = layer = CacheLayerWithMixers(own.layers[number])
                    for key in keys:
                        layer.mixers[key] = DecodedState(layer.get_seq_length(), MambaState(next(left), next(left)))
        cache = EncoderDecoderCache(own, sound)
        cache.is_updated = dict.fromkeys(range(len(decoder.layers)), True)
        hidden = decoder(
            input_ids=tokens,
            # The keys and values of the sound are in the cache.
            encoder_hidden_states=cross[0].new_zeros(1, 1, self.host.config.d_model),
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        ).last_hidden_state
        logits = self.host.proj_out(hidden[:, -1])
        new = [tensor for layer in own.layers for tensor in (layer.keys, layer.values)]
        after = [
            tensor
            for layer in own.layers
            for key, mixer in getattr(layer, "mixers", {}).items()
            for tensor in (mixer.state.conv, mixer.state.ssm)
        ]
        return logits, *new, *after


def mixers_of(model: Any, prefix: Sequence[int], cross: Sequence[Tensor]) -> list[list[Any]]:
    """Keys of the adapters' mixers in the cache of each layer of the decoder.

    Args:
        model: a Whisper, adapted or not.
        prefix: tokens with which every text begins.
        cross: keys and values of any sound.
    """
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    host = without_adapters(model)
    states = torch.zeros(1, cross[0].shape[2], host.config.d_model)
    host.get_decoder()(
        input_ids=torch.tensor([list(prefix)]), encoder_hidden_states=states, past_key_values=cache, use_cache=True
    )
    return [list(getattr(layer, "mixers", {})) for layer in cache.self_attention_cache.layers]


def export_whisper(model: Any, folder: Path, language: str | None, sampling_rate: int, window: int) -> dict[str, Any]:
    """Write a Whisper as three ONNX graphs; beside them, in JSON, how to run them.

    Args:
        model: a Whisper, adapted or not, in float32 on the CPU.
        folder: made where it is not there.
        language: code of the language that it writes; ``None`` of a model of one language.
        sampling_rate: of its recordings, in Hz.
        window: frames of a spectrogram.

    Returns:
        What the JSON file says.

    Raises:
        ConfigError: the extra ``export`` is not installed, the folder is not empty, or an adapter cannot be written as
            ONNX.
    """
    check_exporter()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already; expected a new or an empty folder: --output")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
        description = _write_graphs(model, Path(partial), language, sampling_rate, window)
        write_atomically(Path(partial) / DESCRIPTION, to_json(description))
        folder.mkdir(exist_ok=True)
        for file in Path(partial).iterdir():
            file.replace(folder / file.name)
    return description


def _write_graphs(model: Any, folder: Path, language: str | None, sampling_rate: int, window: int) -> dict[str, Any]:
    """Write the graphs; gives their description."""
    host = without_adapters(model).eval()
    prefix = prefix_ids(host, language)
    features = torch.zeros(1, host.config.num_mel_bins, window)
    features[:, :, : window // 2] = torch.randn(1, host.config.num_mel_bins, window // 2)
    layers = range(host.config.decoder_layers)
    cross_names = [f"cross.{layer}.{part}" for layer in layers for part in ("key", "value")]
    past_names = [f"past.{layer}.{part}" for layer in layers for part in ("key", "value")]
    with torch.no_grad(), plain_operations(doubling_scan), _one_row(), quiet_export():
        encoder = EncoderGraph(model).eval()
        cross = list(encoder(features))
        _write(encoder, (features,), folder / f"{ENCODER}.onnx", ["input_features"], cross_names)
        first = torch.tensor([prefix])
        mixers = mixers_of(model, prefix, cross)
        state_names = [
            f"state.{layer}.{number}.{part}"
            for layer, keys in enumerate(mixers)
            for number in range(len(keys))
            for part in ("convolution", "scan")
        ]
        decoder = DecoderGraph(model, mixers).eval()
        outputs = ["logits", *(f"new.{name}" for name in [*past_names, *state_names])]
        _, *carried = decoder(first, cross, [], [])
        past, states = carried[: len(past_names)], carried[len(past_names) :]
        _write(decoder, (first, cross, [], []), folder / f"{FIRST}.onnx", ["tokens", *cross_names], outputs)
        long = torch.export.Dim("tokens", min=2, max=host.config.max_target_positions - 1)
        dynamic = (None, [None] * len(cross), [{2: long}] * len(past), [None] * len(states))
        _write(
            decoder,
            (first[:, :1], cross, past, states),
            folder / f"{NEXT}.onnx",
            ["tokens", *cross_names, *past_names, *state_names],
            outputs,
            dynamic,
        )
    return _describe(host, language, sampling_rate, window, prefix, past_names, state_names)


@contextmanager
def _one_row() -> Iterator[None]:
    """Let adapters in the decoder take every token for one: a single row has no padding, which they would sort out."""
    kept = {name: getattr(sublayer, name) for name in ("compact", "spread")}
    setattr(sublayer, "compact", lambda tensor, valid: (tensor, None))  # noqa: B010  mypy forbids to assign it
    setattr(sublayer, "spread", lambda tensor, valid: tensor)  # noqa: B010
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(sublayer, name, function)


def _describe(
    host: Any,
    language: str | None,
    sampling_rate: int,
    window: int,
    prefix: Sequence[int],
    past_names: Sequence[str],
    state_names: Sequence[str],
) -> dict[str, Any]:
    config = host.generation_config
    return {
        "format": "onnx",
        "graphs": [f"{name}.onnx" for name in (ENCODER, FIRST, NEXT)],
        "language": language,
        "sampling_rate": sampling_rate,
        "input_features": [1, host.config.num_mel_bins, window],
        "prefix": list(prefix),
        "end": int(config.eos_token_id),
        "suppressed": sorted(config.suppress_tokens or ()),
        "suppressed_first": sorted(config.begin_suppress_tokens or ()),
        "most_tokens": host.config.max_target_positions,
        "carried": [*past_names, *state_names],
        "dtype": "float32",
        "how_to_run": [
            f"{ENCODER}: the spectrogram of the feature extractor in, cross.* out, which every later call is given",
            f"{FIRST}: tokens = prefix; logits of the first token out, and new.NAME of each name in carried",
            f"{NEXT}: tokens = the last one, (1, 1), and each new.NAME of the call before as NAME",
            "logits of suppressed tokens, and before the first token of suppressed_first, are never taken",
            "the text ends with end, or when prefix and text together have most_tokens",
        ],
    }


def _write(
    graph: nn.Module,
    inputs: tuple[Any, ...],
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic: tuple[Any, ...] | None = None,
) -> None:
    try:
        program = torch.onnx.export(
            graph,
            inputs,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=dynamic,
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise ConfigError(f"{path.name}: the model cannot be written as ONNX with its adapter ({reason})") from error
    assert program is not None
    program.save(str(path), external_data=sum(p.numel() for p in graph.parameters()) > _MOST_IN_ONE_FILE)


def doubling_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    initial_state: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """What a Mamba block asks of :func:`mambavox.ops.selective_scan`, in few operations on all frames.

    Each round joins every frame's step with that of the frame as far back as the steps reach: after the last one, of
    ``log2(time)``, they reach back to the beginning.
    """
    time = x.shape[1]
    if lengths is not None:
        valid = length_mask(lengths, time)[:, :, None]
        x = x.masked_fill(~valid, 0.0)
    if reverse:
        x, dt, B, C, z = (reverse_inside(tensor, lengths) for tensor in (x, dt, B, C, z))
    dt = F.softplus(dt + dt_bias)
    decay = torch.exp(dt[:, :, :, None] * A)
    state = (dt * x)[:, :, :, None] * B[:, :, None, :]
    if initial_state is not None:
        state = torch.cat([state[:, :1] + decay[:, :1] * initial_state[:, None], state[:, 1:]], dim=1)
    reach = 1
    while reach < time:
        state = torch.cat([state[:, :reach], state[:, reach:] + decay[:, reach:] * state[:, :-reach]], dim=1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], dim=1)
        reach *= 2
    y = (state @ C[:, :, :, None])[:, :, :, 0]
    y = (y + D * x) * F.silu(z)
    if reverse:
        y = reverse_inside(y, lengths)
    if lengths is not None:
        y = y.masked_fill(~valid, 0.0)
    return y, state[:, -1]


class OnnxWhisper:
    """An exported Whisper in onnxruntime, as its description says; an example for others.

    Args:
        folder: that ``export_whisper`` wrote.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        self.about: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        self._encoder, self._first, self._next = (
            onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
            for name in self.about["graphs"]
        )

    def encode(self, features: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Keys and values of a spectrogram ``(1, mel, frames)``."""
        names = [output.name for output in self._encoder.get_outputs()]
        return dict(zip(names, self._encoder.run(None, {"input_features": features}), strict=True))

    def logits(
        self, tokens: Sequence[int], cross: dict[str, Any], carried: dict[str, Any] | None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Logits of what follows some tokens, and what is to be carried to the next call."""
        session = self._first if carried is None else self._next
        logits, *new = session.run(None, {"tokens": np.array([tokens], np.int64), **cross, **(carried or {})})
        return logits[0], dict(zip(self.about["carried"], new, strict=True))

    def generate(self, features: NDArray[np.float32]) -> list[int]:
        """Tokens of the likeliest text, greedily, without its end."""
        about, cross = self.about, self.encode(features)
        logits, carried = self.logits(about["prefix"], cross, None)
        logits[about["suppressed_first"]] = -np.inf
        tokens: list[int] = []
        while True:
            logits[about["suppressed"]] = -np.inf
            tokens.append(int(logits.argmax()))
            if tokens[-1] == about["end"]:
                return tokens[:-1]
            if len(about["prefix"]) + len(tokens) >= about["most_tokens"]:
                return tokens
            logits, carried = self.logits(tokens[-1:], cross, carried)


def check_whisper(model: Any, folder: Path) -> float | None:
    """Largest difference of exported graphs from their model: keys and values of noise, and logits of some tokens.

    Args:
        model: that was exported.
        folder: of the graphs.

    Returns:
        The difference, in units of the largest number where that is above 1; none where onnxruntime is not installed.

    Raises:
        ConfigError: they differ by more than rounding.
    """
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return None
    graphs, host = OnnxWhisper(folder), without_adapters(model).eval()
    shape = graphs.about["input_features"]
    features = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    features[:, :, shape[2] * 2 // 3 :] = -1.0  # padding
    with torch.no_grad():
        expected = EncoderGraph(model)(torch.from_numpy(features))
        hidden = host.get_encoder()(torch.from_numpy(features)).last_hidden_state
        cross = graphs.encode(features)
        worst = max(_apart(found, other.numpy()) for found, other in zip(cross.values(), expected, strict=True))
        logits, carried = graphs.logits(graphs.about["prefix"], cross, None)
        tokens: list[int] = []
        for _ in range(min(8, graphs.about["most_tokens"] - len(graphs.about["prefix"]))):
            ids = torch.tensor([[*graphs.about["prefix"], *tokens]])
            whole = model(encoder_outputs=(hidden,), decoder_input_ids=ids, use_cache=False).logits[0, -1]
            worst = max(worst, _apart(logits, whole.numpy()))
            tokens.append(int(whole.argmax()))
            logits, carried = graphs.logits(tokens[-1:], cross, carried)
    if not worst <= _TOLERANCE:
        raise ConfigError(
            f"{folder}: its numbers differ from the model's by {worst:.1e}; expected rounding alone. Export it with "
            "another version of torch or onnxscript"
        )
    return worst


def _apart(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))
