"""Where the log goes: twistd's choice of place, filtered by level, and rotated on SIGHUP."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, TextIO, cast

from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LegacyLogObserverWrapper,
    LogLevelFilterPredicate,
    textFileLogObserver,
)
from twisted.python.logfile import LogFile

_DAEMON_LOG = "twistd.log"  # twisted/scripts/_twistd_unix.py, UnixAppLogger


class Log:
    """The log of one process.

    Args:
        level: the least ``LogLevel`` that is written.
        write_to: an observer, or the path of a file, which is opened by :meth:`observer`.
    """

    def __init__(self, level: Any, write_to: str | Callable[[], ILogObserver]) -> None:
        self._level = level
        self._write_to = write_to
        self._file: LogFile | None = None
        self._previous: Any = None

    def observer(self) -> ILogObserver:
        """The observer that twistd begins to log to."""
        if isinstance(self._write_to, str):
            # Only a signal rotates it: logrotate, or whoever sends one, decides how long a file is.
            self._file = LogFile.fromFullPath(os.path.abspath(self._write_to), rotateLength=None)
            place: ILogObserver = textFileLogObserver(cast(TextIO, self._file))
        else:
            place = self._write_to()
        return FilteringLogObserver(place, [LogLevelFilterPredicate(defaultLogLevel=self._level)])

    def watch(self, reactor: IReactorFromThreads) -> None:
        """Rotate on SIGHUP from now on, if the log is a file. Whoever handled the signal before still gets it."""
        if self._file is None:
            return  # in a terminal SIGHUP means that the terminal is gone

        def rotate(number: int, frame: FrameType | None) -> None:
            reactor.callFromThread(self.rotate)
            if callable(self._previous):
                self._previous(number, frame)

        self._previous = signal.signal(signal.SIGHUP, rotate)

    def unwatch(self) -> None:
        """Leave SIGHUP to whoever had it before :meth:`watch`."""
        if self._previous is not None:
            signal.signal(signal.SIGHUP, self._previous)
            self._previous = None

    def rotate(self) -> None:
        """Go on in a new file: the old one is renamed to end in ``.1``, or was moved away by somebody else."""
        if self._file is None:
            return
        if self._is_in_place(self._file):
            self._file.rotate()
        else:
            self._file.reopen()

    @staticmethod
    def _is_in_place(file: LogFile) -> bool:
        try:
            return os.path.samestat(os.stat(file.path), os.fstat(file._file.fileno()))
        except FileNotFoundError:
            return False


def log_of_twistd(options: Mapping[str, Any], level: Any) -> Log | None:
    """The log that twistd's own options ask for; None leaves it to twistd, for an observer named by ``--logger``."""
    if options["logger"] is not None:
        return None
    if options["syslog"]:
        return Log(level, lambda: _syslog_observer(options["prefix"]))
    name = options["logfile"]
    if name == "-" or (not name and options["nodaemon"]):
        return Log(level, lambda: textFileLogObserver(sys.stdout))
    return Log(level, os.path.join(options["rundir"], name) if name else _DAEMON_LOG)


def _syslog_observer(prefix: str) -> ILogObserver:
    from twisted.python.syslog import SyslogObserver  # imports syslog, which not every platform has

    return LegacyLogObserverWrapper(cast(Any, SyslogObserver(prefix).emit))
