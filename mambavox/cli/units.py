"""``mambavox units``: units of speech, labels for pre-training, and how well units fit phones."""

from pathlib import Path
from typing import Annotated

import typer

from mambavox.cli.command import Command
from mambavox.cli.console import ERR, OUT, print_json, tell_of_no_plots
from mambavox.cli.flags import Device

units_app = typer.Typer(
    name="units",
    help="Units of speech: fit k-means to features, label recordings, measure units against phones.",
    no_args_is_help=True,
)

_SOURCE = "Features: mfcc, or a layer of a model, such as runs/it1:6."
_DATA = "Recordings: a folder, a manifest, a corpus, shards:PATTERN.tar or hf:owner/name."
_CLUSTERS = Annotated[int, typer.Option(min=1, help="Number of units.")]
_FRACTION = Annotated[float, typer.Option(help="Share of the recordings that the units are fitted to.")]
_SEED = Annotated[int, typer.Option(help="Seed of the choice of recordings and of the fit.")]
_BATCH = Annotated[float, typer.Option(help="Seconds of audio that the model hears at a time.")]
_PLACE = Annotated[Device, typer.Option(help="Where to run; auto takes a GPU if there is one.")]


@units_app.command("fit", cls=Command)
def fit_command(
    data: Annotated[str, typer.Option(help=_DATA)],
    source: Annotated[str, typer.Option(help=_SOURCE)],
    output: Annotated[Path, typer.Option(help="Folder to write kmeans.safetensors and kmeans.json into.")],
    num_clusters: _CLUSTERS = 100,
    fraction: _FRACTION = 1.0,
    seed: _SEED = 0,
    batch_seconds: _BATCH = 100.0,
    device: _PLACE = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit units to features of recordings, which are read one after the other and are never all in memory.

    Example: mambavox units fit --data clips --source runs/it1:6 --num-clusters 500 --output runs/units
    """
    from dataclasses import asdict

    from mambavox.data import read_recordings
    from mambavox.errors import ConfigError
    from mambavox.files import watching_the_disk
    from mambavox.units import fit_quantizer, load_features
    from mambavox.units.kmeans import METADATA_FILE

    if (output / METADATA_FILE).is_file():
        raise ConfigError(f"{output}: holds a quantizer already ({METADATA_FILE}); expected a new folder: --output")
    examples = read_recordings(data)
    quantizer = fit_quantizer(
        zip(examples.keys, examples, strict=True),
        load_features(source, device),
        num_clusters,
        fraction=fraction,
        seed=seed,
        batch_seconds=batch_seconds,
        console=ERR,
        total=len(examples),
    )
    with watching_the_disk(output, lambda: "Make room, and call it again"):
        quantizer.save(output)
    if as_json:
        print_json(asdict(quantizer.metadata))
    else:
        metadata = quantizer.metadata
        OUT.print(
            f"{num_clusters} units of {source} in {output}: {metadata.frames_seen} frames, mean squared distance "
            f"{metadata.inertia:.4g}",
            markup=False,
        )


@units_app.command("label", cls=Command)
def label_command(
    data: Annotated[str, typer.Option(help=_DATA)],
    output: Annotated[Path, typer.Option(help="Folder of the labels; what an earlier call left there is continued.")],
    source: Annotated[str | None, typer.Option(help=f"{_SOURCE} Units are fitted first.")] = None,
    quantizer: Annotated[Path | None, typer.Option(help="Folder of units that were fitted before.")] = None,
    num_clusters: _CLUSTERS = 100,
    fraction: _FRACTION = 1.0,
    seed: _SEED = 0,
    batch_seconds: _BATCH = 100.0,
    device: _PLACE = "auto",
) -> None:
    """Label recordings with units, in shards; a call that was stopped is continued by the same call.

    Example: mambavox units label --data clips --quantizer runs/units --output runs/labels
    """
    if (source is None) == (quantizer is None):
        raise typer.BadParameter("expected one of --source (fit units first) and --quantizer (take these)")

    from mambavox.data import read_recordings
    from mambavox.files import watching_the_disk
    from mambavox.units import UnitQuantizer, make_targets

    fitted = None if quantizer is None else UnitQuantizer.load(quantizer)
    with watching_the_disk(output, lambda: "Make room; the same call continues"):
        labels = make_targets(
            read_recordings(data),
            fitted.metadata.source if fitted else str(source),
            fitted.num_clusters if fitted else num_clusters,
            output,
            fraction=fraction,
            seed=seed,
            device=device,
            batch_seconds=batch_seconds,
            quantizer=fitted,
            console=ERR,
        )
    frames = int(labels.frames.sum())
    OUT.print(
        f"{len(labels)} recordings in {output}: {frames} labels, {labels.frame_rate:g} a second, of "
        f"{labels.num_clusters} units",
        markup=False,
    )


@units_app.command("quality", cls=Command)
def quality_command(
    sources: Annotated[
        list[str],
        typer.Argument(help="mfcc, a model (all its layers), MODEL:LAYER or a folder of units."),
    ],
    num_clusters: Annotated[int, typer.Option(min=1, help="Number of units that are fitted to each.")] = 100,
    data: Annotated[
        str | None,
        typer.Option(help="Recordings with alignments to measure on (default: espeak-ng's speech)."),
    ] = None,
    fit_data: Annotated[str | None, typer.Option(help="Recordings to fit to (default: espeak-ng's speech).")] = None,
    fit_seconds: Annotated[float, typer.Option(help="Seconds of them that are fitted to, at most.")] = 1800.0,
    texts: Annotated[Path | None, typer.Option(help="File of sentences for espeak-ng, one a line.")] = None,
    voice: Annotated[str, typer.Option(help="Language or accent of espeak-ng.")] = "en-us",
    per_speaker: Annotated[int, typer.Option(min=1, help="Sentences that each of espeak-ng's speakers says.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of the speech and of the fits.")] = 0,
    device: _PLACE = "auto",
    output: Annotated[Path | None, typer.Option(help="Folder of quality.md, quality.json and quality.png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit units to features and measure them against phones whose times are known.

    By default on speech of espeak-ng: fitted to some speakers and sentences, measured on others. Units that were
    fitted before (a folder of `units fit` or `units label`) are measured as they are.

    Example: mambavox units quality mfcc runs/it1 --output runs/quality
    """
    from mambavox.units.features import LayerFeatures, MfccFeatures, load_features
    from mambavox.units.kmeans import METADATA_FILE, UnitQuantizer
    from mambavox.units.phones import quality_speech
    from mambavox.units.quality import measure_layers, measure_quantizer
    from mambavox.units.report import markdown, write

    fit, test = quality_speech(
        data=data,
        fit_data=fit_data,
        fit_seconds=fit_seconds,
        texts=texts,
        voice=voice,
        per_speaker=per_speaker,
        seed=seed,
    )
    rows = []
    for source in sources:
        if (Path(source) / METADATA_FILE).is_file():
            quantizer = UnitQuantizer.load(Path(source))
            rows.append(measure_quantizer(quantizer, load_features(quantizer.metadata.source, device), test))
            continue
        one_layer = source == MfccFeatures.name or source.rpartition(":")[2].isdecimal()
        features = load_features(source, device) if one_layer else LayerFeatures(source, 0, device)
        layers = [features.layer] if one_layer and isinstance(features, LayerFeatures) else None
        rows += measure_layers(features, fit, test, num_clusters, layers=layers, seed=seed, console=ERR)
    if output is not None:
        write(rows, output)
        tell_of_no_plots()
    if as_json:
        print_json([row.to_mapping() for row in rows])
    else:
        where = f"\nquality.md, quality.json and quality.png are in {output}" if output else ""
        OUT.print(markdown(rows) + where, markup=False)
