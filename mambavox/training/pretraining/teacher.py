"""The model that a distillation learns from: its layers, its frames, its convolutions to begin with."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambavox.errors import ConfigError, HostError, RunError
from mambavox.files import write_atomically
from mambavox.hubert import MambaHubertConfig, MambaHubertModel
from mambavox.training.pretraining.config import PretrainConfig, layer_numbers
from mambavox.units.features import LayerFeatures

_FRONT_END = ("feature_extractor.", "feature_projection.")
_CONVOLUTIONS = ("conv_dim", "conv_kernel", "conv_stride")
_FIRST_BIAS = "feature_extractor.conv_layers.0.conv.bias"


class Teacher:
    """A speech model that is not trained, and which of its layers a student predicts.

    It hears each recording as its feature extractor says, normalised or not, and frames are matched by what lies at
    their centres.

    Args:
        config: the run.
        student: configuration of the student.
        device: where it runs.

    Attributes:
        name: as given.
        layers: layer of the teacher -> layer of the student that predicts it.
        dim: width of its layers.
        features: what runs it.
        given: names of the tensors with which a student began.

    Raises:
        ConfigError: there is no such model or layer, or its frames or, where they are to be taken, its
            convolutions are not the student's.
        HostError: it is no speech model of a known kind, or its checkpoint lacks weights.
    """

    def __init__(self, config: PretrainConfig, student: MambaHubertConfig, device: torch.device) -> None:
        assert config.teacher is not None
        self.name = config.teacher
        try:
            self.features = LayerFeatures(config.teacher, 0, str(device))
        except (ConfigError, HostError) as error:
            raise type(error)(f"teacher={config.teacher}: {error}") from error
        self.features.model.requires_grad_(False)
        self.layers = distilled_layers(config, self.features.num_layers, student.num_hidden_layers)
        self.dim = self.features.dim
        self.given: list[str] = []
        self._student = student
        self._shift = self._check_frames()
        if config.teacher_front_end:
            self._check_convolutions()

    def _check_frames(self) -> int:
        """How many of the teacher's frames come before the student's first.

        Raises:
            ConfigError: its frames are not the student's.
        """
        theirs, ours = self.features, self._student
        if (theirs.sampling_rate, theirs.frame_rate) != (ours.sampling_rate, ours.frame_rate):
            raise ConfigError(
                f"teacher={self.name} takes {theirs.sampling_rate} Hz and gives {theirs.frame_rate:g} frames a second; "
                f"the student {ours.sampling_rate} Hz and {ours.frame_rate:g}; expected the same: choose another "
                "teacher, or strides of the student that multiply to its own, such as --conv-stride [5,2,2,2,2,2,2]"
            )
        center = ours.receptive_field / 2 / ours.sampling_rate
        shift = round((center - theirs.first_center) * theirs.frame_rate)
        hop, first = ours.inputs_to_logits_ratio, ours.receptive_field
        missing = [
            samples
            for samples in range(first, first + 2 * hop)
            if theirs.num_frames(samples + self._padding) - shift < (samples - first) // hop + 1
        ]
        if shift < 0 or missing:
            raise ConfigError(
                f"teacher={self.name}: its first frame has its centre at {1000 * theirs.first_center:g} ms and the "
                f"student's at {1000 * center:g} ms, so that some of the student's frames have none of the teacher's; "
                "expected convolutions that see as much: choose another teacher, or its --conv-kernel and --conv-stride"
            )
        return shift

    def _check_convolutions(self) -> None:
        for name in _CONVOLUTIONS:
            theirs, ours = list(getattr(self.features.model.config, name, [])), list(getattr(self._student, name))
            if theirs != ours:
                raise ConfigError(
                    f"teacher_front_end: {name} of {self.name} is {theirs}, of the student {ours}; expected the same: "
                    f"--{name.replace('_', '-')}, or leave out --teacher-front-end"
                )

    @property
    def _padding(self) -> int:
        """Samples of silence behind a recording: Whisper, which hears 30 s anyway, has frames there, too."""
        return self._student.inputs_to_logits_ratio if self.features.first_center == 0 else 0

    def __call__(self, waveforms: Sequence[NDArray[np.float32]], time: int) -> Tensor:
        """What the student is to predict.

        Args:
            waveforms: each ``(samples,)``.
            time: frames of the student's batch.

        Returns:
            ``(layers, batch, time, dim)``, zero beyond a recording's frames, on the device.
        """
        padded = [np.pad(waveform, (0, self._padding)) for waveform in waveforms] if self._padding else waveforms
        # transformers draws numbers for LayerDrop in evaluation, too; none of the student's business.
        with torch.random.fork_rng(devices=()):
            layers = self.features.padded_layers(padded, list(self.layers))
        return torch.stack([layers[layer][:, self._shift : self._shift + time] for layer in self.layers])

    def remember(self, folder: Path) -> None:
        """Write down which weights teach, or compare them with what is written.

        Args:
            folder: of the run's targets.

        Raises:
            RunError: the run was begun with another teacher of the same name.
        """
        path = folder / "teacher.json"
        known = {"teacher": self.name, "fingerprint": self.features.fingerprint}
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(known) + "\n")
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path}: is damaged ({error}); start anew with --overwrite") from error
        if before != known:
            raise RunError(
                f"teacher={self.name}: its weights are not those that the run was begun with ({path}); put them back, "
                "or start anew with --overwrite"
            )

    @torch.no_grad()
    def give_front_end(self, student: MambaHubertModel) -> None:
        """Give a student the convolutions, and what goes with them where it is of the same kind.

        Weights of the convolutions are taken in any case. Their biases are where both have them, but for the first
        layer's of a teacher that hears normalised waveforms: to what the student hears it would be far too large.
        Norms are where both normalise over the same; the projection and its norm where shapes agree.

        Args:
            student: to be trained.
        """
        other_norm = self.features.model.config.feat_extract_norm != student.config.feat_extract_norm
        tensors = self.features.model.state_dict()
        for name, tensor in student.state_dict().items():
            source = tensors.get(name)
            if not name.startswith(_FRONT_END) or source is None or source.shape != tensor.shape:
                continue
            if name.startswith(_FRONT_END[0]) and ".layer_norm." in name and other_norm:
                continue
            if name == _FIRST_BIAS and self.features.normalizes:
                continue
            tensor.copy_(source)
            self.given.append(name)


def distilled_layers(config: PretrainConfig, teacher_layers: int, student_layers: int) -> dict[int, int]:
    """Which layer of the student predicts which of the teacher's.

    Where nothing is configured, the teacher's are those at one third, two thirds and the end (4, 8 and 12 of 12, as in
    DistilHuBERT), and the student's those at the same depth, where the deepest of the teacher's has the student's last.

    Args:
        config: the run.
        teacher_layers: how many layers the teacher has.
        student_layers: how many the student has.

    Returns:
        Layer of the teacher -> layer of the student; 0 is the input of the first.

    Raises:
        ConfigError: there is no such layer, or the student's last predicts nothing.
    """
    asked = layer_numbers("teacher_layers", config.teacher_layers) or sorted(
        {max(round(teacher_layers * part / 3), 1) for part in (1, 2, 3)}
    )
    deepest = max(asked)
    if deepest > teacher_layers:
        raise ConfigError(
            f"teacher_layers={config.teacher_layers}: {config.teacher} has no layer {deepest}; expected 0 (the input "
            f"of the first) to {teacher_layers}"
        )
    predict = layer_numbers("student_layers", config.student_layers) or [
        round(student_layers * layer / deepest) if layer < deepest else student_layers for layer in asked
    ]
    if len(predict) == 1:
        predict *= len(asked)
    if len(predict) != len(asked):
        raise ConfigError(
            f"student_layers={config.student_layers} for teacher_layers={','.join(map(str, asked))}; expected one "
            "layer of the student for each of the teacher's, or one for all"
        )
    if max(predict) > student_layers:
        raise ConfigError(
            f"student_layers={config.student_layers}: the student has no layer {max(predict)}; expected 0 (the input "
            f"of the first) to {student_layers}"
        )
    if max(predict) < student_layers:
        raise ConfigError(
            f"student_layers={config.student_layers}: what lies behind layer {max(predict)} would learn nothing; "
            f"expected the student's last, {student_layers}, among them, or a smaller student: --num-hidden-layers "
            f"{max(predict)}"
        )
    return dict(zip(asked, predict, strict=True))
