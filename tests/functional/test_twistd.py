"""``twistd twistedkv`` as a shell sees it: lines on standard error and exit statuses, daemonised or not."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twistedkv.datadir import DataDirectory

_ROOT = Path(__file__).resolve().parent.parent.parent
_TIMEOUT_S = 30.0


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.data = self.directory / "data"

    def twistd(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run twistd to its end; ``{}`` among the options stands for the data directory."""
        clean = {name: text for name, text in os.environ.items() if not name.startswith("TWISTEDKV_")}
        return subprocess.run(
            [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *options],
            cwd=self.directory,
            env={**clean, "PYTHONPATH": os.pathsep.join((str(_ROOT), str(_ROOT / "tap"))), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )

    def assert_refused(self, result: subprocess.CompletedProcess[str], pattern: str) -> None:
        self.assertEqual(result.returncode, 2, result.stdout + result.stderr)
        self.assertRegex(result.stderr, rf"\Atwistedkv: [^\n]*{pattern}[^\n]*\n\Z")
        self.assertFalse((self.directory / "twistd.pid").exists())

    def refuse_both(self, options: list[str], pattern: str) -> None:
        """The same line and status, whether twistd stays in the foreground or not."""
        self.assert_refused(self.twistd("-n", "twistedkv", *options), pattern)
        self.assert_refused(self.twistd("twistedkv", *options), pattern)


class RefusedStartTests(_Case):
    def test_unknown_option(self) -> None:
        """An unknown option is one line and status 2."""
        self.refuse_both(["--nonsense"], "unknown option --nonsense")

    def test_plaintext_in_the_environment(self) -> None:
        """A bad value in the environment is named by its variable."""
        result = self.twistd("-n", "twistedkv", TWISTEDKV_LISTEN_CLIENT_URLS="http://127.0.0.1:1")
        self.assert_refused(result, "TWISTEDKV_LISTEN_CLIENT_URLS.*--allow-plaintext")

    def test_directory_that_cannot_be_made(self) -> None:
        """A data directory that cannot be made is named with the reason."""
        self.refuse_both(["--data-dir=/dev/null/data"], "/dev/null/data: Not a directory")

    def test_directory_in_use(self) -> None:
        """A data directory that another member holds is refused."""
        holder = DataDirectory(self.data)
        holder.claim()
        self.addCleanup(holder.release)
        self.refuse_both([f"--data-dir={self.data}"], "another member is using it")

    def test_certificate_that_is_missing(self) -> None:
        """A certificate file that does not exist is named."""
        options = [f"--data-dir={self.data}", "--cert-file=none.crt", "--key-file=none.key"]
        options += ["--listen-client-urls=https://127.0.0.1:0"]
        self.refuse_both(options, "none")

    def test_port_taken(self) -> None:
        """A port that something else listens on is named, with the reason."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            options = [f"--data-dir={self.data}", f"--listen-client-urls=https://127.0.0.1:{port}"]
            self.refuse_both(options, f"127.0.0.1:{port}.*in use")


class DaemonTests(_Case):
    def end(self, pid: int) -> None:
        """Ask a process to end, and wait until it has."""
        with os.fdopen(os.pidfd_open(pid)) as process:
            os.kill(pid, signal.SIGTERM)
            ended, _, _ = select.select([process], [], [], _TIMEOUT_S)
        self.assertTrue(ended, "the daemon does not end")

    def test_returns_when_clients_can_connect(self) -> None:
        """twistd comes back with status 0 once the daemon serves, and SIGTERM ends it and its pid file."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        result = self.twistd("twistedkv", f"--data-dir={self.data}", f"--listen-client-urls=https://127.0.0.1:{port}")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        pid_file = self.directory / "twistd.pid"
        pid = int(pid_file.read_text())
        try:
            socket.create_connection(("127.0.0.1", port), _TIMEOUT_S).close()
            self.assertRegex((self.directory / "twistd.log").read_text(), "(?s)made its own certificates.*--cacert=")
        finally:
            self.end(pid)
        self.assertFalse(pid_file.exists())


class HelpTests(_Case):
    def test_help(self) -> None:
        """--help lists the options without starting anything."""
        result = self.twistd("twistedkv", "--help")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertTrue(re.search(r"^  --listen-client-urls=URLS$", result.stdout, re.MULTILINE))

    def test_tac(self) -> None:
        """The .tac file takes its options from the environment, and refuses them in the same way."""
        tac = str(_ROOT / "tap" / "twistedkv.tac")
        self.assert_refused(self.twistd("-noy", tac, TWISTEDKV_NAME="a b"), "TWISTEDKV_NAME is 'a b'")
        self.assert_refused(self.twistd("-noy", tac, TWISTEDKV_DATA_DIR="/dev/null/x"), "Not a directory")
