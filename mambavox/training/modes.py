"""Which modules are in training mode while adapters are trained."""

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


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
