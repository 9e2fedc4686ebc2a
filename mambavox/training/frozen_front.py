"""What lies before the first trained layer is run once for each clip; training then goes on from there."""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mambavox.adapters.hosts import find_stacks, head_modules, window_lengths
from mambavox.errors import ConfigError
from mambavox.lengths import length_mask
from mambavox.training.features import Collator, FeatureDataset
from mambavox.training.front_end import FrontEnd

FROZEN = "frozen_hidden_states"
"""Keyword of the forward of a model with a front: what its first trained layer reads, ``(batch, time, d_model)``."""


class _Reached(Exception):
    """Ends a forward pass where the front ends."""


class FrozenFront:
    """The layers of an adapted host before the first one in which something is trained, and whatever lies below them.

    After this the model also takes the keyword ``FROZEN``: with it the front is skipped, and the first trained layer
    (where only the head is trained: whatever follows the last layer) reads those hidden states.

    Args:
        model: what ``apply_method`` returned.

    Attributes:
        first_layer: index of the first layer that is run in training; the number of layers where none is.
        windowed: whether the host's inputs have one length, short clips padded.

    Raises:
        ConfigError: the model has no frozen front: everything is trained, or something below the layers, or the head
            reads all layers.
        HostError: it is no known host.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, PeftModel):
            raise ConfigError("cache_features: full fine-tuning trains every layer; leave it out (--no-cache-features)")
        self.model = model
        self.host: Any = model.get_base_model()
        (stack,) = find_stacks(self.host)
        self.holder: Any = self.host.get_submodule(stack.holder)
        self.windowed = stack.windowed
        if getattr(self.host.config, "use_weighted_layer_sum", False):
            raise ConfigError(
                "cache_features: the head reads the sum of all layers; leave it out (--no-cache-features)"
            )
        self.first_layer = _first_trained_layer(
            [name for name, parameter in self.host.named_parameters() if parameter.requires_grad],
            stack.holder,
            stack.num_layers,
            after=(*head_modules(self.host), stack.final_norm),
        )
        if self.host.config.model_type == "wavlm" and self.first_layer < stack.num_layers:
            self.first_layer = 0  # the first layer makes the relative positions of all
        self._given: Tensor | None = None
        self._taken: Tensor | None = None
        self._taking = False
        self._make_skippable()
        model.register_forward_pre_hook(self._accept, with_kwargs=True)

    @torch.no_grad()
    def hidden_states(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Run the front.

        Args:
            batch: keyword arguments of the model's forward, on its device.

        Returns:
            For each row what the first trained layer reads of it, ``(time, d_model)``, without padding.
        """
        self._taking = True
        try:
            self.model(**batch)
        except _Reached:
            pass
        finally:
            self._taking = False
        assert self._taken is not None
        rows, self._taken = self._taken, None
        mask = batch.get("attention_mask")
        if mask is None:
            return list(rows)
        lengths = self.host._get_feat_extract_output_lengths(mask.sum(dim=-1)).tolist()
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]

    def _accept(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._given = kwargs.pop(FROZEN, None)
        return args, kwargs

    def _make_skippable(self) -> None:
        """Give the modules of the front a second way: to do next to nothing while hidden states are given."""
        layers = self.holder.layers
        for index in range(self.first_layer - 1):
            self._replace(layers[index], self._pass_on)
        if self.first_layer:
            self._replace(layers[self.first_layer - 1], self._pass_on, taken_after=True)
        else:
            first = layers[0].forward

            def go_on(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
                return first(self._given, *args, **kwargs)

            self._replace(layers[0], go_on, taken_before=True)
        for module, stand_in in self._below_the_layers():
            self._replace(module, stand_in)

    def _below_the_layers(self) -> Sequence[tuple[nn.Module, Callable[..., Any]]]:
        """Whatever is costly below the layers, and what it gives when its result does not matter."""
        kind = self.host.config.model_type
        if kind == "audio-spectrogram-transformer":
            return [(self.holder.embeddings, lambda inputs: self._given)]
        if kind == "whisper":
            return [
                (self.holder.conv1, lambda inputs: inputs[:, :1]),
                (self.holder.conv2, lambda inputs: self._blank().mT),
            ]
        base = self.host.base_model
        # The encoder writes into what it gets.
        return [
            (base.feature_extractor, lambda inputs: self._blank().mT),
            (
                base.feature_projection,
                lambda features: self._blank().clone() if kind == "hubert" else (self._blank().clone(), features),
            ),
            (self.holder.pos_conv_embed, torch.zeros_like),
        ]

    def _blank(self) -> Tensor:
        """Zeros of the given hidden states' shape, in the place of one."""
        assert self._given is not None
        return self._given.new_zeros(()).expand(self._given.shape)

    def _pass_on(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (self._given, None) if self.host.config.model_type == "wavlm" else self._given

    def _replace(
        self,
        module: nn.Module,
        stand_in: Callable[..., Any],
        *,
        taken_before: bool = False,
        taken_after: bool = False,
    ) -> None:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._given is not None:
                return stand_in(*args, **kwargs)
            if self._taking and taken_before:
                self._taken = args[0]
                raise _Reached
            output = original(*args, **kwargs)
            if self._taking and taken_after:
                self._taken = output[0] if isinstance(output, tuple) else output
                raise _Reached
            return output

        module.forward = forward


def _first_trained_layer(trained: Sequence[str], holder: str, num_layers: int, after: Sequence[str]) -> int:
    """Index of the first layer that holds a trained tensor."""
    prefix = f"{holder}.layers." if holder else "layers."
    first = num_layers
    for name in trained:
        if name.startswith(prefix):
            first = min(first, int(re.match(r"\d+", name.removeprefix(prefix))[0]))  # type: ignore[index]
        elif not any(name.startswith(f"{part}.") for part in after):
            raise ConfigError(
                f"cache_features: {name} is trained, which lies below the layers, so that nothing is the same in every "
                "epoch; leave it out (--no-cache-features)"
            )
    return first


class CachedFeatures(Dataset[dict[str, Any]]):
    """What the first trained layer reads of each recording, in a file without a name.

    The file takes 4 bytes a number; the system keeps as much of it in memory as there is room for, and removes it with
    the process.

    Args:
        dataset: the recordings.
        front: of the model.
        batch_size: recordings at a time.
        folder: where the file lies.
        bf16: whether the model is trained in bfloat16.

    Attributes:
        dataset: as given.
        epoch: number of the pass over the data.
    """

    def __init__(
        self, dataset: FeatureDataset, front: FrozenFront, batch_size: int, folder: Path, *, bf16: bool = False
    ) -> None:
        self.dataset = dataset
        self.epoch = 0
        self._rows: list[tuple[int, int]] = []
        self._inputs: list[tuple[int, ...]] = []
        self._frames: list[int] = []
        # Written, not mapped while it grows: a full disk is to be an error, not the end of the process.
        with tempfile.TemporaryFile(dir=folder) as file, _evaluating(front.model), torch.random.fork_rng():
            for batch in DataLoader(dataset, batch_size, collate_fn=Collator(dataset.front_end)):
                self._add(batch, front, file, bf16)
            file.flush()
            self._numbers = np.memmap(file, dtype=np.float32, mode="r")
        self._starts = np.cumsum([0, *(frames * width for frames, width in self._rows)])
        dataset.forget_features()

    @property
    def lengths(self) -> list[float]:
        """Seconds of each recording that are heard."""
        return self.dataset.lengths

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return int(self._numbers.nbytes)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``hidden_states (time, d_model)`` of one recording, the ``shape`` of its features, and its ``target``.

        For Whisper also the ``frames`` of its window that hold sound.
        """
        hidden = self._numbers[self._starts[index] : self._starts[index + 1]].reshape(self._rows[index])
        item: dict[str, Any] = {"hidden_states": hidden, "shape": self._inputs[index]}
        if self._frames:
            item["frames"] = self._frames[index]
        if self.dataset.targets is not None:
            item["target"] = self.dataset.targets[index]
        return item

    def _add(self, batch: Mapping[str, Tensor], front: FrozenFront, file: IO[bytes], bf16: bool) -> None:
        device = next(front.model.parameters()).device
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            rows = front.hidden_states(inputs)
        for row in rows:
            self._rows.append((row.shape[0], row.shape[1]))
            file.write(row.float().cpu().contiguous().numpy().tobytes())
        if front.windowed:
            self._frames += window_lengths(batch[self.dataset.front_end.input_name]).tolist()
        if "attention_mask" in batch:
            self._inputs += [(samples,) for samples in batch["attention_mask"].sum(dim=-1).tolist()]
        else:
            self._inputs += [tuple(batch[self.dataset.front_end.input_name].shape[1:])] * len(rows)


class CachedCollator:
    """Makes a batch of the items of ``CachedFeatures``: the model's keyword arguments, and ``labels``.

    Args:
        front_end: of the recordings.
    """

    def __init__(self, front_end: FrontEnd) -> None:
        self.front_end = front_end

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Batch some items; of the features the model reads no more than the shape and where their padding begins."""
        hidden = [torch.from_numpy(np.array(item["hidden_states"])) for item in items]
        shapes = [item["shape"] for item in items]
        shape = (len(items), *shapes[0]) if self.front_end.is_spectrogram else (len(items), max(map(max, shapes)))
        batch = {FROZEN: nn.utils.rnn.pad_sequence(hidden, batch_first=True)}
        batch[self.front_end.input_name] = torch.zeros(()).expand(shape)
        if "frames" in items[0]:
            # One band is enough: what tells sound from padding is that a frame's bands differ.
            sound = length_mask(torch.tensor([item["frames"] for item in items]), shape[-1])
            batch[self.front_end.input_name] = nn.functional.pad(sound[:, None].float(), (0, 0, 0, shape[1] - 1))
        if self.front_end.pads_to_longest:
            samples = torch.tensor([samples for (samples,) in shapes])
            batch["attention_mask"] = length_mask(samples, shape[1]).int()
        if "target" in items[0]:
            batch["labels"] = torch.tensor([item["target"] for item in items])
        return batch


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
