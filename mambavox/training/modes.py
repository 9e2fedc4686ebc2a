"""Which modules are in training mode while adapters are trained."""

from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def set_training_mode(model: nn.Module) -> None:
    """Put what is trained into training mode and keep the frozen backbone in evaluation mode.

    So the backbone's own dropout and layer drop stay off, as in the papers' code. Without adapters (full fine-tuning)
    the whole model is trained, and is in training mode as usual.

    Args:
        model: what ``apply_method`` returned.
    """
    if not isinstance(model, PeftModel):
        model.train()
        return
    model.eval()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            for name, child in module.named_children():
                if name not in ("base_layer", "original_module"):
                    child.train()


def compute_layers_again(model: Any) -> None:
    """Put frozen layers that are to be computed again in the backward pass into training mode, without their dropout.

    transformers computes layers again in training mode only. In full fine-tuning they are in that mode anyway.

    Args:
        model: what ``apply_method`` returned.
    """
    if not isinstance(model, PeftModel):
        return
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
            for name in ("dropout", "activation_dropout", "hidden_dropout", "attention_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
