"""Adapters for pre-trained audio models, as native PEFT methods.

Importing this package registers them with PEFT: ``peft.get_peft_model(model, MambAdapterConfig(...))``.
"""

from mambavox.adapters.checks import check_reaches_output
from mambavox.adapters.config import AdapterConfig, BottleneckConfig, MambAdapterConfig
from mambavox.adapters.methods import METHODS, Method, ParameterCounts, apply_method, trainable_parameters
from mambavox.adapters.registration import register_method
from mambavox.adapters.tuner import AdapterModel, BottleneckModel, MambAdapterModel
from mambavox.adapters.weight_decay import no_weight_decay

register_method(MambAdapterConfig, MambAdapterModel)
register_method(BottleneckConfig, BottleneckModel)

__all__ = [
    "METHODS",
    "AdapterConfig",
    "AdapterModel",
    "BottleneckConfig",
    "BottleneckModel",
    "MambAdapterConfig",
    "MambAdapterModel",
    "Method",
    "ParameterCounts",
    "apply_method",
    "check_reaches_output",
    "no_weight_decay",
    "register_method",
    "trainable_parameters",
]
