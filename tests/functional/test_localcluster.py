"""``make cluster`` as its user sees it: three members, one of which is killed and comes back."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from tests.functional.processes import MISSING_ETCD, ROOT

TIMEOUT_S = 90.0
_DICE = Random()


def six_ports() -> int:
    """The first of six loopback ports in a row that nobody listens on."""
    for _ in range(100):
        first = _DICE.randrange(20_000, 32_000)
        with ExitStack() as sockets:
            try:
                for port in range(first, first + 6):
                    sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no six free ports in a row")


class Said:
    """What a process prints, read as far as a line that fits."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.text = ""

    def until(self, pattern: str) -> re.Match[str]:
        """Read until a line matches."""
        assert self.process.stdout is not None
        while True:
            found = re.search(pattern, self.text, re.MULTILINE)
            if found:
                return found
            ready, _, _ = select.select([self.process.stdout], [], [], TIMEOUT_S)
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not data:
                raise AssertionError(f"no line like {pattern!r} in:\n{self.text}")
            self.text += data.decode()


class LocalClusterTests(SynchronousTestCase):
    skip = MISSING_ETCD

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name) / "data-cluster"
        self.first_port = six_ports()

    def spawn(self, *command: str) -> Said:
        """Start something that ends with the test."""
        clean = {name: text for name, text in os.environ.items() if not name.startswith(("ETCD", "TWISTEDKV_"))}
        paths = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "tap"), os.environ.get("PYTHONPATH", ""))))
        process = subprocess.Popen(
            command,
            cwd=self.directory.parent,
            env={**clean, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.addCleanup(self.end, process)
        return Said(process)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """SIGTERM, and wait; what does not end is killed and fails the test."""
        process.terminate()
        try:
            process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise

    def shell(self, line: str, attempts: int = 1) -> str:
        """What a line prints that somebody types in that directory, again if it fails so often."""
        for _ in range(attempts):
            done = subprocess.run(
                line,
                shell=True,
                cwd=self.directory.parent,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
            if not done.returncode:
                break
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def cluster(self) -> Said:
        return self.spawn(sys.executable, "-m", "twistedkv.cli", "cluster", f"--port={self.first_port}")

    def test_kill_one_and_bring_it_back(self) -> None:
        """Everything is done by the lines that are printed: put, kill, put, start again, read there, Ctrl-C."""
        said = self.cluster()
        status = said.until(r"^  (.*etcdctl.* )endpoint status -w table$")
        ctl = status[1]
        kill, again = said.until(r"^  (kill -9 \d+)  # m2; then  (.*)$").groups()
        said.until("^Ctrl-C")
        endpoints = re.search(r"--endpoints=(\S+)", ctl)
        assert endpoints is not None
        first, second, third = endpoints[1].split(",")

        def at(endpoint: str, *words: str, attempts: int = 1) -> str:
            return self.shell(f"{ctl.replace(endpoints[1], endpoint)}{shlex.join(words)}", attempts)

        self.assertEqual(self.shell(f"{ctl}endpoint status").count("\n"), 3)
        self.assertEqual(at(first, "put", "k", "one"), "OK\n")
        for endpoint in (second, third):
            self.assertEqual(at(endpoint, "get", "k", "--print-value-only"), "one\n")

        self.shell(kill)
        said.until(r"^m2 ended \(killed by SIGKILL\); again by  " + re.escape(again))
        # What is on its way to a leader that was killed is lost, and fails after its time, as with etcd.
        self.assertEqual(at(third, "put", "k", "two", attempts=3), "OK\n")
        back = self.spawn("/bin/sh", "-c", f"exec {again}")
        # etcdctl tries again until the member is there; a linearizable read shows that it has caught up.
        self.assertEqual(
            at(second, "--dial-timeout=30s", "--command-timeout=60s", "get", "k", "--print-value-only"), "two\n"
        )

        more = self.cluster()  # leaves alone what runs
        for name in ("m1", "m2", "m3"):
            more.until(f"^{name} runs already$")
        more.until("^Ctrl-C")

        said.process.send_signal(signal.SIGINT)
        said.until("^stopping$")
        self.assertEqual(said.process.wait(TIMEOUT_S), 0)
        self.assertEqual(back.process.wait(TIMEOUT_S), 0)  # started elsewhere, stopped with the rest

    def test_start_that_fails(self) -> None:
        """A port that is taken is told with the member's own words, and nothing is left running."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", self.first_port + 2))
            taken.listen()
            said = self.cluster()
            said.until("^twistedkv: .*" + str(self.first_port + 2))
            said.until("m2 does not serve")
            self.assertEqual(said.process.wait(TIMEOUT_S), 1)
        for name in ("m1", "m2", "m3"):
            pid = int((self.directory / name / "pid").read_text())
            self.assertRaises(ProcessLookupError, os.kill, pid, 0)
