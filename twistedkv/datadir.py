"""The directory of everything a member keeps, held by one process at a time."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from twisted.logger import Logger

LOCK_NAME = "lock"

_log = Logger()


class DataDirectoryError(Exception):
    """The directory cannot be had; the text is one line that names it and says why."""


class DataDirectory:
    """One member's claim on a directory.

    The lock is ``flock(2)``'s: it belongs to the open file, so that it ends with the process however that ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: int | None = None

    def claim(self) -> None:
        """Make the directory if there is none, and lock it until :meth:`release`.

        Raises:
            DataDirectoryError: it cannot be made or written to, or another process holds it.
        """
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirectoryError(f"cannot use the data directory {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            why = "another member is using it" if isinstance(error, BlockingIOError) else error.strerror
            raise DataDirectoryError(f"cannot lock the data directory {self._path}: {why}") from error
        self._lock = lock
        self._check_permissions()

    def release(self) -> None:
        """Let the next process in. A claim that was never made is let go as well."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _check_permissions(self) -> None:
        mode = stat.S_IMODE(self._path.stat().st_mode)
        if mode & 0o077:  # etcd client/pkg/fileutil/fileutil.go, CheckDirPermission: it warns, too
            _log.warn(
                "the data directory {path} has mode {mode}, and others can look into it; 0o700 would keep them out",
                path=self._path,
                mode=oct(mode),
            )
