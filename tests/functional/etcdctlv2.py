"""The v2 commands of real etcdctl (``ETCDCTL_API=2``, in etcd's releases up to 3.5), and what they print."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from threading import Condition, Event, Thread
from typing import NamedTuple

from tests.functional.processes import ServerProcess, etcd_binary
from tests.functional.v2client import Request, V2Client

TIMEOUT_S = 20.0  # that one command may take
_ASK_INTERVAL_S = 0.005


class Outcome(NamedTuple):
    """What one command did, with everything masked that differs between two healthy servers."""

    command: str
    status: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"etcdctl {self.command}\n    exit status {self.status}, {self.stdout!r}, on stderr {self.stderr!r}"


class Etcdctl:
    """One binary of etcdctl for one server."""

    def __init__(self, server: ServerProcess, binary: Path | None = None) -> None:
        self.server = server
        self._begun: list[Running] = []
        self._command = [str(binary or etcd_binary("etcdctl")), "--endpoints", server.endpoint]
        if server.tls:
            self._command += ["--ca-file", str(server.tls.ca)]
            self._command += ["--cert-file", str(server.tls.client_cert), "--key-file", str(server.tls.client_key)]
        self._environment = {name: text for name, text in os.environ.items() if not name.startswith("ETCD")}
        self._environment |= {"ETCDCTL_API": "2", "GOMAXPROCS": "1"}  # with one it starts quicker

    def run(self, line: str) -> Outcome:
        """Run one command, written as for a shell, to its end."""
        words, done = shlex.split(line), self._done(line)
        in_order = "ls" not in words or "--sort" in words  # without it the order is that of a map of Go
        return Outcome(masked(line), done.returncode, masked(done.stdout, in_order), masked(done.stderr))

    def output(self, line: str) -> str:
        """What a command prints, with nothing masked."""
        return self._done(line).stdout

    def run_all(self, lines: Iterable[str]) -> list[Outcome]:
        """Run these commands one after the other."""
        return [self.run(line) for line in lines]

    def begin(self, line: str) -> Running:
        """Start a command that goes on until it is told to end."""
        running = Running(line, [*self._command, *shlex.split(line)], self._environment)
        self._begun.append(running)
        return running

    def kill(self) -> None:
        """End whatever was begun and still goes on, as after a failure."""
        for running in self._begun:
            running.kill()

    def _done(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *shlex.split(line)],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )


class Running:
    """A command that goes on; what it prints is read all the time."""

    def __init__(self, line: str, command: list[str], environment: dict[str, str]) -> None:
        self._line = line
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []
        self._more = Condition()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def until(self, text: str, times: int = 1) -> None:
        """Wait until this text was in so many lines.

        Raises:
            TimeoutError: it was not, within ``TIMEOUT_S``.
        """
        with self._more:
            if not self._more.wait_for(lambda: sum(text in line for line in self._lines) >= times, TIMEOUT_S):
                raise TimeoutError(f"{self._process.args!r} has not said {text!r} but {self._lines}")

    def end(self, by: signal.Signals | None = signal.SIGINT) -> Outcome:
        """End it, or let it come to its end; its output is of both streams, in their order.

        Raises:
            subprocess.TimeoutExpired: it does not end.
        """
        if by is not None:
            self._process.send_signal(by)
        status = self._process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return Outcome(masked(self._line), status, masked("".join(self._lines)), "")

    def kill(self) -> None:
        """End it without a chance to say anything; twice is no error."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                with self._more:
                    self._lines.append(line)
                    self._more.notify_all()


def watchers(server: ServerProcess) -> int:
    """How many watches of the v2 API a server has, by its own count."""
    return int(_store_stats(server)["watchers"])


def wait_for_watchers(server: ServerProcess, count: int) -> None:
    """Ask until there are exactly so many.

    Raises:
        TimeoutError: there are not, within ``TIMEOUT_S``.
    """
    wait_until(lambda: watchers(server) == count, f"{count} watchers of {server.label}")


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Ask until it holds.

    Raises:
        TimeoutError: it does not, within ``TIMEOUT_S``.
    """
    bell = Event()  # which nobody rings: a pause between two questions
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {TIMEOUT_S} s for {what}")
        bell.wait(_ASK_INTERVAL_S)


def v2_index(server: ServerProcess) -> int:
    """The index of a server's v2 store, as it stands in ``X-Etcd-Index``."""
    reply = _asked(server).ask(Request("GET", b"/v2/keys/"))
    return int(reply.one("X-Etcd-Index") or -1)


def get_status(server: ServerProcess, key: str) -> int:
    """The HTTP status of a GET of this key, 404 if there is none."""
    return _asked(server).ask(Request("GET", f"/v2/keys/{key}".encode())).status


def _store_stats(server: ServerProcess) -> dict[str, int]:
    stats: dict[str, int] = json.loads(_asked(server).ask(Request("GET", b"/v2/stats/store")).body)
    return stats


@cache
def _asked(server: ServerProcess) -> V2Client:
    return V2Client(server)  # kept open: it is asked over and over


_MASKS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\b(127\.0\.0\.1|localhost):\d+", r"\1:PORT"),
    (r"\b[0-9a-f]{14,16}\b", "ID"),
    (r'("expiration":)"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z"', r"\1TIME"),
    # What is left of a TTL is asked at slightly different times: up to the next ten seconds.
    (r'("ttl":|TTL: )(\d+)', lambda found: f"{found[1]}{-(-int(found[2]) // 10) * 10}"),
    (r'(?<=ETCD_INITIAL_CLUSTER=")[^"]*', lambda found: ",".join(sorted(found[0].split(",")))),  # the order of ids
)


def masked(output: str, in_order: bool = True) -> str:
    """The output without addresses, ids, and times; with ``in_order=False`` its lines are sorted."""
    for pattern, replacement in _MASKS:
        output = re.sub(pattern, replacement, output)
    return output if in_order else "".join(sorted(output.splitlines(keepends=True)))
