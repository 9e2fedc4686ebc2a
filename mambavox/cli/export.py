"""``mambavox export``: recognisers for other runtimes."""

from pathlib import Path
from typing import Annotated

import typer

from mambavox.cli.console import ERR, OUT
from mambavox.errors import ConfigError


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
        _export_whisper(model, output, backbone, language)
    else:
        if language is not None:
            raise typer.BadParameter("--language is for a Whisper; a CTC model knows its own language only")
        _export_ctc(model, output, backbone, block_seconds)


def _export_whisper(model: str, output: Path, backbone: str | None, language: str | None) -> None:
    from mambavox.asr.whisper import WhisperTranscriber
    from mambavox.asr.whisper_export import check_whisper, export_whisper

    # The graph encodes the whole window, also of a run that was trained with less of it.
    transcriber = WhisperTranscriber.from_pretrained(model, backbone=backbone, device="cpu", trim_encoder=False)
    (own,) = transcriber.languages.values()
    if language is not None:
        transcriber.switch(language)
    extractor = transcriber.processor.feature_extractor
    window = transcriber.window // int(extractor.hop_length)
    description = export_whisper(
        transcriber.model, output, language or own, sampling_rate=transcriber.sampling_rate, window=window
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
