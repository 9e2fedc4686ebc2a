"""Errors a user can mend. Each message says what was given, what was expected and how to mend it."""


class MambavoxError(Exception):
    """Base of every error that mambavox raises on purpose; the command line prints it without a traceback."""


class AudioError(MambavoxError, ValueError):
    """A recording cannot be used (unreadable, empty, NaN, too short); the message names the file."""


class DataError(MambavoxError, ValueError):
    """A data set, manifest, column or split is not what was asked for; the message names the file and field."""


class ConfigError(MambavoxError, ValueError):
    """A configuration key or value is unknown or does not fit the others."""


class HostError(MambavoxError, ValueError):
    """A host model lacks what an adapter needs, or an adapter does not reach the model's output."""


class BackendError(MambavoxError, RuntimeError):
    """A requested backend of an operation cannot run here; the message says why."""


class RunError(MambavoxError, RuntimeError):
    """A run folder cannot be read, resumed or written."""


class DivergedError(RunError):
    """A training's loss is no number any more; the same run would diverge again."""


class DataWarning(UserWarning):
    """Something about a data set that a user should know: what is left out or not read; told on one line."""
