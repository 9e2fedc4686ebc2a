"""Read tars from beginning to end before their recordings are asked for, in any order."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock, Thread

_BLOCK = 8 << 20  # bytes a read


class ReadAhead:
    """A thread that reads tars into the operating system's memory for files.

    Disks and network file systems give one long read faster than many short ones at random. What was read lies in
    memory that all processes of a machine share, and that the system takes back when it is needed: nothing is lost then
    but time. One process of a machine is enough.

    Args:
        paths: of the tars, by their numbers.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._lock = Lock()
        self._wanted: list[int] = []
        self._held: list[int] = []
        self._thread: Thread | None = None

    def __call__(self, shards: Sequence[int]) -> None:
        """Have tars read, in this order; those of the last call that are not among them are forgotten.

        Args:
            shards: their numbers.
        """
        with self._lock:
            self._held = [shard for shard in self._held if shard in shards]
            self._wanted = [shard for shard in shards if shard not in self._held]
            if self._wanted and self._thread is None:
                self._thread = Thread(target=self._run, name="read shards ahead", daemon=True)
                self._thread.start()

    def wait(self) -> list[int]:
        """Until everything is read; the numbers of the tars that are held."""
        thread = self._thread
        if thread is not None:
            thread.join()
        return list(self._held)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._thread = None
                    return
                shard = self._wanted[0]
            self._read(shard)
            with self._lock:
                if shard in self._wanted:
                    self._wanted.remove(shard)
                    self._held.append(shard)

    def _read(self, shard: int) -> None:
        try:
            with self.paths[shard].open("rb", buffering=0) as file:
                while shard in self._wanted and file.read(_BLOCK):
                    pass
        except OSError:
            return  # told where the recording is read, by name
