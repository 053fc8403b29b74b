"""States written beside training: copied to host memory between two steps, written to disk by a thread."""

import threading
from pathlib import Path

from ganops.errors import RunError
from ganops.training.state import HostCopy, write_state


class StateWriter:
    """Writes one state at a time; what goes wrong is raised in the training thread, at the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, path: Path, copy: HostCopy) -> None:
        """Begins to write; waits first for the state before it, should the disk be that slow.

        Raises:
            RunError: the state before it could not be written.
        """
        self.finish()
        # A daemon: a second Ctrl-C ends the process at once, and a half-written state has a temporary name.
        self._thread = threading.Thread(target=self._write, args=(path, copy), name="state", daemon=True)
        self._thread.start()

    def _write(self, path: Path, copy: HostCopy) -> None:
        try:
            write_state(path, copy)
        except BaseException as error:  # whatever it is, it belongs to the training thread
            self._error = error

    def check(self) -> bool:
        """Whether a state has become whole since the last call. Never waits.

        Raises:
            RunError: it could not be written.
        """
        if self._thread is None or self._thread.is_alive():
            return False
        return self.finish()

    def finish(self) -> bool:
        """Waits for the state being written; False if there is none.

        Raises:
            RunError: it could not be written.
        """
        if self._thread is None:
            return False
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if isinstance(error, RunError | OSError | MemoryError):
            raise RunError(str(error) or "out of memory while a state was written") from None
        if error is not None:
            raise error
        return True
