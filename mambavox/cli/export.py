"""``mambavox export``: recognisers for other runtimes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from mambavox.cli.console import ERR, OUT
from mambavox.errors import ConfigError

if TYPE_CHECKING:
    from mambavox.asr.whisper import WhisperTranscriber

Quantization: TypeAlias = Literal["float32", "float16", "int8"]
"""As ``mambavox.asr.whisper_ctranslate2.Quantization``, which takes seconds to import."""


def export_command(
    model: Annotated[
        str,
        typer.Option(
            help="Run folder of `mambavox adapt --task ctc`, of a causal Mamba-HuBERT, or of --task whisper; or a "
            "Whisper as it is."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            help="CTC: file of the graph, .onnx; its description gets the same name with .json. Whisper: a new folder."
        ),
    ],
    block_seconds: Annotated[
        float | None, typer.Option(min=0.02, help="CTC: length of a block, rounded to frames (default: 0.32).")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="A Whisper as it is: code of the language (default: that of the run).")
    ] = None,
    format: Annotated[
        Literal["onnx", "ctranslate2"],
        typer.Option(
            help="Whisper: onnx takes every adapter; ctranslate2, for faster-whisper, those that change weights, such "
            "as lora (extra ctranslate2)."
        ),
    ] = "onnx",
    quantization: Annotated[
        Quantization | None, typer.Option(help="In what CTranslate2's weights are written (default: float32).")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Where the backbone under an adapter lies now (default: where it was).")
    ] = None,
) -> None:
    """Write a recogniser as ONNX, adapters included.

    CTC: the streaming step, a block of samples and the state in, logits and the new state out. Whisper: encoder,
    decoder and decoder with past. Where onnxruntime is installed, the graphs are compared with the model before the
    command ends.

    Example: mambavox export --model runs/ctc --output step.onnx
    """
    from mambavox.asr.whisper import recogniser_task

    if recogniser_task(model, "mambavox export") == "whisper":
        if block_seconds is not None:
            raise typer.BadParameter("--block-seconds is for CTC models; a Whisper hears whole windows")
        if quantization is not None and format == "onnx":
            raise typer.BadParameter("--quantization is for --format ctranslate2; ONNX is written in float32")
        transcriber, spoken = _load_whisper(model, backbone, language)
        if format == "onnx":
            _export_onnx(transcriber, output, spoken)
        else:
            _export_ctranslate2(transcriber, output, spoken, quantization or "float32")
    else:
        if format != "onnx" or quantization is not None:
            raise typer.BadParameter("--format ctranslate2 and --quantization are for a Whisper, not for a CTC model")
        if language is not None:
            raise typer.BadParameter("--language is for a Whisper; a CTC model knows its own language only")
        _export_ctc(model, output, backbone, block_seconds)


def _load_whisper(model: str, backbone: str | None, language: str | None) -> tuple["WhisperTranscriber", str | None]:
    """A Whisper, and the code of the language that it writes."""
    from mambavox.asr.whisper import WhisperTranscriber
    from mambavox.asr.whisper_language import known_languages

    # The graph encodes the whole window, also of a run that was trained with less of it.
    transcriber = WhisperTranscriber.from_pretrained(model, backbone=backbone, device="cpu", trim_encoder=False)
    (own,) = transcriber.languages.values()
    spoken = language or own
    if spoken is not None:
        transcriber.switch(spoken)
    elif known_languages(transcriber.host):
        raise ConfigError(
            f"{model}: knows several languages, and writes one when exported; expected its code: --language"
        )
    return transcriber, spoken


def _export_ctranslate2(
    transcriber: "WhisperTranscriber", output: Path, language: str | None, quantization: Quantization
) -> None:
    from mambavox.asr.whisper_ctranslate2 import check_ctranslate2, export_ctranslate2

    export_ctranslate2(transcriber.model, transcriber.processor, output, quantization)
    OUT.print(f"{output}: for CTranslate2 and faster-whisper, in {quantization}", markup=False)
    window = transcriber.window // int(transcriber.processor.feature_extractor.hop_length)
    same = check_ctranslate2(transcriber.host, output, language, window)
    if not same and quantization == "float32":
        raise ConfigError(f"{output}: CTranslate2 writes another text than torch; expected the same in float32")
    OUT.print(f"it writes {'the same' if same else 'another'} text of noise {'as' if same else 'than'} torch")


def _export_onnx(transcriber: "WhisperTranscriber", output: Path, language: str | None) -> None:
    from mambavox.asr.whisper_export import check_whisper, export_whisper

    extractor = transcriber.processor.feature_extractor
    window = transcriber.window // int(extractor.hop_length)
    description = export_whisper(
        transcriber.model, output, language, sampling_rate=transcriber.sampling_rate, window=window
    )
    extractor.save_pretrained(output)
    transcriber.processor.tokenizer.save_pretrained(output)
    OUT.print(f"{output}: {', '.join(description['graphs'])}; how to run them is in export.json", markup=False)
    try:
        difference = check_whisper(transcriber.model, output)
    except ConfigError:
        for name in description["graphs"]:
            (output / name).unlink()
        raise
    _tell(difference, "numbers")


def _export_ctc(model: str, output: Path, backbone: str | None, block_seconds: float | None) -> None:
    from mambavox.asr.export import check_graph, export_recognizer
    from mambavox.asr.recognizer import SpeechRecognizer
    from mambavox.hubert.onnx_step import BLOCK_SECONDS

    if output.suffix != ".onnx":
        raise typer.BadParameter(f"--output {output}; expected a file name that ends in .onnx")
    recognizer = SpeechRecognizer.from_pretrained(model, backbone=backbone, device="cpu")
    description = export_recognizer(recognizer, output, block_seconds or BLOCK_SECONDS)
    OUT.print(
        f"{output}: {description['block_samples']} samples in, {description['block_frames']} frames out, "
        f"{len(description['inputs']) - 1} tensors of state; how to run it is in {output.with_suffix('.json')}",
        markup=False,
    )
    try:
        difference = check_graph(recognizer, output)
    except ConfigError:
        for path in (output, output.with_suffix(".json")):
            path.unlink()
        raise
    _tell(difference, "logits")


def _tell(difference: float | None, what: str) -> None:
    if difference is None:
        ERR.print("onnxruntime is not installed: what was written was not compared with the model", markup=False)
    else:
        OUT.print(f"largest difference of its {what} from the model's: {difference:.1e}", markup=False)
