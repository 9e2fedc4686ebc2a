"""``mambavox export``: the streaming step of a recogniser for other runtimes."""

from pathlib import Path
from typing import Annotated

import typer

from mambavox.cli.console import ERR, OUT
from mambavox.errors import ConfigError


def export_command(
    model: Annotated[str, typer.Option(help="Run folder of `mambavox adapt --task ctc`, of a causal Mamba-HuBERT.")],
    output: Annotated[
        Path, typer.Option(help="File of the graph, .onnx; its description gets the same name with .json.")
    ],
    block_seconds: Annotated[float, typer.Option(min=0.02, help="Length of a block, rounded to frames.")] = 0.32,
    backbone: Annotated[
        str | None, typer.Option(help="Where the backbone under an adapter lies now (default: where it was).")
    ] = None,
) -> None:
    """Write the streaming step as ONNX: a block of samples and the state in, logits and the new state out.

    Where onnxruntime is installed, the graph is compared with the model before the command ends.

    Example: mambavox export --model runs/ctc --output step.onnx
    """
    from mambavox.asr.export import check_graph, export_recognizer
    from mambavox.asr.recognizer import SpeechRecognizer

    if output.suffix != ".onnx":
        raise typer.BadParameter(f"--output {output}; expected a file name that ends in .onnx")
    recognizer = SpeechRecognizer.from_pretrained(model, backbone=backbone, device="cpu")
    description = export_recognizer(recognizer, output, block_seconds)
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
    if difference is None:
        ERR.print("onnxruntime is not installed: the graph was not compared with the model", markup=False)
    else:
        OUT.print(f"largest difference of its logits from the model's: {difference:.1e}", markup=False)
