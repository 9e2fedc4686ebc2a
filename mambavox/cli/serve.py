"""``mambavox serve``: live recognition of many clients, and a page for the browser."""

from typing import Annotated

import typer

from mambavox import assets
from mambavox.cli.console import ERR
from mambavox.cli.flags import Device, chosen_device
from mambavox.errors import ConfigError


def serve_command(
    model: Annotated[
        str,
        typer.Option(help="run folder of `mambavox adapt --task ctc`, causal, or the embedded recogniser (English)"),
    ] = assets.RECOGNISER,
    backbone: Annotated[str | None, typer.Option(help="Where the backbone under an adapter lies now.")] = None,
    device: Annotated[Device, typer.Option(help="Where to run; auto takes a GPU if there is one.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="of the model (default: as many as torch takes)")] = None,
    host: Annotated[str, typer.Option(help="address to listen at; others than this machine's need a token")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="to listen at; 0 takes a free one")] = 8765,
    token: Annotated[
        str | None, typer.Option(envvar="MAMBAVOX_TOKEN", help="that clients must send (default: none)")
    ] = None,
    allow_origin: Annotated[
        str, typer.Option(help="pages of other servers that may connect, such as https://example.org, by commas")
    ] = "",
    max_sessions: Annotated[int, typer.Option(min=1, help="clients at a time")] = 64,
    session_seconds: Annotated[float, typer.Option(min=1.0, help="Longest session, in seconds of audio.")] = 3600.0,
    block: Annotated[float, typer.Option(min=0.02, help="seconds of audio that the model is given at a time")] = 0.16,
    pause: Annotated[float, typer.Option(min=0.02, help="seconds without a letter that end a segment")] = 0.8,
) -> None:
    """Recognise speech while it is spoken, of many clients at once; the page is at the address that is printed."""
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
    from mambavox.hub import quiet_transformers
    from mambavox.web.limits import Limits

    access = Access(host, token, [origin.strip() for origin in allow_origin.split(",") if origin.strip()])
    limits = Limits(max_sessions=max_sessions, max_seconds=session_seconds, block=block)
    if threads is not None:
        torch.set_num_threads(threads)
    with quiet_transformers():
        recognizer = SpeechRecognizer.from_pretrained(model, backbone=backbone, device=chosen_device(device))
    live = LiveRecognizer(recognizer, Endpointing(pause))
    server = make_server(make_application(live, limits, access, name=model), limits)
    with bind(host, port) as listening:
        ERR.print(f"{model} listens at {address_of(listening)} (Ctrl+C ends it)", markup=False)
        server.run(sockets=[listening])
