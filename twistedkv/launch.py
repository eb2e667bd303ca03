"""How a start went, told to whoever asked for it: one line on standard error, and the exit status.

By itself ``twistd`` turns an error of a start into a traceback and status 1, and once it has daemonised it tells its
caller no more than "an error has occurred". Here the process that the caller waits for hears from the daemon whether
the member serves, and passes its words and status on.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

START_FAILED_STATUS = 2
HALTED_STATUS = 1  # a member that served, and then had to stop itself

_STARTED = b"started"  # an error's text goes through the same pipe, and always ends in a newline
_SILENT = b"twistedkv: the process ended before the member served; its log may say why\n"


class Launch:
    """The start of one process, in the foreground or as a daemon."""

    def __init__(self) -> None:
        self._reader: int | None = None
        self._writer: int | None = None
        self._launcher = 0  # pid of the process that the caller waits for; 0 in the foreground

    def daemonise(self) -> None:
        """Make the coming ``fork`` of twistd return in the parent only when the child has started or failed.

        The parent of a failure ends right there, with the child's line and status.
        """
        self._reader, self._writer = os.pipe()
        self._launcher = os.getpid()
        os.register_at_fork(after_in_parent=self._await_daemon)

    def end_on_sigterm(self, reactor: Any) -> None:
        """Have SIGTERM end the process with status 0; called once the reactor runs.

        The reactor's own handler stops it as well, but twistd then raises the signal a second time, and whoever
        supervises the process sees one that was killed.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            signal.signal(number, signal.SIG_IGN)  # once is enough
            reactor.callFromThread(reactor.stop)

        signal.signal(signal.SIGTERM, stop)

    def started(self) -> None:
        """The member serves: whoever waits may go on."""
        self._tell(_STARTED)

    def failed(self, line: str) -> None:
        """The member could not start for the reason in ``line``: so it is told, and the process ends with status 2.

        Both happen when the process ends by itself, so that a caller who hears of it finds nothing left: no pid file,
        no lock.
        """
        text = _line(line)

        def say() -> None:
            if not self._tell(text):
                _write_error(text)

        _at_exit(START_FAILED_STATUS, say)

    def halted(self, line: str) -> None:
        """The member stops itself after it had started; the process ends with status 1 once it is done."""
        _write_error(_line(line))
        _at_exit(HALTED_STATUS)

    def _tell(self, verdict: bytes) -> bool:
        """Answer the waiting launcher, if there is one that has no answer yet."""
        if self._writer is None or self._reader is None:
            return False
        os.write(self._writer, verdict)
        os.close(self._writer)
        os.close(self._reader)
        self._reader = self._writer = None
        return True

    def _await_daemon(self) -> None:
        # twistd forks twice: the first child runs this after its own fork as well, and has nothing to wait for.
        if self._writer is None or self._reader is None or os.getpid() != self._launcher:
            return
        os.close(self._writer)  # the last writer is then the daemon: its end is the end of the pipe
        with open(self._reader, "rb") as pipe:
            verdict = pipe.read()
        self._reader = self._writer = None
        if verdict != _STARTED:
            _write_error(verdict or _SILENT)
            os._exit(START_FAILED_STATUS)


def _at_exit(status: int, last: Callable[[], object] = lambda: None) -> None:
    """Have this process end with ``status`` when it ends, after a call of ``last``.

    twistd returns from its reactor with status 0 whatever happened, and swallows a SystemExit raised inside; a function
    that runs at exit has the last word. Handlers registered before do not run after it.
    """

    def end() -> None:
        last()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)

    atexit.register(end)


def _line(text: str) -> bytes:
    return f"twistedkv: {text}\n".encode()


def _write_error(text: bytes) -> None:
    # Not sys.stderr, which twistd has made a part of the log.
    if sys.__stderr__ is not None:
        sys.__stderr__.write(text.decode(errors="replace"))
        sys.__stderr__.flush()
