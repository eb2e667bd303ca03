"""A cluster of three members on this machine, to try things with: what ``make cluster`` runs.

Each member is a process of its own, started by a script that anybody can run as well: kill any member, start it again
by its script, and it catches up. One authority vouches for all of them, and they listen on loopback only. Whoever
started them waits until Ctrl-C, and then stops them one after another. Everything here blocks.
"""

from __future__ import annotations

import fcntl
import http.client
import os
import select
import shlex
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Final, NamedTuple

from twistedkv.certs import Certificates, ensure_certificates
from twistedkv.datadir import LOCK_NAME
from twistedkv.service import etcdctl

HOST: Final = "127.0.0.1"
NAMES: Final = ("m1", "m2", "m3")
PORTS: Final = ((2379, 2380), (22379, 22380), (32379, 32380))  # for clients and for peers; etcd's Procfile
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
INTERVAL_S: Final = 0.1  # between two looks at a member that starts

_TWISTD: Final = "from twisted.scripts.twistd import run; run()"
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SCRIPT: Final = """\
#!/bin/sh
# Starts member {name} of this cluster in the foreground, with its log in the file beside this one. Ctrl-C stops it.
# `twistedkvctl cluster` writes this file anew each time.
echo $$ > {pid_file}
exec {command}
"""


class LocalClusterError(Exception):
    """The cluster cannot be had; the text says why, and may end with a member's log."""


class _Stop(BaseException):
    """Somebody wants the cluster to stop."""


class Member(NamedTuple):
    """One member and its files."""

    name: str
    directory: Path  # absolute
    client_port: int
    peer_port: int

    @property
    def endpoint(self) -> str:
        """Where clients reach it."""
        return f"https://{HOST}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        """Where the others reach it."""
        return f"https://{HOST}:{self.peer_port}"

    @property
    def data(self) -> Path:
        """Its data directory."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """Its log."""
        return self.directory / "log"

    @property
    def script(self) -> Path:
        """What starts it."""
        return self.directory / "start.sh"

    @property
    def pid_file(self) -> Path:
        """Which process the script became last."""
        return self.directory / "pid"


class LocalCluster:
    """Three members below one directory.

    Args:
        directory: is made if it is missing.
        first_port: the first of six in a row; ``None`` takes :data:`PORTS`.
        say: prints one line.
    """

    def __init__(self, directory: Path, first_port: int | None, say: Callable[[str], None]) -> None:
        ports = PORTS if first_port is None else tuple((first_port + 2 * n, first_port + 2 * n + 1) for n in range(3))
        self.directory = directory.absolute()
        self.members = [Member(name, self.directory / name, *pair) for name, pair in zip(NAMES, ports, strict=True)]
        self._say = say
        self._processes: dict[str, subprocess.Popen[bytes]] = {}  # started here and not known to have ended
        self._stopping = False
        self._starting = False  # a process that is just made must not be lost

    def run(self) -> None:
        """Start the members that do not run, say how to talk to them, and stop all of them when told to.

        Raises:
            LocalClusterError: they do not start; those that were started are stopped.
            CertificateFileError, OSError: the files cannot be made.
        """
        before = {number: signal.signal(number, self._told_to_stop) for number in _STOP_SIGNALS}
        try:
            files = self.prepare()
            self._start()
            self._wait_until_healthy(files)
            self._explain(files)
            self._watch()
        except _Stop:
            self._stopping = True
            self._say("stopping")
            for member in self.members:
                self._stop(member)
        finally:
            self._stopping = True
            for process in self._processes.values():
                _end(process)
            for number, handler in before.items():
                signal.signal(number, handler)

    def prepare(self) -> Certificates:
        """Make certificates, directories and scripts.

        Raises:
            LocalClusterError: the members there have other ports, which they would not give up.
        """
        files = ensure_certificates(self.directory / "pki", (HOST,))
        for member in self.members:
            member.directory.mkdir(mode=0o700, exist_ok=True)
            script = self.script_of(member, files)
            if member.data.exists() and member.script.exists():
                before = member.script.read_text()
                if not all(f"={each}" in before for each in (member.endpoint, member.peer_url)):
                    raise LocalClusterError(
                        f"the members in {self.directory} have other ports: expected those, or no such directory"
                    )
            unfinished = member.script.with_name("start.sh.new")
            unfinished.write_text(script)
            unfinished.chmod(0o755)
            unfinished.replace(member.script)
        return files

    def script_of(self, member: Member, files: Certificates) -> str:
        """The text of a member's script."""
        options = {
            "name": member.name,
            "data-dir": member.data,
            "listen-client-urls": member.endpoint,
            "advertise-client-urls": member.endpoint,
            "listen-peer-urls": member.peer_url,
            "initial-advertise-peer-urls": member.peer_url,
            "initial-cluster": ",".join(f"{each.name}={each.peer_url}" for each in self.members),
            "initial-cluster-token": "local-cluster",
            "cert-file": files.server.certificate,
            "key-file": files.server.key,
            "trusted-ca-file": files.ca.certificate,
            "peer-cert-file": files.peer.certificate,
            "peer-key-file": files.peer.key,
            "peer-trusted-ca-file": files.ca.certificate,
        }
        twistd = [sys.executable, "-c", _TWISTD, "--nodaemon", "--pidfile=", f"--logfile={member.log}", "twistedkv"]
        lines = [shlex.join(twistd), *(shlex.quote(f"--{flag}={value}") for flag, value in options.items())]
        return _SCRIPT.format(
            name=member.name, pid_file=shlex.quote(str(member.pid_file)), command=" \\\n  ".join(lines)
        )

    # --- steps of run ------------------------------------------------------------------------------------------------

    def _told_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            return  # once is enough
        self._stopping = True
        if not self._starting:
            raise _Stop

    def _start(self) -> None:
        self._starting = True
        for member in self.members:
            if is_running(member):
                self._say(f"{member.name} runs already")
            elif not self._stopping:
                # In a group of its own: Ctrl-C is for us, and they are stopped in order.
                self._processes[member.name] = subprocess.Popen(
                    [member.script], stdin=subprocess.DEVNULL, process_group=0
                )
        self._starting = False
        if self._stopping:
            raise _Stop

    def _wait_until_healthy(self, files: Certificates) -> None:
        context = ssl.create_default_context(cafile=files.ca.certificate)
        context.load_cert_chain(files.client.certificate, files.client.key)
        deadline = monotonic() + START_TIMEOUT_S
        waiting = list(self.members)
        while waiting:
            ended = [each for each in self.members if self._has_ended(each)]
            if ended or monotonic() > deadline:
                lost = (ended or waiting)[0]
                raise LocalClusterError(f"{lost.name} does not serve; its log {lost.log} ends:\n{_tail(lost)}")
            waiting = [each for each in waiting if not is_healthy(each, context)]
            if waiting:
                self._pause()

    def _has_ended(self, member: Member) -> bool:
        process = self._processes.get(member.name)
        return process is not None and process.poll() is not None

    def _pause(self) -> None:
        """Wait a little, or until one of ours ends."""
        with ExitStack() as opened:
            ours = [os.pidfd_open(process.pid) for process in self._processes.values()]
            for each in ours:
                opened.callback(os.close, each)
            select.select(ours, [], [], INTERVAL_S)

    def _explain(self, files: Certificates) -> None:
        endpoints = ",".join(member.endpoint for member in self.members)
        ca, certificate, key = (
            _shown(path) for path in (files.ca.certificate, files.client.certificate, files.client.key)
        )
        self._say("Three members are up, each with its data, its log and its script in a directory of its own:")
        for member in self.members:
            self._say(f"  {member.name}  {member.endpoint}  pid {self._pid(member)}  {_shown(member.directory)}")
        self._say("Talk to them:")
        self._say(
            f"  {_shown(Path(etcdctl()))} --endpoints={endpoints} --cacert={ca} --cert={certificate} --key={key} "
            "endpoint status -w table"
        )
        self._say("Kill one, and the other two go on; start it again in another terminal, and it catches up:")
        for member in self.members:
            self._say(f"  kill -9 {self._pid(member)}  # {member.name}; then  {_shown(member.script)}")
        self._say("Ctrl-C stops all of them; to begin anew, remove " + _shown(self.directory) + ".")

    def _watch(self) -> None:
        """Tell of members that end, until somebody wants all of them to."""
        while True:
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:  # none of ours is left; others may have been started by their scripts
                signal.pause()
            for member in self.members:
                process = self._processes.get(member.name)
                if process is not None and process.poll() is not None:
                    del self._processes[member.name]
                    self._say(f"{member.name} ended ({_how(process.returncode)}); again by  {_shown(member.script)}")

    def _stop(self, member: Member) -> None:
        """Stop a member that runs, whoever started it."""
        process = self._processes.pop(member.name, None)
        if process is not None:
            _end(process)
        elif is_running(member):
            pid = self._pid(member)
            if not _end_other(pid, str(member.data)):
                self._say(f"{member.name} runs on: process {pid} is not it, or does not stop")

    def _pid(self, member: Member) -> int:
        """The member's process; 0 if that is not known."""
        process = self._processes.get(member.name)
        if process is not None:
            return process.pid  # the script becomes the member
        try:
            return int(member.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return 0


def is_running(member: Member) -> bool:
    """Whether a process holds the member's data."""
    try:
        lock = os.open(member.data / LOCK_NAME, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def is_healthy(member: Member, context: ssl.SSLContext) -> bool:
    """Whether the member serves clients and knows a leader."""
    connection = http.client.HTTPSConnection(HOST, member.client_port, timeout=5, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_other(pid: int, word: str) -> bool:
    """End a process that is not our child, if ``word`` is in its command line; whether it is gone."""
    try:
        process = os.pidfd_open(pid)  # from here on nobody else can have its number
    except OSError:
        return False
    try:
        if word.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return False
        signal.pidfd_send_signal(process, signal.SIGTERM)
        return bool(select.select([process], [], [], STOP_TIMEOUT_S)[0])
    except (FileNotFoundError, ProcessLookupError):
        return True
    finally:
        os.close(process)


def _how(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _tail(member: Member) -> str:
    try:
        return "\n".join(member.log.read_text(errors="replace").splitlines()[-10:])
    except FileNotFoundError:
        return "(there is none)"


def _shown(path: Path) -> str:
    """The path as one would type it here."""
    with suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))
