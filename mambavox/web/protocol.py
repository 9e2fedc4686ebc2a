"""What client and server say to each other: JSON in text messages, samples in binary ones (docs/serve.md)."""

import hmac
import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from mambavox.asr.live import LiveSegment
from mambavox.data import Waveform
from mambavox.data.audio import dequantise

SAMPLE_BYTES = 2
"""16-bit PCM."""

_LONGEST_TEXT = 4096  # characters of a JSON message
_LONGEST_REASON = 123  # bytes that a close frame has room for


class Close(IntEnum):
    """Codes with which the server closes (RFC 6455, section 7.4.1)."""

    DONE = 1000
    GOING_AWAY = 1001
    UNSUPPORTED = 1003
    MALFORMED = 1007
    REFUSED = 1008
    TOO_BIG = 1009
    BROKEN = 1011
    TRY_LATER = 1013


class Refusal(Exception):
    """What a client did wrong, in words that it is told.

    Args:
        code: the connection is closed with.
        reason: one word for programs.
        message: for people: what was given and what was expected.
    """

    def __init__(self, code: Close, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message

    @property
    def close_reason(self) -> str:
        """The message, as much of it as a close frame has room for."""
        return self.message.encode()[:_LONGEST_REASON].decode(errors="ignore")


@dataclass(frozen=True)
class Start:
    """The message that begins a session.

    Attributes:
        token: what the client offers, if anything.
    """

    token: str | None


def read_start(text: str, sampling_rate: int) -> Start:
    """Read the first message: ``{"type": "start", "sampling_rate": 16000, "token": "..."}``.

    Args:
        text: of the message.
        sampling_rate: of the model.

    Raises:
        Refusal: it is none, or asks for another rate.
    """
    message = read_json(text)
    if message["type"] != "start":
        raise Refusal(Close.MALFORMED, "order", f"the first message is {_shown(message['type'])}; expected start")
    rate = message.get("sampling_rate")
    if isinstance(rate, bool) or rate != sampling_rate:
        raise Refusal(
            Close.UNSUPPORTED, "sampling_rate", f"sampling_rate is {_shown(rate)}; expected {sampling_rate} Hz"
        )
    token = message.get("token")
    if token is not None and not isinstance(token, str):
        raise Refusal(Close.MALFORMED, "json", "token is no text; expected a string")
    return Start(token)


def read_json(text: str) -> dict[str, Any]:
    """A JSON object with a ``type``.

    Raises:
        Refusal: it is none.
    """
    if len(text) > _LONGEST_TEXT:
        raise Refusal(
            Close.TOO_BIG,
            "message_size",
            f"a text message has {len(text)} characters; expected {_LONGEST_TEXT} or less",
        )
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise Refusal(Close.MALFORMED, "json", f"a text message is no JSON: {_shown(text)}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise Refusal(
            Close.MALFORMED, "json", f"a text message is {_shown(text)}; expected an object with a type, start or end"
        )
    return message


def check_samples(data: bytes, max_bytes: int) -> None:
    """Check a binary message of samples.

    Raises:
        Refusal: it is too long, or ends in the middle of a sample.
    """
    if len(data) > max_bytes:
        raise Refusal(Close.TOO_BIG, "message_size", f"a message has {len(data)} bytes; expected {max_bytes} or less")
    if len(data) % SAMPLE_BYTES:
        raise Refusal(
            Close.MALFORMED,
            "odd_bytes",
            f"a message has {len(data)} bytes; expected an even number: 16-bit samples, the low byte first",
        )


def to_waveform(data: bytes) -> Waveform:
    """Samples ``(samples,)`` between -1 and 1 of little-endian 16-bit PCM."""
    return dequantise(np.frombuffer(data, dtype="<i2"))


def tokens_agree(expected: str | None, given: str | None) -> bool:
    """Whether a client may come in; the time it takes tells nothing about the token.

    Args:
        expected: the server's token; none lets everyone in.
        given: the client's.
    """
    if expected is None:
        return True
    return given is not None and hmac.compare_digest(expected.encode(), given.encode(errors="replace"))


def segment_event(segment: LiveSegment, heard: float, delay: float) -> dict[str, Any]:
    """The event of a segment; partial ones are without their words, which are not final.

    Args:
        segment: what was said.
        heard: seconds of the stream that the model has seen.
        delay: seconds since the last of them arrived.
    """
    if segment.final:
        event = {"type": "final", **segment.to_mapping()}
    else:
        event = {
            "type": "partial",
            "segment": segment.number,
            "text": segment.text,
            "start": segment.start,
            "end": segment.end,
            "confidence": segment.confidence,
        }
    event.pop("final", None)
    return {**event, "heard": heard, "delay": delay}


def refusal_event(refusal: Refusal) -> dict[str, Any]:
    """The event of an error."""
    return {"type": "error", "reason": refusal.reason, "message": refusal.message}


def to_text(event: dict[str, Any]) -> str:
    """An event as it is sent."""
    return json.dumps(_rounded(event), ensure_ascii=False)


def _rounded(value: Any) -> Any:
    """Tenths of milliseconds and of thousandths are enough."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    """A value of a client, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
