"""``mambavox transcribe``: recordings to text."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mambavox.cli.console import OUT, print_error, print_json
from mambavox.cli.transcribe_whisper import is_whisper_run, transcribe_with_whisper


def transcribe_command(
    files: Annotated[list[Path], typer.Argument(help="recordings: wav, flac, ogg, mp3")],
    model: Annotated[
        str | None,
        typer.Option(help="run folder of `mambavox finetune` or `adapt --task asr`, or a CTC model of transformers"),
    ] = None,
    model_dir: Annotated[
        Path | None, typer.Option(help="folder of runs of `mambavox adapt --task asr`, one a language")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Whisper: code of the language, or auto (default: the only adapter's)")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Whisper: recordings at a time")] = 16,
    output: Annotated[str, typer.Option(help="of txt, json, srt, vtt: what is written beside the recordings")] = "",
    output_dir: Annotated[Path | None, typer.Option(help="where to write (default: beside each recording)")] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="print a line of text with its times")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON with the times and confidences of words")] = False,
    beam_size: Annotated[int, typer.Option(min=1, help="texts that the beam search keeps; 1: greedy")] = 1,
    hot_words: Annotated[str, typer.Option(help="expected words, separated by commas")] = "",
    hot_word_weight: Annotated[float, typer.Option(help="bonus of an expected word, in nats")] = 5.0,
    lm: Annotated[Path | None, typer.Option(help="n-gram model of words: .arpa or kenlm's binary (extra lm)")] = None,
    lm_words: Annotated[Path | None, typer.Option(help="its words, one a line (default: those of the .arpa)")] = None,
    lm_weight: Annotated[float, typer.Option(help="weight of the language model")] = 2.0,
    word_score: Annotated[float, typer.Option(help="added for each word, with a language model")] = 0.0,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="longest recording that is heard as a whole")] = 600.0,
    base_model: Annotated[str | None, typer.Option(help="where the model under an adapter lies now")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: a GPU if there is one)")] = None,
) -> None:
    """Transcribe recordings.

    A recording that cannot be read is reported by name; the others are still done, and the exit code is 1.
    """
    from mambavox.asr.recognizer import SpeechRecognizer
    from mambavox.asr.subtitles import FORMATS, render
    from mambavox.errors import AudioError
    from mambavox.training.backbone import quiet_transformers
    from mambavox.training.run_folder import write_atomically

    forms = [form.strip() for form in output.split(",") if form.strip()]
    for form in forms:
        if form not in FORMATS:
            raise typer.BadParameter(f"--output {form}; expected {', '.join(FORMATS)}")
    if (model is None) == (model_dir is None):
        raise typer.BadParameter("expected either --model or --model-dir")
    if model is None or is_whisper_run(model):
        if beam_size != 1 or hot_words or lm is not None:
            raise typer.BadParameter("--beam-size, --hot-words and --lm are for CTC models; Whisper writes text itself")
        transcribe_with_whisper(
            files,
            model=model,
            model_dir=model_dir,
            language=language,
            forms=forms,
            output_dir=output_dir,
            timestamps=timestamps,
            as_json=as_json,
            batch_size=batch_size,
            backbone=base_model,
            device=device,
        )
        return
    if language is not None:
        raise typer.BadParameter(f"--language {language}: {model} is a CTC model, which knows its own language only")
    with quiet_transformers():
        recognizer = SpeechRecognizer.from_pretrained(model, base_model=base_model, device=device)
    expected = [word.strip() for word in hot_words.split(",") if word.strip()]
    search = None
    if lm is not None:
        from mambavox.asr.language_model import LanguageModelSearch

        words = None if lm_words is None else lm_words.read_text(encoding="utf-8").split()
        search = LanguageModelSearch(lm, recognizer.tokenizer, words=words, weight=lm_weight, word_score=word_score)
    rows: list[dict[str, Any]] = []
    failed = False
    for file in files:
        try:
            waveform = recognizer.read(file, max_seconds=max_seconds)
        except AudioError as error:
            failed = True
            print_error(str(error))
            rows.append({"file": str(file), "error": str(error)})
            continue
        transcript = recognizer.transcribe(
            [waveform], beam_size=beam_size, hot_words=expected, hot_word_weight=hot_word_weight, search=search
        )[0]
        rows.append({"file": str(file), **transcript.to_mapping()})
        folder = output_dir or file.parent
        folder.mkdir(parents=True, exist_ok=True)
        for form in forms:
            write_atomically(folder / f"{file.stem}.{form}", render(transcript, form, timestamps=timestamps))
        if not as_json:
            if len(files) > 1:
                OUT.print(f"{file}:", markup=False)
            OUT.print(render(transcript, "txt", timestamps=timestamps), end="", markup=False)
    if as_json:
        print_json(rows)
    if failed:
        raise typer.Exit(1)
