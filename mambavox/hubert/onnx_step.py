"""The streaming step as an ONNX graph: one block of samples and the state in, logits and the new state out.

Elsewhere a stream may be cut anywhere; the graph takes blocks of one length, so that nothing in it depends on data.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mambavox.errors import ConfigError
from mambavox.files import replacing, to_json, write_atomically
from mambavox.hubert import plain_ops
from mambavox.hubert.heads import MambaHubertForCTC
from mambavox.hubert.streaming import AttentionState, MambaHubertState
from mambavox.nn import block, mamba
from mambavox.nn.streaming import StreamStep

BLOCK_SECONDS = 0.32
"""Length of a block where none is chosen."""

_OPSET = 18


class StreamingStep(nn.Module):
    """What ``MambaHubertForCTC.stream`` does with a block that finishes a fixed number of frames.

    Args:
        model: causal, adapted or not.
        frames: of a block.

    Attributes:
        block: samples of a block.
        context: samples before a block that its first frame sees; part of the state.

    Raises:
        ConfigError: no frame, or a model that is not causal or whose state grows.
        HostError: an adapter on the model cannot be streamed.
    """

    def __init__(self, model: MambaHubertForCTC, frames: int) -> None:
        super().__init__()
        if frames < 1:
            raise ConfigError(f"a block of {frames} frames; expected at least 1")
        fresh = model.init_streaming_state(1)
        if any(isinstance(part, AttentionState) for part in fresh.states()):
            raise ConfigError(
                "causal attention keeps every frame, so that its state grows with the stream; expected a model whose "
                "layers are all Mamba or Mamba-2"
            )
        self.model = model.eval()
        self.frames = frames
        self.block = frames * model.config.inputs_to_logits_ratio
        self.context = model.config.receptive_field - model.config.inputs_to_logits_ratio
        self._fresh: MambaHubertState = replace(fresh, waveform=fresh.waveform[:, : self.context])

    def initial_state(self) -> dict[str, Tensor]:
        """State before the first block by name: zeros, as behind ``context`` samples of silence."""
        return self._fresh.tensors()

    def forward(self, samples: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """One block.

        Args:
            samples: ``(1, block)``.
            state: its tensors, in the order of :meth:`initial_state`.

        Returns:
            Logits ``(1, frames, vocab_size)``, and the tensors of the new state.
        """
        base, before = self.model.mamba_hubert, self._fresh.with_tensors(state)
        heard = torch.cat([before.waveform, samples], dim=1)
        step = StreamStep(self.frames, [self.frames], [self.frames], samples.device)
        projected = base.feature_projection(base.feature_extractor.stream(heard))
        hidden_states, after = base.encoder.stream(projected, before, step)
        after = replace(after, waveform=heard[:, self.block :].clone())
        return self.model.lm_head(hidden_states), *after.tensors().values()


def export_step(
    model: MambaHubertForCTC,
    path: Path,
    seconds: float = BLOCK_SECONDS,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the streaming step of a model as ONNX, and beside it a JSON file that says how to run it.

    Args:
        model: causal, in float32 on the CPU.
        path: of the graph; the description gets the ending ``.json``.
        seconds: length of a block, which is rounded to frames.
        about: what else the description is to hold.

    Returns:
        The description.

    Raises:
        ConfigError: the extra ``export`` is not installed, or see :class:`StreamingStep`.
        HostError: see :class:`StreamingStep`.
    """
    check_exporter()
    config = model.config
    step = StreamingStep(model, round(seconds * config.frame_rate)).eval()
    state = step.initial_state()
    inputs = {"samples": torch.zeros(1, step.block), **state}
    outputs = ["logits", *(f"new.{name}" for name in state)]
    with torch.no_grad(), plain_operations(_scan), quiet_export(), parametrize.cached():
        # What is in the cache is a constant of the graph, and not made anew for every block.
        _ = model.mamba_hubert.encoder.pos_conv_embed.conv.weight
        program = torch.onnx.export(
            step,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    description = {
        "format": "onnx",
        "graph": path.name,
        "sampling_rate": config.sampling_rate,
        "block_samples": step.block,
        "block_frames": step.frames,
        "frame_seconds": 1 / config.frame_rate,
        "algorithmic_latency_seconds": (step.block + step.context) / config.sampling_rate,
        "inputs": {"samples": [1, step.block], **shapes},
        "outputs": {"logits": [1, step.frames, config.vocab_size], **{f"new.{name}": shapes[name] for name in state}},
        "dtype": "float32",
        "how_to_run": [
            "begin with a state of zeros: every input but samples, in its shape",
            f"give {step.block} new samples a call (mono, full scale 1, {config.sampling_rate} Hz) as samples",
            f"logits are of the {step.frames} frames that the block finishes; log_softmax them, then decode (CTC)",
            "give each output new.NAME as the input NAME of the next call",
            f"frame 0 begins {step.context} samples before the stream, in silence; to have it begin with the stream, "
            f"give the first {step.context} samples as waveform in the first state, and blocks from there on",
            "fill up the last block with zeros, and leave out the frames that begin behind the last sample",
        ],
        **(about or {}),
    }
    with replacing(path) as partial:
        program.save(str(partial), external_data=False)
        write_atomically(path.with_suffix(".json"), to_json(description))
    return description


def check_exporter() -> None:
    """Make sure that graphs can be made.

    Raises:
        ConfigError: the extra ``export`` is not installed.
    """
    try:
        import onnxscript  # noqa: F401  what torch exports with
    except ImportError as error:
        raise ConfigError("the export to ONNX needs onnx and onnxscript: pip install 'mambavox[export]'") from error


@contextmanager
def plain_operations(scan: Callable[..., tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Let Mamba blocks do without kernels, which are no part of ONNX.

    Args:
        scan: takes the place of :func:`mambavox.ops.selective_scan`.
    """
    plain = ((mamba, "selective_scan", scan), (block, "causal_conv1d", plain_ops.causal_conv1d))
    kernels = [getattr(module, name) for module, name, _ in plain]
    for module, name, operation in plain:
        setattr(module, name, operation)
    try:
        yield
    finally:
        for (module, name, _), kernel in zip(plain, kernels, strict=True):
            setattr(module, name, kernel)


@contextmanager
def quiet_export() -> Iterator[None]:
    """Keep back what torch says of packages that the graph does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def _scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
    initial_state: Tensor,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """What a Mamba block asks of :func:`mambavox.ops.selective_scan`: of a few frames, with little one by one."""
    dt = F.softplus(dt + dt_bias)
    decays = torch.exp(dt[:, :, :, None] * A).unbind(1)
    added = ((dt * x)[:, :, :, None] * B[:, :, None, :]).unbind(1)
    state, states = initial_state, []
    for decay, more in zip(decays, added, strict=True):
        state = decay * state + more
        states.append(state)
    y = (torch.stack(states, dim=1) @ C[:, :, :, None])[:, :, :, 0]
    return (y + D * x) * F.silu(z), state
