"""What a server lets its clients do; everything that it holds for them is bounded by these."""

from dataclasses import dataclass

from mambavox.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Bounds of sessions, and the pieces in which streams are recognised.

    Attributes:
        max_sessions: clients at a time.
        max_seconds: of audio in a session; by the clock it lasts no longer than this and ``idle_seconds``.
        max_message_bytes: of a message of samples, 2 bytes a sample.
        buffer_seconds: of audio that waits for the model; a client that sends faster has to wait.
        idle_seconds: without a message, after which a session is ended.
        unread_events: that wait for a client who does not read; partial texts give way to newer ones before.
        send_seconds: that sending one event may take.
        block: seconds of new audio from which on a stream takes part in a step of the model.
        longest_piece: seconds of audio that a stream brings to one step at most.
        step_seconds: of audio of all streams in one step, unless blocks alone are more: its memory and its time.

    Raises:
        ConfigError: a value is out of range.
    """

    max_sessions: int = 64
    max_seconds: float = 3600.0
    max_message_bytes: int = 65_536
    buffer_seconds: float = 4.0
    idle_seconds: float = 30.0
    unread_events: int = 64
    send_seconds: float = 10.0
    block: float = 0.16
    longest_piece: float = 0.64
    step_seconds: float = 16.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name}={value}; expected a number above 0")
        if not self.block <= self.longest_piece <= self.buffer_seconds:
            raise ConfigError(
                f"block={self.block}, longest_piece={self.longest_piece}, buffer_seconds={self.buffer_seconds}; "
                "expected each to be at most the next one"
            )
