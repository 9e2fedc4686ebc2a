"""``mambavox serve``: live recognition of many clients, and a page for the browser."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from mambavox import assets
from mambavox.cli.console import ERR
from mambavox.cli.flags import Device
from mambavox.cli.options import declare_options
from mambavox.errors import ConfigError

_ACCESS = "Who may connect"
_LIMITS = "Limits and lengths"
_RARE = "Rarely used"


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What is served, to whom. Each field is one flag."""

    model: Annotated[
        str,
        typer.Option(help="Run folder of `mambavox adapt --task ctc`, of a causal model, or the embedded recogniser."),
    ] = assets.RECOGNISER
    host: Annotated[str, typer.Option(help="Address to listen at; any but this machine's own needs a token.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8765
    device: Annotated[Device, typer.Option(help="Where to run; auto takes a GPU if there is one.")] = "auto"
    token: Annotated[
        str | None,
        typer.Option(
            envvar="MAMBAVOX_TOKEN", help="Token that clients must send (default: none).", rich_help_panel=_ACCESS
        ),
    ] = None
    allow_origin: Annotated[
        str,
        typer.Option(
            help="Pages of other servers that may connect, such as https://example.org, separated by commas.",
            rich_help_panel=_ACCESS,
        ),
    ] = ""
    max_sessions: Annotated[int, typer.Option(min=1, help="Clients at a time.", rich_help_panel=_LIMITS)] = 64
    session_seconds: Annotated[
        float, typer.Option(min=1.0, help="Longest session, in seconds of audio.", rich_help_panel=_LIMITS)
    ] = 3600.0
    block_seconds: Annotated[
        float, typer.Option(min=0.02, help="Seconds of audio that the model hears at a time.", rich_help_panel=_LIMITS)
    ] = 0.16
    pause_seconds: Annotated[
        float,
        typer.Option(
            min=0.02, help="A pause of this length, without a letter, ends a segment.", rich_help_panel=_LIMITS
        ),
    ] = 0.8
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of the model (default: as many as torch takes).", rich_help_panel=_RARE),
    ] = None
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Where the backbone under an adapter lies now (default: where it was).", rich_help_panel=_RARE
        ),
    ] = None


def serve_command(**flags: Any) -> None:
    """Recognise the speech of many clients at once, while they speak; the page is at the address that is printed.

    Example: mambavox serve --model runs/ctc --port 9000
    """
    options = ServeOptions(**flags)
    try:
        from mambavox.web.server import Access, address_of, bind, make_application, make_server
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"mambavox serve needs starlette, uvicorn and websockets ({error}); install them with: "
            "pip install 'mambavox[serve]'"
        ) from error
    import torch

    from mambavox.asr.live import Endpointing, LiveRecognizer
    from mambavox.asr.recognizer import SpeechRecognizer
    from mambavox.web.limits import Limits

    origins = [origin.strip() for origin in options.allow_origin.split(",") if origin.strip()]
    access = Access(options.host, options.token, origins)
    limits = Limits(max_sessions=options.max_sessions, max_seconds=options.session_seconds, block=options.block_seconds)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    recognizer = SpeechRecognizer.from_pretrained(options.model, backbone=options.backbone, device=options.device)
    live = LiveRecognizer(recognizer, Endpointing(options.pause_seconds))
    server = make_server(make_application(live, limits, access, name=options.model), limits)
    with bind(options.host, options.port) as listening:
        ERR.print(f"{options.model} listens at {address_of(listening)} (Ctrl+C ends it)", markup=False)
        server.run(sockets=[listening])


declare_options(serve_command, ServeOptions)
