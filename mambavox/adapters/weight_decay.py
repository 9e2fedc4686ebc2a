"""Which tensors weight decay must leave alone."""

from torch import Tensor


def no_weight_decay(name: str, parameter: Tensor) -> bool:
    """Whether a tensor is to be trained without weight decay.

    True for everything of one dimension (biases, norms, an adapter's scale, Mamba's ``D``) and for Mamba's
    ``A_log``. The MambAdapter paper's code decays every tensor; over a long run that pulls ``A_log``, ``D`` and the
    scale towards zero where gradients are small, so this project does not follow it there.

    Args:
        name: the parameter's name in the model.
        parameter: the parameter.
    """
    return parameter.dim() <= 1 or "A_log" in name.split(".")
