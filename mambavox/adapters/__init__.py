"""Adapters for pre-trained audio models, as native PEFT methods.

Importing this package registers them with PEFT: ``peft.get_peft_model(model, MambAdapterConfig(...))``.
"""

from mambavox.adapters.bottleneck import BottleneckConfig
from mambavox.adapters.checks import check_reaches_output
from mambavox.adapters.config import AdapterConfig, TemporalAdapterConfig
from mambavox.adapters.conformer import ConformerAdapterConfig
from mambavox.adapters.convpass import ConvPassConfig
from mambavox.adapters.mambadapter import MambAdapterConfig
from mambavox.adapters.methods import METHODS, Method, ParameterCounts, apply_method, trainable_parameters
from mambavox.adapters.registration import register_method
from mambavox.adapters.tokens import TokenGrid
from mambavox.adapters.tuner import AdapterModel
from mambavox.adapters.weight_decay import no_weight_decay

for _config in (MambAdapterConfig, BottleneckConfig, ConformerAdapterConfig, ConvPassConfig):
    register_method(_config)

__all__ = [
    "METHODS",
    "AdapterConfig",
    "AdapterModel",
    "BottleneckConfig",
    "ConformerAdapterConfig",
    "ConvPassConfig",
    "MambAdapterConfig",
    "Method",
    "ParameterCounts",
    "TemporalAdapterConfig",
    "TokenGrid",
    "apply_method",
    "check_reaches_output",
    "no_weight_decay",
    "register_method",
    "trainable_parameters",
]
