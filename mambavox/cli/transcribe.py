"""``mambavox transcribe``: recordings to text."""

import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mambavox import assets
from mambavox.cli.console import ERR, OUT, print_error, print_json
from mambavox.cli.flags import Device, chosen_device
from mambavox.cli.transcribe_whisper import transcribe_with_whisper
from mambavox.errors import ConfigError
from mambavox.runs.config import RUN_FILE, read_yaml

if TYPE_CHECKING:
    from mambavox.asr.tokenizer import Vocabulary


def transcribe_command(
    files: Annotated[list[Path] | None, typer.Argument(help="recordings: wav, flac, ogg, mp3")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="run folder of `mambavox adapt --task ctc` or `--task whisper`; a CTC model or Whisper "
            f"(default: the embedded {assets.RECOGNISER}, English)"
        ),
    ] = None,
    model_dir: Annotated[
        Path | None, typer.Option(help="folder of runs of `mambavox adapt --task whisper`, one a language")
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(help="Whisper: code of the language, or auto (default: the only adapter's; of a Whisper, auto)"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Whisper: recordings at a time")] = 16,
    trim_encoder: Annotated[
        bool | None,
        typer.Option(
            "--trim-encoder/--no-trim-encoder",
            help="Whisper: encode no more than the longest recording of a batch (default: as it was trained)",
        ),
    ] = None,
    microphone: Annotated[
        bool, typer.Option("--microphone", help="words as they are spoken, until Ctrl-C (extra microphone)")
    ] = False,
    device_name: Annotated[str | None, typer.Option(help="microphone: its number or a part of its name")] = None,
    output: Annotated[str, typer.Option(help="of txt, json, srt, vtt: what is written beside the recordings")] = "",
    output_dir: Annotated[Path | None, typer.Option(help="where to write (default: beside each recording)")] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="print a line of text with its times")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON with the times and confidences of words")] = False,
    beam_size: Annotated[
        int | None, typer.Option(min=1, help="texts that the search keeps; 1: greedy (default: 1, with --lm 100)")
    ] = None,
    hot_words: Annotated[str, typer.Option(help="expected words, separated by commas")] = "",
    hot_word_weight: Annotated[float, typer.Option(help="bonus of an expected word, in nats")] = 5.0,
    lm: Annotated[Path | None, typer.Option(help="n-gram model of words: .arpa or kenlm's binary (extra lm)")] = None,
    lm_words: Annotated[Path | None, typer.Option(help="its words, one a line (default: those of the .arpa)")] = None,
    lm_weight: Annotated[float, typer.Option(help="weight of the language model")] = 2.0,
    word_score: Annotated[float, typer.Option(help="added for each word, with a language model")] = 0.0,
    max_seconds: Annotated[
        float, typer.Option(min=0.1, help="longest recording that is heard as a whole; longer ones block by block")
    ] = 60.0,
    pause: Annotated[
        float, typer.Option(help="of longer recordings and the microphone: seconds without a word that end a line")
    ] = 0.8,
    longest: Annotated[float, typer.Option(help="of the same: seconds after which a line ends anyway")] = 30.0,
    backbone: Annotated[str | None, typer.Option(help="Where the backbone under an adapter lies now.")] = None,
    device: Annotated[Device, typer.Option(help="Where to run; auto takes a GPU if there is one.")] = "auto",
) -> None:
    """Transcribe recordings of any length, or what is being said.

    A recording that cannot be read, or whose text cannot be written, is reported by name; the others are still done,
    and the exit code is 1. A longer one is heard block by block, and printed as it is; killed, the same command goes
    on where it was.
    """
    from mambavox.asr.live import Endpointing
    from mambavox.asr.long_form import hearing_of
    from mambavox.asr.recognizer import Search, SpeechRecognizer
    from mambavox.asr.subtitles import FORMATS, render
    from mambavox.asr.whisper import is_whisper, is_whisper_run
    from mambavox.cli.transcribe_long import forget, transcribe_long
    from mambavox.cli.transcribe_microphone import transcribe_microphone
    from mambavox.cli.transcribe_output import check_folder, check_outputs, write_outputs
    from mambavox.data import duration
    from mambavox.errors import AudioError
    from mambavox.files import write_atomically
    from mambavox.hub import backbone_under, quiet_transformers

    forms = [form.strip() for form in output.split(",") if form.strip()]
    for form in forms:
        if form not in FORMATS:
            raise typer.BadParameter(f"--output {form}; expected {', '.join(FORMATS)}")
    if model is not None and model_dir is not None:
        raise typer.BadParameter("expected either --model or --model-dir")
    if model is None and model_dir is None:
        model = assets.RECOGNISER
    files = files or []
    if microphone == bool(files):
        raise typer.BadParameter("expected either recordings or --microphone")
    whisper = model is None or is_whisper_run(model) or is_whisper(model)
    if microphone and whisper:
        raise typer.BadParameter("--microphone is for causal CTC models; Whisper hears whole recordings only")
    searching = beam_size not in (None, 1) or bool(hot_words) or lm is not None
    if microphone and searching:
        raise typer.BadParameter("--beam-size, --hot-words and --lm are for recordings, not for --microphone")
    if device_name is not None and not microphone:
        raise typer.BadParameter("--device-name is for --microphone")
    if whisper:
        if searching:
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
            backbone=backbone,
            trim_encoder=trim_encoder,
            device=chosen_device(device),
        )
        return
    assert model is not None
    if trim_encoder is not None:
        raise typer.BadParameter(f"--trim-encoder is for a Whisper; {model} is a CTC model")
    if language is not None:
        raise typer.BadParameter(f"--language {language}: {model} is a CTC model, which knows its own language only")
    check_outputs(files, forms, output_dir)
    if microphone and forms:
        check_folder(output_dir or Path())
    words = None if lm_words is None else _read_words(lm_words)
    with quiet_transformers():
        recognizer = SpeechRecognizer.from_pretrained(model, backbone=backbone, device=chosen_device(device))
    endpointing = Endpointing(pause, longest)
    if microphone:
        said, broken = transcribe_microphone(
            recognizer, endpointing=endpointing, device=device_name, timestamps=timestamps, quiet=as_json
        )
        if as_json:
            print_json(said.to_mapping() | ({"error": str(broken)} if broken else {}))
        for form in forms:
            path = (output_dir or Path()) / f"microphone-{datetime.now():%Y-%m-%d-%H%M%S}.{form}"
            write_atomically(path, render(said, form, timestamps=timestamps))
            ERR.print(f"written: {path}", markup=False)
        if broken is not None:
            print_error(f"{broken} What was heard before is kept")
            raise typer.Exit(1)
        return
    expected = [_normalized(word, model, recognizer.vocabulary) for word in hot_words.split(",") if word.strip()]
    search: Search | None = None
    if lm is not None:
        from mambavox.asr.language_model import LanguageModelSearch

        search = LanguageModelSearch(
            lm,
            recognizer.tokenizer,
            words=words,
            weight=lm_weight,
            word_score=word_score,
            beam_size=beam_size or LanguageModelSearch.BEAM_SIZE,
        )
    options: dict[str, Any] = {"beam_size": beam_size or 1, "hot_words": expected, "hot_word_weight": hot_word_weight}
    search = recognizer.search(**options, search=search)
    settings = {
        **options,
        "beam_size": beam_size,
        "lm": _identify(lm),
        "lm_words": _identify(lm_words),
        "lm_weight": lm_weight,
        "word_score": word_score,
        "model": _identify(assets.locate(model)),
        "backbone": _identify(backbone_under(assets.locate(model), backbone)),
    }
    hearing = None
    rows: list[dict[str, Any]] = []
    failed = False
    for file in files:
        folder = output_dir or file.parent
        whole, error = True, None
        try:
            if whole := duration(file) <= max_seconds:
                waveform = recognizer.read(file, max_seconds=math.inf)
                transcript = recognizer.transcribe([waveform], search=search)[0]
            else:
                if hearing is None:
                    hearing, inexact = hearing_of(recognizer)
                    if inexact is not None:
                        reason = inexact.partition(". Expected")[0]
                        ERR.print(f"longer recordings are heard in overlapping chunks: {reason}", markup=False)
                if not as_json and len(files) > 1:
                    OUT.print(f"{file}:", markup=False)
                transcript, error = transcribe_long(
                    file,
                    recognizer,
                    hearing,
                    endpointing=endpointing,
                    search=search,
                    settings=settings,
                    folder=folder,
                    timestamps=timestamps,
                    quiet=as_json,
                )
        except (AudioError, OSError) as unreadable:
            failed = True
            print_error(str(unreadable))
            rows.append({"file": str(file), "error": str(unreadable)})
            continue
        rows.append({"file": str(file), **transcript.to_mapping()})
        if error is not None:
            failed = True
            print_error(f"{error}. What was heard before is kept")
            rows[-1]["error"] = str(error)
        if whole and not as_json:
            if len(files) > 1:
                OUT.print(f"{file}:", markup=False)
            OUT.print(render(transcript, "txt", timestamps=timestamps), end="", markup=False)
        try:
            contents = {form: render(transcript, form, timestamps=timestamps) for form in forms}
            write_outputs(file, contents, output_dir)
        except OSError as unwritable:
            failed = True
            print_error(f"{file}: its text cannot be written ({unwritable})")
            rows[-1]["error"] = str(unwritable)
            continue
        if not whole:
            forget(file, folder)
    if as_json:
        print_json(rows)
    if failed:
        raise typer.Exit(1)


def _normalized(word: str, model: str, vocabulary: "Vocabulary") -> str:
    """A word in the form of the transcripts that a model has learned."""
    from mambavox.asr.text import normalize_text
    from mambavox.runs.folder import is_run

    run = Path(model).expanduser()
    if is_run(run):
        config = read_yaml(run / RUN_FILE)
        return normalize_text(word, config.get("language")) if config.get("normalize", True) else word.strip()
    # Whose transcripts are not known: a vocabulary without capitals is one of normalised text.
    capitals = any(token != token.lower() for token in vocabulary.tokens)
    return word.strip() if capitals else normalize_text(word)


def _read_words(path: Path) -> list[str]:
    """Words of a list."""
    try:
        return path.expanduser().read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); expected words, one a line: --lm-words") from error


def _identify(source: str | Path | None) -> list[Any]:
    """What tells whether a file, or a folder's weights, are still the same; a name on the Hub stands for itself."""
    if source is None or not (path := Path(source).expanduser()).exists():
        return [source]
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return [str(path.resolve()), *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]
