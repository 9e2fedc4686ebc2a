"""Our scan and convolution in the Mamba models of transformers."""

from types import MethodType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache
from transformers.integrations.accelerate import force_accelerate_hooks
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer

from mambavox.errors import ConfigError
from mambavox.ops import causal_conv1d, selective_scan

Model = TypeVar("Model", bound=nn.Module)


def _forward(
    self: Any,
    hidden_states: Tensor,
    cache: Cache | None = None,
    attention_mask: Tensor | None = None,
    cache_params: Cache | None = None,
) -> Tensor:
    """The mixer's forward pass, channels last.

    Args:
        self: a ``MambaMixer`` or ``FalconMambaMixer``.
        hidden_states: ``(batch, time, d_model)``.
        cache: the states of all layers, updated in place.
        attention_mask: ``(batch, time)``, zero at padding.
        cache_params: the cache, by the name that it has before transformers 5.24.

    Returns:
        ``(batch, time, d_model)``.
    """
    time = hidden_states.shape[1]
    initial_state = None
    cache = cache_params if cache is None else cache
    if cache is not None and cache.has_previous_state(self.layer_idx):
        initial_state = cache.layers[self.layer_idx].recurrent_states[0]

    x, z = self.in_proj(_without_padding(hidden_states, attention_mask)).chunk(2, dim=-1)
    if cache is not None:
        # The cache is channels first. It returns what it holds with the new frames behind.
        x = cache.update_conv_state(
            x.transpose(1, 2), self.layer_idx, conv_kernel_size=self.conv_kernel_size
        ).transpose(1, 2)
    silu = self.activation in ("silu", "swish")
    x = causal_conv1d(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu" if silu else None)
    x = _without_padding(x[:, -time:] if silu else self.act(x[:, -time:]), attention_mask)

    dt, B, C = self.x_proj(x).split([self.time_step_rank, self.ssm_state_size, self.ssm_state_size], dim=-1)
    if isinstance(self, FalconMambaMixer):
        dt, B, C = self.dt_layernorm(dt), self.b_layernorm(B), self.c_layernorm(C)
    # A quantised weight cannot be multiplied by directly; its layer can be called, but adds the bias.
    quantised = hasattr(self.config, "_is_quantized")
    dt = self.dt_proj(dt) if quantised else F.linear(dt, self.dt_proj.weight)
    y, final_state = selective_scan(
        x,
        dt,
        -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32))),
        B,
        C,
        D=self.D,
        z=z,
        dt_bias=None if quantised else self.dt_proj.bias,
        dt_softplus=True,
        initial_state=initial_state,
        return_final_state=True,
    )
    if cache is not None:
        cache.update_recurrent_state(final_state, self.layer_idx)
    return self.out_proj(y)


def _without_padding(frames: Tensor, attention_mask: Tensor | None) -> Tensor:
    return frames if attention_mask is None else (frames * attention_mask[:, :, None]).to(frames.dtype)


# These two layers' weights are used without calling the layers: accelerate would never fetch them where it offloads.
_offloadable_forward = force_accelerate_hooks(["conv1d", "dt_proj"])(_forward)


class ScanMambaMixer(MambaMixer):
    """``MambaMixer`` on our scan and convolution; made by :func:`speed_up`."""

    forward = _offloadable_forward


class ScanFalconMambaMixer(FalconMambaMixer):
    """``FalconMambaMixer`` on our scan and convolution; made by :func:`speed_up`."""

    forward = _offloadable_forward


_FAST: dict[type, type] = {MambaMixer: ScanMambaMixer, FalconMambaMixer: ScanFalconMambaMixer}


def speed_up(model: Model) -> Model:
    """Make a transformers Mamba or FalconMamba model use our scan and convolution.

    Training, prompts and cached generation, on any device; parameters, their names and files stay as they are. Only
    the model given changes, in place; a second call does nothing. A model that is to be compiled is sped up first.

    Outputs are those of transformers, with one exception: several tokens given after a cached prompt go on from the
    cached state, where transformers' own path starts the scan from zero.

    Args:
        model: ``MambaForCausalLM``, ``MambaModel``, ``FalconMambaForCausalLM``, ``FalconMambaModel`` or any module
            that holds one, such as a ``PeftModel``.

    Returns:
        The same model.

    Raises:
        ConfigError: the model holds no Mamba or FalconMamba mixer.
    """
    mixers = [module for module in model.modules() if type(module) in (*_FAST, *_FAST.values())]
    if not mixers:
        raise ConfigError(
            f"model is a {type(model).__name__} without a mixer that speed_up knows; expected transformers' Mamba or "
            "FalconMamba (MambaForCausalLM, MambaModel, FalconMambaForCausalLM, FalconMambaModel) or a model that "
            "holds one"
        )
    for mixer in mixers:
        plain = type(mixer)
        if plain not in _FAST:
            continue
        # A subclass in place of an attribute: the model can still be copied, pickled and replicated.
        mixer.__class__ = _FAST[plain]
        # accelerate keeps a bound forward on the instance, which would hide that of the class.
        for name in ("forward", "_old_forward"):
            if getattr(vars(mixer).get(name), "__func__", None) is plain.forward:
                setattr(mixer, name, MethodType(_offloadable_forward, mixer))
    return model
