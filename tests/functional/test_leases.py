"""Leases, locks and elections by real clients: etcdctl as against real etcd, and services that die and are noticed."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Event, Thread, Timer
from typing import Any

import grpc
from twisted.trial.unittest import SynchronousTestCase

from tests.functional.clients import GrpcClient
from tests.functional.processes import (
    MISSING_ETCD,
    EtcdProcess,
    ServerProcess,
    TLSFiles,
    TwistedkvProcess,
    etcd_binary,
)
from tests.functional.test_etcdctl import Command, etcdctl_environment, masked, run
from twistedkv.pb import rpc_pb2 as pb

_LONGEST_S = 30.0  # that one command may take
_LATE_S = 1.0  # a key may outlive its lease by this: looks are half a second apart


class Running:
    """One etcdctl that goes on until it is told to end."""

    def __init__(self, server: ServerProcess, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [str(etcd_binary("etcdctl")), *arguments],
            env=etcdctl_environment(server),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._watchdog = Timer(_LONGEST_S, self._process.kill)
        self._watchdog.start()

    def lines(self, count: int) -> list[str]:
        """Its next lines, fewer if it ends before."""
        assert self._process.stdout is not None
        lines = [self._process.stdout.readline() for _ in range(count)]
        return [masked(line) for line in lines if line]

    def end(self, by: signal.Signals | None = signal.SIGINT) -> tuple[int, list[str]]:
        """End it; its exit status and what was left of its output."""
        if by is not None:
            self._process.send_signal(by)
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            # The client's own log lines are masked to nothing; whether it had time for them says nothing of the server.
            rest = [line for line in map(masked, stdout.readlines()) if line]
        status = self._process.wait()
        self._watchdog.cancel()
        if status == -signal.SIGKILL:
            raise TimeoutError(f"{' '.join(self._process.args)} did not end by itself; it said {rest}")  # type: ignore[arg-type]
        return status, rest


def _keep_alive(server: ServerProcess, lease: str) -> Iterator[Any]:
    """The stream of renewals until the lease is revoked."""
    running = Running(server, "lease", "keep-alive", lease)
    yield running.lines(1)
    yield run(server, Command(("lease", "revoke", lease)))
    yield running.end(by=None)


def _leases(server: ServerProcess) -> Iterator[Any]:
    """Everything that etcdctl does with leases."""

    def etcdctl(line: str, *more: str) -> Any:
        return run(server, Command((*line.split(), *more)))

    def granted(ttl_s: int) -> str:
        made = subprocess.run(
            [str(etcd_binary("etcdctl")), "lease", "grant", str(ttl_s)],
            env=etcdctl_environment(server),
            capture_output=True,
            timeout=_LONGEST_S,
            check=True,
        )
        return made.stdout.decode().split()[1]

    yield etcdctl("lease list")
    for line in ("lease grant 300", "lease grant 9000000001", "lease grant x"):
        yield etcdctl(line)
    for form in ("json", "fields", "table"):
        yield etcdctl(f"lease grant 30 -w {form}")
    lease = granted(300)
    yield etcdctl(f"put --lease={lease} a/1 v")
    yield etcdctl(f"put --lease={lease} a/0 v")
    for form in ("simple", "fields"):
        yield _settled(etcdctl(f"lease timetolive {lease} -w {form}"))
    for form in ("simple", "json"):
        yield _settled(etcdctl(f"lease timetolive {lease} --keys -w {form}"))
    yield etcdctl("lease list")
    yield etcdctl(f"lease keep-alive --once {lease}")
    yield etcdctl(f"lease keep-alive --once {lease} -w json")
    yield etcdctl("get a/ --prefix -w fields")
    yield etcdctl(f"lease revoke {lease}")
    for line in ("revoke", "timetolive", "timetolive --keys", "keep-alive --once", "keep-alive"):
        yield etcdctl(f"lease {line} {lease}")
    yield etcdctl("get a/ --prefix -w fields")
    yield etcdctl("lease timetolive 1234 -w json")
    for line in ("lease revoke", "lease revoke zz", "lease timetolive", "lease keep-alive", "put b v --lease=1234"):
        yield etcdctl(line)
    for line in ("lease grant 0", "lease grant -- -5"):  # last, for they end soon
        yield etcdctl(line)
    yield from _keep_alive(server, granted(6))


def _settled(outcome: Any) -> Any:
    """The outcome without what passes, and with the two attached keys, which etcd names in no order, in one."""
    outcome = outcome._replace(stdout=re.sub(r'("ttl":|"TTL" : )2\d\d\b', r"\1N", outcome.stdout))
    return outcome._replace(
        stdout=re.sub(
            r'(?<=[\["])(a/\d|YS8[a-zA-Z0-9+/=]+)("?[ ,]"?)(a/\d|YS8[a-zA-Z0-9+/=]+)', _sorted, outcome.stdout
        )
    )


def _sorted(found: re.Match[str]) -> str:
    first, last = sorted((found[1], found[3]))
    return f"{first}{found[2]}{last}"


def _locks(server: ServerProcess) -> Iterator[Any]:
    """Locks: one after the other, with a command under them, and given up."""
    holder = Running(server, "lock", "m")
    yield holder.lines(1)
    waiter = Running(server, "lock", "m", "--", "sh", "-c", 'echo "$ETCD_LOCK_KEY" is held; exit 3')
    yield _until(server, "m/", 2)
    yield holder.end()
    yield waiter.lines(1)
    yield waiter.end(by=None)
    yield run(server, Command(("lock", "m", "echo", "free")))
    yield run(server, Command(("lock", "m", "--ttl=5", "nothing-of-this-name")))
    holder = Running(server, "lock", "m")
    yield holder.lines(1)
    waiter = Running(server, "lock", "m")
    yield _until(server, "m/", 2)
    yield waiter.end()
    yield _until(server, "m/", 1)
    yield holder.end(signal.SIGTERM)
    yield _until(server, "m/", 0)
    yield run(server, Command(("lock",)))


def _elections(server: ServerProcess) -> Iterator[Any]:
    """Elections: two candidates one after the other, and somebody who listens."""
    listener = Running(server, "elect", "-l", "e")
    first = Running(server, "elect", "e", "p1")
    yield first.lines(2)
    yield listener.lines(2)
    second = Running(server, "elect", "e", "p2")
    yield _until(server, "e/", 2)
    yield first.end()
    yield second.lines(2)
    yield listener.lines(2)
    yield second.end()
    yield _until(server, "e/", 0)
    yield listener.end()
    yield run(server, Command(("elect", "e")))


def _until(server: ServerProcess, prefix: str, count: int) -> str:
    """Wait until there are so many keys with a prefix.

    Raises:
        TimeoutError: there never are.
    """
    client = GrpcClient(server)
    request = pb.RangeRequest(key=prefix.encode(), range_end=prefix[:-1].encode() + b"0", count_only=True)
    deadline_s = time.monotonic() + _LONGEST_S
    try:
        while client.call(request).message.count != count:  # type: ignore[union-attr]
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"there are not {count} keys under {prefix}")
    finally:
        client.close()
    return f"{count} keys under {prefix}"


class EtcdctlLeaseTests(SynchronousTestCase):
    """etcdctl cannot tell one from the other."""

    skip = MISSING_ETCD

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        tls = TLSFiles.make(Path(scratch.name) / "tls")
        self.servers: list[ServerProcess] = []
        for kind in (EtcdProcess, TwistedkvProcess):
            server = kind(Path(scratch.name) / kind.label, tls)
            self.servers.append(server)
            self.addCleanup(server.stop)
            server.spawn()
        for server in self.servers:
            server.wait_until_ready()

    def compare(self, script: Callable[[ServerProcess], Iterator[Any]], least: int) -> None:
        with ThreadPoolExecutor(2) as pool:
            expected, found = pool.map(lambda server: list(script(server)), self.servers)
        self.assertGreaterEqual(len(expected), least)
        for number, (wanted, got) in enumerate(zip(expected, found, strict=True)):
            self.assertEqual(wanted, got, f"step {number} of {script.__name__}")

    def test_leases(self) -> None:
        """Granting, listing, asking, renewing and revoking print the same, errors included."""
        self.compare(_leases, 35)

    def test_locks(self) -> None:
        """Locks are passed on in order, commands under them end with their own status, and nothing is left behind."""
        self.compare(_locks, 13)

    def test_elections(self) -> None:
        """Candidates lead one after the other, and a listener sees each."""
        self.compare(_elections, 9)


class _Deletion(Thread):
    """Notes when a key is deleted."""

    def __init__(self, channel: grpc.Channel, key: bytes) -> None:
        super().__init__(daemon=True)
        self._channel = channel
        self._key = key
        self.deleted_s: Queue[float] = Queue()
        self.watching: Queue[bool] = Queue()

    def run(self) -> None:
        """Watch until it is gone."""
        requests: Queue[bytes] = Queue()
        create = pb.WatchCreateRequest(key=self._key)
        requests.put(pb.WatchRequest(create_request=create).SerializeToString())
        stream = self._channel.stream_stream("/etcdserverpb.Watch/Watch")(iter(requests.get, b""))
        for message in stream:
            response = pb.WatchResponse.FromString(message)
            if response.created:
                self.watching.put(True)
            if any(event.type == event.DELETE for event in response.events):
                self.deleted_s.put(time.monotonic())
                requests.put(b"")
                return


class RegistrationTests(SynchronousTestCase):
    """A service that registers itself under a lease, and dies."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.server = TwistedkvProcess(Path(scratch.name) / "server")
        self.addCleanup(self.server.stop)
        self.server.start()

    @contextmanager
    def connected(self) -> Iterator[grpc.Channel]:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(self.server.address, options) as channel:
            yield channel

    def register(self, channel: grpc.Channel, ttl_s: int) -> None:
        """A key on a lease."""
        for path, request in (
            ("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest(ID=7, TTL=ttl_s)),
            ("/etcdserverpb.KV/Put", pb.PutRequest(key=b"service", lease=7)),
        ):
            channel.unary_unary(path)(request.SerializeToString(), timeout=_LONGEST_S)

    def keep_alive(self, channel: grpc.Channel, pauses_s: Sequence[float]) -> tuple[float, float]:
        """Renew once after each pause; when the last renewal was asked for and when it was answered."""
        requests: Queue[bytes] = Queue()
        answers = channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")(iter(requests.get, b""))
        asked_s = answered_s = 0.0
        for pause_s in pauses_s:
            Event().wait(pause_s)  # time is what this is about
            asked_s = time.monotonic()
            requests.put(pb.LeaseKeepAliveRequest(ID=7).SerializeToString())
            self.assertEqual(pb.LeaseKeepAliveResponse.FromString(next(answers)).TTL, 2)
            answered_s = time.monotonic()
        requests.put(b"")
        return asked_s, answered_s

    def test_a_dead_service_is_noticed(self) -> None:
        """As long as the lease is kept alive the key is there; after the last renewal it lives the TTL, and a second
        later at most it is gone.
        """
        with self.connected() as channel:
            self.register(channel, 2)
            deletion = _Deletion(channel, b"service")
            deletion.start()
            deletion.watching.get(timeout=_LONGEST_S)
            asked_s, answered_s = self.keep_alive(channel, (1.5, 1.5, 1.5))
            deleted_s = deletion.deleted_s.get(timeout=_LONGEST_S)
            deletion.join(_LONGEST_S)
        self.assertGreaterEqual(deleted_s - asked_s, 2.0)
        self.assertLessEqual(deleted_s - answered_s, 2.0 + _LATE_S)

    def test_a_crash_of_the_server_ends_no_lease_early(self) -> None:
        """After ``kill -9`` the lease is there with its key, has at least its TTL from then on, and ends after it."""
        with self.connected() as channel:
            self.register(channel, 2)
        self.server.kill9()
        killed_s = time.monotonic()
        self.server.start()
        with self.connected() as channel:
            deletion = _Deletion(channel, b"service")
            deletion.start()
            deletion.watching.get(timeout=_LONGEST_S)
            started_s = time.monotonic()
            request = pb.LeaseTimeToLiveRequest(ID=7, keys=True).SerializeToString()
            answer = channel.unary_unary("/etcdserverpb.Lease/LeaseTimeToLive")(request, timeout=_LONGEST_S)
            response = pb.LeaseTimeToLiveResponse.FromString(answer)
            self.assertEqual((response.grantedTTL, list(response.keys)), (2, [b"service"]))
            deleted_s = deletion.deleted_s.get(timeout=_LONGEST_S)
            deletion.join(_LONGEST_S)
        self.assertGreaterEqual(deleted_s - killed_s, 2.0)
        self.assertLessEqual(deleted_s - started_s, 3.0 + _LATE_S)  # with the election timeout on top
