"""Several real servers as one cluster, of either kind or of both."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.functional.processes import (
    EtcdProcess,
    ServerFailed,
    ServerProcess,
    TLSFiles,
    TwistedkvProcess,
    etcd_binary,
)
from tests.functional.tcpproxy import Network

Make = Callable[..., ServerProcess]
CTL_TIMEOUT_S = 30.0
PATIENCE_S = 20.0
_ASK_INTERVAL_S = 0.05


class ClusterOfProcesses:
    """Members that found a cluster together, and others that join it; mutual TLS between them and to clients.

    Args:
        directory: of everything they keep.
        kinds: of the founding members, :class:`EtcdProcess` or :class:`TwistedkvProcess`; their names are m1, m2 …
        options: of every member.
        secure: without it all is plaintext.
        tls: certificates of another cluster, instead of new ones.
        network: stands in front of every member's peer port.
    """

    def __init__(
        self,
        directory: Path,
        kinds: Sequence[Make],
        options: Sequence[str] = (),
        *,
        secure: bool = True,
        tls: TLSFiles | None = None,
        network: Network | None = None,
    ) -> None:
        self.directory = directory
        self.options = tuple(options)
        self.tls = (tls or TLSFiles.make(directory / "pki")) if secure else None
        self.network = network
        self.members: list[ServerProcess] = []
        for kind in kinds:
            self._make(kind)
        together = ",".join(f"{each.name}={reached_by(each)}" for each in self.members)
        for each in self.members:
            each.initial_cluster = together

    def _make(self, kind: Make) -> ServerProcess:
        name = f"m{len(self.members) + 1}"
        made = kind(self.directory / name, self.tls, self.options, name=name, peer_tls=self.tls)
        if self.network is not None:
            made.advertised_peer_url = self.network.front(made)
        self.members.append(made)
        return made

    def start(self) -> None:
        """Start all founding members and wait until they serve."""
        start_together(self.members)

    def kill_all(self) -> None:
        """End everything without ceremony; twice is no error."""
        for each in self.members:
            each.kill9()

    def add(self, kind: Make, *, learner: bool = False) -> ServerProcess:
        """Add a member by etcdctl and prepare its process, which is for the caller to start."""
        made = self._make(kind)
        arguments = ["member", "add", made.name, f"--peer-urls={reached_by(made)}", *(["--learner"] if learner else [])]
        try:
            said = self.ctl(*arguments, members=[each for each in self.members[:-1] if each.running])
        except ServerFailed:
            self.members.remove(made)
            raise
        made.initial_cluster = next(
            line.partition("=")[2].strip('"') for line in said.splitlines() if line.startswith("ETCD_INITIAL_CLUSTER=")
        )
        made.cluster_state = "existing"
        return made

    def ctl(self, *arguments: str, members: Sequence[ServerProcess] | None = None) -> str:
        """What the real etcdctl says.

        Raises:
            ServerFailed: it ended with an error.
        """
        asked = self.members if members is None else members
        command = [str(etcd_binary("etcdctl")), "--endpoints", ",".join(each.endpoint for each in asked)]
        if self.tls is not None:
            command += ["--cacert", str(self.tls.ca), "--cert", str(self.tls.client_cert)]
            command += ["--key", str(self.tls.client_key)]
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, timeout=CTL_TIMEOUT_S
        )
        if done.returncode:
            raise ServerFailed(f"etcdctl {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def ctl_json(self, *arguments: str, members: Sequence[ServerProcess] | None = None) -> Any:
        """The same as parsed JSON."""
        return json.loads(self.ctl(*arguments, "-w", "json", members=members))

    def status(self, member: ServerProcess) -> Any:
        """What ``endpoint status`` says of one member."""
        return self.ctl_json("endpoint", "status", members=[member])[0]["Status"]

    def id_of(self, member: ServerProcess) -> int:
        """The id of a running member."""
        found: int = self.status(member)["header"]["member_id"]
        return found

    def leader(self) -> ServerProcess:
        """The member that leads, as the first one that answers says.

        Raises:
            ServerFailed: nobody says.
        """
        running = [each for each in self.members if each.running]
        statuses = {each.name: self.status(each) for each in running}
        for each in running:
            status = statuses[each.name]
            if status.get("leader") == status["header"]["member_id"]:
                return each
        raise ServerFailed(f"nobody leads: {statuses}")

    def hashes(self, members: Sequence[ServerProcess] | None = None) -> set[int]:
        """What ``endpoint hashkv`` says of each member, as of one revision; one element if all are equal.

        Raises:
            ServerFailed: one does not have that revision yet, or does not answer.
        """
        asked = [each for each in self.members if each.running] if members is None else members
        revision = self.status(asked[0])["header"]["revision"]
        found = self.ctl_json("endpoint", "hashkv", f"--rev={revision}", members=asked)
        if len(found) != len(asked):
            raise ServerFailed(f"{len(found)} of {len(asked)} members said what their hash is")
        return {each["HashKV"]["hash"] for each in found}

    def wait_until_equal(self, members: Sequence[ServerProcess] | None = None) -> None:
        """Wait until all of them, by default all that run, have the same history.

        Raises:
            AssertionError: they have not in time.
        """
        until("the members have equal hashes", lambda: len(self.hashes(members)) == 1)


def reached_by(member: ServerProcess) -> str:
    """The peer URL that others know."""
    return member.advertised_peer_url or member.peer_url


def start_together(members: Sequence[ServerProcess]) -> None:
    """Start several members, none of which may be able to serve without the others, and wait until all do."""
    for each in members:
        each.spawn()
    for each in members:
        each.wait_until_ready()


def until(what: str, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Ask again and again until it is so: other processes tell nobody. A server that fails to answer is asked again.

    Raises:
        AssertionError: it is not so in time; the text says ``what``.
    """
    bell = threading.Event()  # which nobody rings: a pause between two questions
    deadline_s = time.monotonic() + patience_s
    problem: object = "it is not so"
    while True:
        try:
            if condition():
                return
        except ServerFailed as error:
            problem = error
        if time.monotonic() > deadline_s:
            raise AssertionError(f"{what}, after {patience_s} s: {problem}")
        bell.wait(_ASK_INTERVAL_S)


__all__ = ["ClusterOfProcesses", "EtcdProcess", "TwistedkvProcess", "reached_by", "start_together", "until"]
