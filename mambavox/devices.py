"""Where a model runs."""

import torch

from mambavox.errors import ConfigError


def find_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is asked for, before anything is loaded for it.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or a device of torch's; ``"auto"`` or ``None`` is a GPU if there is
            one.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device in (None, "auto"):
        return torch.device("cuda" if gpus else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device={device}: there is no such device; expected auto, cpu or cuda") from None
    if found.type == "cuda" and (found.index or 0) >= gpus:
        raise ConfigError(f"device={device}: torch finds {gpus or 'no'} CUDA GPUs; expected auto or cpu here")
    return found
