"""Which trainable parameters weight decay acts on."""

from typing import Any

from torch import nn

from mambavox.adapters.weight_decay import no_weight_decay


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups for AdamW: decayed and not.

    Weight decay is off for ``A_log``, ``D``, scales, norms and biases. The paper's code differs: it decays every
    parameter. Over its longest schedule (Speech Commands: 50 000 steps, learning rate 5e-3, decay 0.1) that shrinks
    whatever gets little gradient by e^-12, so that state matrices and scales drift to zero, whatever the data say.

    Args:
        model: its parameters that require a gradient are taken.
        weight_decay: AdamW's.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[not no_weight_decay(name, parameter)].append(parameter)
    return [
        {"params": groups[decayed], "weight_decay": weight_decay if decayed else 0.0}
        for decayed in (True, False)
        if groups[decayed]
    ]
