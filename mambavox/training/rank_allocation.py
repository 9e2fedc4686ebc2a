"""AdaLoRA's part in a training run: its schedule, its budget after every update, and its penalty."""

from pathlib import Path
from typing import Any, cast

import torch
from peft import AdaLoraConfig, AdaLoraModel, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from mambavox.errors import ConfigError

_FILE = "rank_allocation.safetensors"
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class RankAllocation(TrainerCallback):
    """Moves AdaLoRA's ranks while a ``Trainer`` trains, and remembers in checkpoints what it has seen.

    The configuration's schedule (``total_step``, ``tinit``, ``tfinal``, ``deltaT``) is stretched to the updates that
    the run makes, so that its proportions hold however long the run is.

    PEFT cuts pruned ranks out of what it saves and cannot load that into the model in training; here they stay, at
    zero, so that checkpoints can be resumed and the best one loaded.

    Args:
        model: a PEFT model whose method is AdaLoRA.

    Raises:
        ConfigError: there are no ranks to take away.

    Source:
        Zhang et al. 2023, AdaLoRA (arXiv 2303.10512), algorithm 1 and equation 4.
    """

    def __init__(self, model: PeftModel) -> None:
        self.tuner = cast(AdaLoraModel, model.base_model)
        self.config = cast(AdaLoraConfig, self.tuner.peft_config[self.tuner.trainable_adapter_name])
        if self.config.init_r <= self.config.target_r:
            raise ConfigError(
                f"init_r is {self.config.init_r} and target_r is {self.config.target_r}; expected init_r above target_r"
            )
        self.kept: dict[str, list[bool]] | None = None

    @staticmethod
    def of(model: nn.Module) -> "RankAllocation | None":
        """The callback for a model, or ``None`` where its method is another."""
        if isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraModel):
            return RankAllocation(model)
        return None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Stretch the schedule to the run."""
        config, stretch = self.config, state.max_steps / self.config.total_step
        config.total_step = state.max_steps
        config.tinit, config.tfinal = int(config.tinit * stretch), int(config.tfinal * stretch)
        config.deltaT = max(1, round(config.deltaT * stretch))

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Score the ranks by this update's gradients and keep to the budget."""
        self.config.rank_pattern = self.kept
        self.tuner.update_and_allocate(state.global_step)
        self.kept, self.config.rank_pattern = self.config.rank_pattern, None

    def penalty(self) -> Tensor:
        """What is added to the loss: how far the singular vectors are from orthogonal, a scalar."""
        name = self.tuner.trainable_adapter_name
        distances = []
        for key, matrix in self.tuner.model.named_parameters():
            if key.endswith((f"lora_A.{name}", f"lora_B.{name}")):
                gram = matrix @ matrix.T if "lora_A" in key else matrix.T @ matrix
                distances.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram)).to(gram)))
        return self.config.orth_reg_weight * torch.stack(distances).mean()

    def save(self, folder: Path) -> None:
        """Write the scores and the ranks kept into a checkpoint."""
        tensors = {
            f"{average}/{name}": tensor.contiguous()
            for average in _AVERAGES
            for name, tensor in getattr(self.tuner.rankallocator, average).items()
        }
        kept = {f"kept/{name}": torch.tensor(flags) for name, flags in (self.kept or {}).items()}
        save_file({**tensors, **kept}, folder / _FILE)

    def load(self, folder: Path) -> None:
        """Continue from what a checkpoint holds."""
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in (*_AVERAGES, "kept")}
        devices = {name: p.device for name, p in self.tuner.model.named_parameters()}
        for key, tensor in load_file(folder / _FILE).items():
            part, name = key.split("/", 1)
            parts[part][name] = tensor.to(devices[name])
        self.kept = {name: flags.tolist() for name, flags in parts.pop("kept").items()} or None
        for average, tensors in parts.items():
            setattr(self.tuner.rankallocator, average, tensors)
