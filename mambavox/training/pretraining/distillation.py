"""Learning from a teacher: the loss on its layers, what a step hears, figures, and the trainer of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from mambavox.hubert import MambaHubertConfig, MambaHubertModel, MambaHubertPreTrainedModel
from mambavox.training.pretraining.figures import Figures, Panel
from mambavox.training.pretraining.objective import PretrainTrainer
from mambavox.training.pretraining.teacher import Teacher


@dataclass
class DistillationOutput(ModelOutput):
    """Output of :class:`DistillationModel`.

    Attributes:
        loss: to be minimised.
        distillation_loss: mean of this batch's frames.
        distances: ``(layers,)`` mean absolute difference between what is predicted and the teacher's.
        cosines: ``(layers,)`` mean cosine between them.
        squared_errors: ``(layers,)`` mean squared difference, summed over the width.
        target_squares: ``(layers,)`` mean square of the teacher's, summed over the width.
        target_means: ``(layers, dim)`` the teacher's mean frame.
    """

    loss: Tensor | None = None
    distillation_loss: Tensor | None = None
    distances: Tensor | None = None
    cosines: Tensor | None = None
    squared_errors: Tensor | None = None
    target_squares: Tensor | None = None
    target_means: Tensor | None = None


class DistillationModel(MambaHubertPreTrainedModel):
    """A student, and for each layer of the teacher a head that predicts it from a layer of the student.

    A head is two linear maps with a GELU between them. Heads belong to the training alone.

    Args:
        config: of the student.
        layers: of the student, one for each of the teacher's; 0 is the input of the first.
        dim: width of the teacher.

    Source:
        DistilHuBERT (arXiv 2110.01900) and its code: L1 plus the negative log-sigmoid of the cosine, both averaged over
        frames and layers, without a penalty on features. There all heads read the student's last layer.
    """

    # Tells transformers' Trainer to pass num_items_in_batch.
    accepts_loss_kwargs = True

    def __init__(self, config: MambaHubertConfig, layers: Sequence[int], dim: int) -> None:
        super().__init__(config)
        self.mamba_hubert = MambaHubertModel(config)
        # Nothing is hidden.
        self.mamba_hubert.masked_spec_embed.requires_grad_(False)
        self.layers = list(layers)
        width = config.hidden_size
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, dim)) for _ in layers
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        targets: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> DistillationOutput:
        """Predict the teacher's layers.

        Args:
            input_values: ``(batch, samples)`` waveforms.
            targets: ``(layers, batch, time, dim)`` the teacher's.
            labels: ``(batch, time)`` -100 at padding, which does not count.
            attention_mask: ``(batch, samples)`` 1 at samples and 0 at padding, which is behind them.
            num_items_in_batch: frames of the whole step, over all its batches and processes, by which the loss is
                divided; those of this batch where not given.

        Returns:
            The loss and what it is made of.
        """
        outputs = self.mamba_hubert(
            input_values, attention_mask=attention_mask, output_hidden_states=True, return_dict=True
        )
        # The last layer's with the norm that a pre-norm model has behind it.
        states = [*outputs.hidden_states[:-1], outputs.last_hidden_state]
        counted = labels != -100
        predictions = torch.stack([head(states[layer]) for head, layer in zip(self.heads, self.layers, strict=True)])
        with torch.autocast(predictions.device.type, enabled=False):
            predictions = predictions.to(torch.promote_types(predictions.dtype, torch.float32))
            differences = predictions - targets
            distances = differences.abs().mean(dim=-1)
            cosines = F.cosine_similarity(predictions, targets, dim=-1)
            distillation_loss = _mean((distances - F.logsigmoid(cosines)).mean(dim=0), counted)
        loss = distillation_loss
        if num_items_in_batch is not None:
            loss = distillation_loss * counted.sum() / num_items_in_batch
        return DistillationOutput(
            loss=loss,
            distillation_loss=distillation_loss,
            distances=_mean(distances.detach(), counted),
            cosines=_mean(cosines.detach(), counted),
            squared_errors=_mean(differences.detach().square().sum(dim=-1), counted),
            target_squares=_mean(targets.square().sum(dim=-1), counted),
            target_means=_mean(targets.movedim(-1, 1), counted),
        )


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Over the frames that count, of ``(..., batch, time)``."""
    return values.masked_fill(~counted, 0.0).sum(dim=(-2, -1)) / counted.sum().clamp(min=1)


def collate_waveforms(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Waveforms of some crops; with ``attention_mask`` only where there is padding.

    ``labels`` ``(batch, time)`` are 0 at frames and -100 at padding: ``Trainer`` counts them.

    Args:
        items: of :class:`~mambavox.training.pretraining.data.WaveformCrops`.
    """
    lengths = torch.tensor([len(item["waveform"]) for item in items])
    times = torch.tensor([item["time"] for item in items])
    longest, frames = int(lengths.max()), torch.arange(int(times.max()))
    batch = {
        "input_values": torch.zeros(len(items), longest),
        "labels": torch.where(frames < times[:, None], 0, -100),
    }
    for row, item in enumerate(items):
        batch["input_values"][row, : lengths[row]] = torch.from_numpy(item["waveform"])
    if int(lengths.min()) < longest:
        batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    return batch


class DistillationFigures(Figures):
    """Loss, and of each of the teacher's layers the distance, the cosine and the share of variance explained.

    Frames of one layer point in much the same direction, so that their mean has a high cosine to all of them; it
    explains no variance.

    Args:
        layers: of the teacher.
        dim: their width.
        device: where batches are.
        sampling_rate: Hz.
    """

    def __init__(self, layers: Sequence[int], dim: int, device: torch.device, sampling_rate: int) -> None:
        super().__init__(2 + len(layers) * (4 + dim), device, sampling_rate)
        self.layers = list(layers)
        self.panels = (
            Panel("loss", ("distillation_loss",), "L1 and log-sigmoid of cosine"),
            Panel("cosine to the teacher's layers", tuple(f"cosine_{layer}" for layer in layers), "cosine"),
            Panel("the teacher's variance explained", tuple(f"explained_{layer}" for layer in layers), "share"),
        )

    @torch.no_grad()
    def add(self, output: DistillationOutput, labels: Tensor, samples: int) -> None:
        """Count a batch's frames."""
        items = (labels != -100).sum().double()
        means = [
            output.distillation_loss,
            output.distances,
            output.cosines,
            output.squared_errors,
            output.target_squares,
            output.target_means,
        ]
        flat = torch.cat(
            [torch.ones_like(items)[None], *(mean.double().flatten() for mean in means if mean is not None)]
        )
        self._sums += flat * items
        self._samples += samples

    def means(self, sums: Tensor) -> dict[str, float]:
        """``distillation_loss``, and of each layer ``distance_4``, ``cosine_4``, ``explained_4``."""
        items, count = sums[0].clamp(min=1.0), len(self.layers)
        loss, *by_layer = (sums[1:] / items).split([1, count, count, count, count, sums.numel() - 2 - 4 * count])
        distances, cosines, errors, squares, centers = by_layer
        variances = squares - centers.view(count, -1).square().sum(dim=-1)
        explained = 1 - errors / variances.clamp(min=1e-12)
        named = {"distance": distances, "cosine": cosines, "explained": explained}
        return {
            "distillation_loss": float(loss),
            **{
                f"{name}_{layer}": value
                for name, values in named.items()
                for layer, value in zip(self.layers, values.tolist(), strict=True)
            },
        }

    @staticmethod
    def training_line(logs: Mapping[str, float]) -> str:
        """Cosine to each layer, and the share of its variance."""
        return _by_layer(logs)

    @staticmethod
    def valid_line(figures: Mapping[str, float]) -> str:
        """Loss, cosine to each layer, and the share of its variance."""
        return f"loss {figures['distillation_loss']:.3f}, {_by_layer(figures)}"


def _by_layer(figures: Mapping[str, float]) -> str:
    layers = [name.rpartition("_")[2] for name in figures if name.startswith("cosine_")]
    cosines = "/".join(f"{figures[f'cosine_{layer}']:.3f}" for layer in layers)
    explained = "/".join(f"{100 * figures[f'explained_{layer}']:.0f}" for layer in layers)
    return f"cosine {cosines} and {explained} % of the variance of the teacher's layers {'/'.join(layers)}"


class DistillationTrainer(PretrainTrainer):
    """The trainer of a student: a teacher is asked for each batch, on the device, without gradients.

    Args:
        model: student and heads.
        teacher: what it learns from; no part of the model, so that no checkpoint holds it.
        arguments: the others are those of :class:`PretrainTrainer`.
        options: likewise.
    """

    model: DistillationModel
    collate = staticmethod(collate_waveforms)

    def __init__(self, model: DistillationModel, teacher: Teacher, *arguments: Any, **options: Any) -> None:
        self.teacher = teacher
        super().__init__(model, *arguments, **options)

    def new_figures(self) -> DistillationFigures:
        """Figures of no batch yet."""
        rate = self.model_config.sampling_rate
        return DistillationFigures(list(self.teacher.layers), self.teacher.dim, self.args.device, rate)

    @property
    def trained(self) -> MambaHubertModel:
        """What is kept of the run: the student without heads."""
        return self.accelerator.unwrap_model(self.model).mamba_hubert

    def weights(self) -> dict[str, Tensor]:
        """The tensors of the student without heads, whole, in the first process; to be called in all."""
        prefix = "mamba_hubert."
        return {
            name.removeprefix(prefix): tensor for name, tensor in super().weights().items() if name.startswith(prefix)
        }

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch on the device, with what the teacher makes of it as ``targets``."""
        lengths = inputs["attention_mask"].sum(dim=1).tolist() if "attention_mask" in inputs else None
        rows = inputs["input_values"].numpy()
        waveforms = rows if lengths is None else [row[:length] for row, length in zip(rows, lengths, strict=True)]
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            prepared["targets"] = self.teacher(waveforms, inputs["labels"].shape[1])
        return prepared
