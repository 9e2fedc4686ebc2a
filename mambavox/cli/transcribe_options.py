"""What ``mambavox transcribe`` can be asked for: every flag once, with its help and its checks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

from mambavox import assets
from mambavox.asr.transcript import FORMATS, Format
from mambavox.cli.flags import Device

LongForm: TypeAlias = Literal["batched", "sequential"]
"""As ``mambavox.asr.whisper_long.LongForm``, which takes seconds to import."""

_SEARCH = "Search"
_WHISPER = "Whisper"
_FAILED = "Whisper: when a text has failed"
_LONG = "Long recordings and the microphone"
_RARE = "Rarely used"


def _complete_formats(incomplete: str) -> list[str]:
    """What the shell offers behind ``--format``, whose value lists several."""
    before, _, last = incomplete.rpartition(",")
    given = before.split(",") if before else []
    return [",".join([*given, form]) for form in FORMATS if form.startswith(last) and form not in given]


@dataclass(frozen=True, kw_only=True)
class TranscribeOptions:
    """What to transcribe, with which model, and what to do with the text. Each field is one flag.

    Raises:
        typer.BadParameter: a value is wrong, or two flags contradict each other.
    """

    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Recordings (wav, flac, ogg, mp3), folders (every recording below them is taken), or manifests that "
            "list recordings."
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            help="Run folder of `mambavox adapt --task ctc` or `--task whisper`, or a CTC model or Whisper of the "
            f"Hugging Face Hub (default: the embedded {assets.RECOGNISER}, English)."
        ),
    ] = None
    microphone: Annotated[
        bool, typer.Option("--microphone", help="Print words as they are spoken, until Ctrl-C (extra microphone).")
    ] = False
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write files into (default: the folder of each recording, if --format is given)."),
    ] = None
    format: Annotated[
        str | None,
        typer.Option(
            metavar=f"[{'|'.join(FORMATS)}],...",
            help="Files to write for each recording, separated by commas (default: txt, if --output is given).",
            autocompletion=_complete_formats,
        ),
    ] = None
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="Print text in lines of subtitles, each with its times.")
    ] = False
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON with the times and confidences of segments and words.")
    ] = False
    device: Annotated[Device, typer.Option(help="Where to run; auto takes a GPU if there is one.")] = "auto"

    language: Annotated[
        str | None,
        typer.Option(
            help="Code of the language, or auto (default: that of the only adapter; auto for a Whisper as it is).",
            rich_help_panel=_WHISPER,
        ),
    ] = None
    model_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder with run folders of `mambavox adapt --task whisper`, one for each language.",
            rich_help_panel=_WHISPER,
        ),
    ] = None
    batch_size: Annotated[
        int, typer.Option(min=1, help="Windows of all recordings at a time.", rich_help_panel=_WHISPER)
    ] = 16
    long_form: Annotated[
        LongForm | None,
        typer.Option(
            help="What is longer than the window: batched, in windows that end in pauses; or sequential, each window "
            "where the last sentence ended, as Whisper's authors do (default: batched).",
            rich_help_panel=_WHISPER,
        ),
    ] = None
    vad: Annotated[
        bool,
        typer.Option("--vad", help="Hear only where silero finds speech (extra vad).", rich_help_panel=_WHISPER),
    ] = False
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Text before each window, whose names, spelling and style are gone on with.", rich_help_panel=_WHISPER
        ),
    ] = None
    translate: Annotated[
        bool, typer.Option("--translate", help="Write in English what is said.", rich_help_panel=_WHISPER)
    ] = False
    trim_encoder: Annotated[
        bool | None,
        typer.Option(
            "--trim-encoder/--no-trim-encoder",
            help="Encode no more than the longest recording of a batch (default: as the run was trained).",
            rich_help_panel=_WHISPER,
        ),
    ] = None

    temperature: Annotated[
        str | None,
        typer.Option(
            help="Temperatures of the search, separated by commas: each but the first where the text before it has "
            "failed; 0 alone searches once (default: 0,0.2,0.4,0.6,0.8,1).",
            rich_help_panel=_FAILED,
        ),
    ] = None
    compression_ratio_threshold: Annotated[
        float | None,
        typer.Option(
            help="A text that shrinks by more repeats itself and has failed; inf: none has (default: 2.4).",
            rich_help_panel=_FAILED,
        ),
    ] = None
    logprob_threshold: Annotated[
        float | None,
        typer.Option(
            help="A text whose tokens have a lower mean log probability has failed; -inf: none has (default: -1).",
            rich_help_panel=_FAILED,
        ),
    ] = None
    no_speech_threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Nothing is written where 'no speech' is more probable and the text's log probability has failed; "
            "1: always something (default: 0.6).",
            rich_help_panel=_FAILED,
        ),
    ] = None

    beam_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Texts that the search keeps; 1 is greedy search (default: 1; 100 with --lm; a Whisper run's own).",
            rich_help_panel=_SEARCH,
        ),
    ] = None
    hot_words: Annotated[
        str, typer.Option(help="Words that are expected, separated by commas.", rich_help_panel=_SEARCH)
    ] = ""
    hot_word_weight: Annotated[
        float, typer.Option(help="Bonus of an expected word, in nats.", rich_help_panel=_SEARCH)
    ] = 5.0
    lm: Annotated[
        Path | None,
        typer.Option(help="N-gram model of words: .arpa or kenlm's binary (extra lm).", rich_help_panel=_SEARCH),
    ] = None
    lm_words: Annotated[
        Path | None,
        typer.Option(
            help="File of the words that it may write, one a line (default: those of the .arpa).",
            rich_help_panel=_SEARCH,
        ),
    ] = None
    lm_weight: Annotated[float, typer.Option(help="Weight of the language model.", rich_help_panel=_SEARCH)] = 2.0
    word_score: Annotated[
        float, typer.Option(help="Bonus of each word, with a language model.", rich_help_panel=_SEARCH)
    ] = 0.0

    whole_seconds: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Longest recording that a CTC model hears as a whole; longer ones are heard block by block.",
            rich_help_panel=_LONG,
        ),
    ] = 60.0
    pause_seconds: Annotated[
        float,
        typer.Option(help="A pause of this length, without a word, ends a line.", rich_help_panel=_LONG),
    ] = 0.8
    segment_seconds: Annotated[
        float,
        typer.Option(help="A line of this length ends behind its last word, without a pause.", rich_help_panel=_LONG),
    ] = 30.0
    device_name: Annotated[
        str | None,
        typer.Option(help="The microphone: its number or a part of its name.", rich_help_panel=_LONG),
    ] = None

    backbone: Annotated[
        str | None,
        typer.Option(
            help="Where the backbone under an adapter lies now (default: where it was).", rich_help_panel=_RARE
        ),
    ] = None

    def __post_init__(self) -> None:
        for form in self._given_formats():
            if form not in FORMATS:
                raise typer.BadParameter(f"--format {form}; expected {', '.join(FORMATS)}")
        if self.model is not None and self.model_dir is not None:
            raise typer.BadParameter("--model and --model-dir are both given; expected one of them")
        if self.microphone == bool(self.files):
            raise typer.BadParameter("expected either recordings or --microphone")
        if self.device_name is not None and not self.microphone:
            raise typer.BadParameter("--device-name is for --microphone")
        self._temperatures()  # wrong ones are told before anything is loaded
        if self.microphone and self.searches:
            raise typer.BadParameter("--beam-size, --hot-words and --lm are for recordings, not for --microphone")

    @property
    def formats(self) -> tuple[Format, ...]:
        """Formats of the files to write."""
        given = self._given_formats()
        if self.format is None and self.output is not None:
            return ("txt",)
        return tuple(form for form in FORMATS if form in given)

    def _given_formats(self) -> list[str]:
        return [form.strip() for form in (self.format or "").split(",") if form.strip()]

    @property
    def model_name(self) -> str:
        """The model where ``--model-dir`` is not given."""
        return self.model or assets.RECOGNISER

    @property
    def searches(self) -> bool:
        """Whether more is asked for than the likeliest letters."""
        return self.beam_size not in (None, 1) or bool(self.hot_words) or self.lm is not None

    @property
    def decoding(self) -> dict[str, Any]:
        """What was said of a Whisper's search, for ``WhisperDecoding``."""
        given = {
            "num_beams": self.beam_size,
            "temperatures": self._temperatures(),
            "compression_ratio_threshold": self.compression_ratio_threshold,
            "logprob_threshold": self.logprob_threshold,
            "no_speech_threshold": self.no_speech_threshold,
            "prompt": self.prompt,
            "task": "translate" if self.translate else None,
        }
        return {name: value for name, value in given.items() if value is not None}

    def _temperatures(self) -> tuple[float, ...] | None:
        if self.temperature is None:
            return None
        try:
            return tuple(float(part) for part in self.temperature.split(","))
        except ValueError:
            raise typer.BadParameter(
                f"--temperature {self.temperature}; expected numbers separated by commas, such as 0,0.4,0.8"
            ) from None

    def check_task(self, task: str) -> None:
        """Check that no flag is of another kind of model.

        Args:
            task: ``"ctc"`` or ``"whisper"``.

        Raises:
            typer.BadParameter: one is.
        """
        if task == "whisper":
            if self.microphone:
                raise typer.BadParameter("--microphone is for causal CTC models; Whisper hears whole recordings only")
            if self.hot_words or self.lm is not None:
                raise typer.BadParameter(
                    "--hot-words and --lm are for CTC models; a Whisper is told expected words with --prompt"
                )
            return
        if self.language is not None:
            raise typer.BadParameter(
                f"--language {self.language}: {self.model_name} is a CTC model, which knows its own language only"
            )
        for name in _OF_WHISPER:
            if getattr(self, name) not in (None, False):
                flag = "--" + name.replace("_", "-")
                raise typer.BadParameter(f"{flag} is for a Whisper; {self.model_name} is a CTC model")


_OF_WHISPER = (
    "trim_encoder",
    "long_form",
    "vad",
    "prompt",
    "translate",
    "temperature",
    "compression_ratio_threshold",
    "logprob_threshold",
    "no_speech_threshold",
)
