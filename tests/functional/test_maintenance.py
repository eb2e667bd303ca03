"""Snapshots, defragmentation, alarms, mirrors and checks, with etcd's own tools and a real etcd on the other side."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from google.protobuf.message import Message
from twisted.trial.unittest import SynchronousTestCase

from tests.functional.clients import SNAPSHOT, GrpcClient, connect_http
from tests.functional.differential import equal
from tests.functional.operations import Door, Step
from tests.functional.processes import (
    MISSING_ETCD,
    EtcdProcess,
    ServerProcess,
    TLSFiles,
    TwistedkvProcess,
    etcd_binary,
    free_ports,
)
from tests.functional.test_etcdctl import Command, run
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.pb.health_pb2 import HealthCheckRequest
from twistedkv.storage.bbolt import BoltReader

_TIMEOUT_S = 120
_EVERYTHING = pb.RangeRequest(key=b"\0", range_end=b"\0")


class ServersCase(SynchronousTestCase):
    """Servers that are started for a test and end with it."""

    skip = MISSING_ETCD

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.directory = Path(scratch.name)
        self.tls = TLSFiles.make(self.directory / "tls")

    def start(self, *servers: ServerProcess) -> None:
        """Start them side by side."""
        for server in servers:
            self.addCleanup(server.stop)
            server.spawn()
        for server in servers:
            server.wait_until_ready()

    def client(self, server: ServerProcess) -> GrpcClient:
        """A connection to one of them."""
        client = GrpcClient(server)
        self.addCleanup(client.close)
        return client

    def tool(self, name: str, *arguments: str, server: ServerProcess | None = None) -> str:
        """What ``etcdctl`` or ``etcdutl`` prints; the test fails if it does."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
        environment["ETCDCTL_API"] = "3"
        if server is not None:
            environment["ETCDCTL_ENDPOINTS"] = server.endpoint
            if server.tls is not None:
                files = {"CACERT": server.tls.ca, "CERT": server.tls.client_cert, "KEY": server.tls.client_key}
                environment |= {f"ETCDCTL_{name}": str(path) for name, path in files.items()}
        done = subprocess.run(
            [str(etcd_binary(name)), *arguments],
            env=environment,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
            text=True,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout


def write_history(client: GrpcClient) -> None:
    """Something of everything: old revisions, tombstones, a compaction, large and empty values, wide transactions."""
    for number in range(60):
        put = pb.PutRequest(key=b"key/%03d" % (number % 40), value=b"value %d" % number * (number % 17))
        client.call(put)
    client.call(pb.PutRequest(key=b"large", value=bytes(range(256)) * 400))
    client.call(pb.DeleteRangeRequest(key=b"key/010", range_end=b"key/020"))
    client.call(pb.CompactionRequest(revision=30, physical=True))
    puts = [pb.RequestOp(request_put=pb.PutRequest(key=b"wide/%03d" % number, value=b"w")) for number in range(100)]
    client.call(pb.TxnRequest(success=puts))
    client.call(pb.DeleteRangeRequest(key=b"large"))
    client.call(pb.PutRequest(key=b"\xff\xff", value=b""))


def buckets_of(server: ServerProcess, client: GrpcClient) -> dict[bytes, dict[bytes, bytes]]:
    """What a snapshot of a server holds, its hash checked."""
    answers = [pb.SnapshotResponse.FromString(message) for message in client.open(SNAPSHOT.path, iter([b""]))]
    data = b"".join(each.blob for each in answers[:-1])
    assert answers[-1].blob == hashlib.sha256(data).digest(), f"{server.label}: wrong hash"
    assert [each.remaining_bytes for each in answers[-2:]] == [0, 0]
    assert not any(each.HasField("header") for each in answers)
    reader = BoltReader(data)
    return {name: dict(reader.items(name)) for name in reader.buckets}


class SnapshotTests(ServersCase):
    """``etcdctl snapshot save`` and what becomes of the file."""

    def test_a_real_etcd_starts_from_it(self) -> None:
        """etcd's tools read, check and restore it; the etcd that starts has our keys, revisions and hash."""
        server = TwistedkvProcess(self.directory / "ours", self.tls)
        self.start(server)
        client = self.client(server)
        write_history(client)
        file = str(self.directory / "snap.db")
        self.assertIn("Snapshot saved", self.tool("etcdctl", "snapshot", "save", file, server=server))
        hashed = client.call(pb.HashKVRequest()).message
        kept = client.call(_EVERYTHING).message
        assert isinstance(hashed, pb.HashKVResponse)
        assert isinstance(kept, pb.RangeResponse)
        size = Path(file).stat().st_size - 32
        for name in ("etcdutl", "etcdctl"):
            status = json.loads(self.tool(name, "snapshot", "status", file, "-w", "json"))
            self.assertEqual((status["revision"], status["totalSize"]), (kept.header.revision, size))
            self.assertGreater(status["totalKey"], kept.count)
        etcd = EtcdProcess(self.directory / "theirs", self.tls)
        self.tool(
            *("etcdutl", "snapshot", "restore", file, "--data-dir", str(etcd.directory / "data"), "--name", "m1"),
            *("--initial-cluster", f"m1={etcd.peer_url}", "--initial-advertise-peer-urls", etcd.peer_url),
        )
        self.start(etcd)
        restored = self.client(etcd)
        again = restored.call(pb.HashKVRequest()).message
        assert isinstance(again, pb.HashKVResponse)
        self.assertEqual((again.hash, again.compact_revision), (hashed.hash, hashed.compact_revision))
        found = restored.call(_EVERYTHING).message
        assert isinstance(found, pb.RangeResponse)
        self.assertEqual(list(found.kvs), list(kept.kvs))
        self.assertEqual(found.header.revision, kept.header.revision)
        for revision in (30, 45):
            old = pb.RangeRequest(key=b"\0", range_end=b"\0", revision=revision)
            answers = [each.call(old).message for each in (client, restored)]
            self.assertEqual(*(list(answer.kvs) for answer in answers if isinstance(answer, pb.RangeResponse)))

    def test_it_holds_what_etcds_own_holds(self) -> None:
        """Of the same history both servers' snapshots hold the same buckets and the same keys with the same bytes."""
        servers = [TwistedkvProcess(self.directory / "ours"), EtcdProcess(self.directory / "theirs")]
        self.start(*servers)
        clients = [self.client(server) for server in servers]
        for client in clients:
            write_history(client)
        ours, theirs = (buckets_of(*each) for each in zip(servers, clients, strict=True))
        self.assertEqual(ours.keys(), theirs.keys())
        for name in (b"key", b"alarm", b"auth", b"authUsers", b"authRoles", b"lease", b"cluster", b"members_removed"):
            self.assertEqual(ours[name], theirs[name], name)
        self.assertEqual(ours[b"meta"].keys(), theirs[b"meta"].keys())
        for name in (b"scheduledCompactRev", b"finishedCompactRev"):
            self.assertEqual(ours[b"meta"][name], theirs[b"meta"][name])
        for buckets in (ours, theirs):
            (key, value), *others = buckets[b"members"].items()
            self.assertEqual(others, [])
            member, state = json.loads(value), json.loads(buckets[b"meta"][b"confState"])
            self.assertEqual((b"%x" % member["id"], member["name"]), (key, "m1"))
            self.assertEqual(state, {"voters": [member["id"]], "auto_leave": False})
            self.assertEqual(len(buckets[b"meta"][b"consistent_index"]), 8)

    def test_writes_go_on_meanwhile(self) -> None:
        """What is written while it is made is in it up to one revision and not beyond, and no write waits for it."""
        server = TwistedkvProcess(self.directory / "ours")
        self.start(server)
        client, writer = self.client(server), self.client(server)
        for start in range(0, 20_000, 100):
            puts = [
                pb.RequestOp(request_put=pb.PutRequest(key=b"k%06d" % n, value=b"v" * 100))
                for n in range(start, start + 100)
            ]
            client.call(pb.TxnRequest(success=puts))
        stop = threading.Event()

        def write() -> list[float]:
            waited, number = [], 0
            while not stop.is_set():
                began = time.monotonic()
                writer.call(pb.PutRequest(key=b"counter", value=b"%d" % number))
                waited.append(time.monotonic() - began)
                number += 1
            return waited

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            try:
                found = [buckets_of(server, client) for _ in range(3)]
            finally:
                stop.set()
            waited = writing.result()
        for buckets in found:
            counted = [value for value in buckets[b"key"].values() if b"counter" in value]
            self.assertEqual(len(buckets[b"key"]), 20_000 + len(counted))
            last = max(int.from_bytes(key[:8], "big") for key in buckets[b"key"])
            self.assertEqual(last, 201 + len(counted))  # no revision is missing
        self.assertGreater(len(waited), 20)
        self.assertLess(max(waited), 2.0)


class DefragmentTests(ServersCase):
    """``etcdctl defrag``."""

    def test_space_returns_while_clients_are_served(self) -> None:
        """The files get smaller, and no put or get of another client waits for it."""
        server = TwistedkvProcess(self.directory / "ours")
        self.start(server)
        client, other = self.client(server), self.client(server)
        for number in range(600):
            client.call(pb.PutRequest(key=b"key%d" % (number % 3), value=bytes(100_000)))
        client.call(pb.CompactionRequest(revision=600, physical=True))
        data = server.directory / "data"
        full = sum(file.stat().st_size for file in data.glob("*.db*"))
        stop = threading.Event()

        def use() -> list[float]:
            waited: list[float] = []
            while not stop.is_set():
                began = time.monotonic()
                other.call(pb.PutRequest(key=b"other", value=b"%d" % len(waited)))
                other.call(pb.RangeRequest(key=b"other"))
                waited.append(time.monotonic() - began)
            return waited

        with ThreadPoolExecutor(1) as pool:
            using = pool.submit(use)
            try:
                self.assertIn("Finished defragmenting", self.tool("etcdctl", "defrag", server=server))
            finally:
                stop.set()
            waited = using.result()
        self.assertLess(sum(file.stat().st_size for file in data.glob("*.db*")), full // 4)
        self.assertGreater(len(waited), 3)
        self.assertLess(max(waited), 1.0)
        status = client.call(pb.StatusRequest()).message
        assert isinstance(status, pb.StatusResponse)
        self.assertLess(status.dbSize, full // 4)


class AnswersTests(ServersCase):
    """Alarms, leadership, downgrade and health next to a real etcd."""

    def setUp(self) -> None:
        super().setUp()
        self.servers = [EtcdProcess(self.directory / "theirs"), TwistedkvProcess(self.directory / "ours")]
        self.start(*self.servers)
        self.clients = [self.client(server) for server in self.servers]
        self.ids = []
        for client in self.clients:
            status = client.call(pb.StatusRequest()).message
            assert isinstance(status, pb.StatusResponse)
            self.ids.append(status.header.member_id)

    def compare(self, *requests: Message | Callable[[int], Message]) -> None:
        """Send each to both, or what a function makes of the member's id; ids and terms may differ."""
        for request in requests:
            each = [request(me) if callable(request) else request for me in self.ids]
            expected, found = (client.call(asked) for client, asked in zip(self.clients, each, strict=True))
            self.assertTrue(equal(Step(Door.GRPC, each[1]), expected, found), f"{each[1]}: {expected} {found}")

    def get(self, path: str) -> list[tuple[int, bytes]]:
        """Status and body of a plain endpoint of both."""
        answers = []
        for server in self.servers:
            connection = connect_http(server, 10)
            connection.request("GET", path)
            answer: http.client.HTTPResponse = connection.getresponse()
            answers.append((answer.status, answer.read()))
            connection.close()
        return answers

    def test_move_leader(self) -> None:
        """To itself a sole member may give leadership; others are not there."""
        move = pb.MoveLeaderRequest
        self.compare(move(), move(targetID=1), lambda me: move(targetID=me))

    def test_downgrade(self) -> None:
        """What may be asked for is answered alike; what etcd 3.5.1 records without ever answering, we answer."""
        good = ("3.4", "3.4.0", "3.4.9", "03.4", "3.4.0-rc.1", "3.4.0+b")
        bad = ("", "x", "v3.4", "3.5.0", "3.6.0", "3.3", "3", "3.-4", "3.4.0.0", "+3.4")
        self.compare(*(pb.DowngradeRequest(version=version) for version in good + bad))
        self.compare(pb.DowngradeRequest(action=7, version="3.4"), pb.DowngradeRequest(action=2))
        self.compare(pb.DowngradeRequest(action=1, version="3.6"))
        ours = self.clients[1]
        for action in (pb.DowngradeRequest.ENABLE, pb.DowngradeRequest.CANCEL):
            request = pb.DowngradeRequest(action=action, version="3.4.0")
            with ThreadPoolExecutor(1) as pool:
                theirs = pool.submit(self.clients[0].call, request, 1.0)
                answer = ours.call(request)
                self.assertIn(theirs.result().code, (4, 14))  # whichever time-out comes first
            self.assertEqual(answer.code, 0, answer.text)
            assert isinstance(answer.message, pb.DowngradeResponse)
            self.assertEqual(answer.message.version, "3.5.0")
            self.compare(request, pb.DowngradeRequest(version="3.4"))
            self.servers[1].restart()
            self.clients[1].close()
            ours = self.clients[1] = self.client(self.servers[1])

    def test_corrupt(self) -> None:
        """A CORRUPT alarm refuses writes, leaves reads, and is what /health says, until each member's is disarmed."""
        activate, deactivate = pb.AlarmRequest.ACTIVATE, pb.AlarmRequest.DEACTIVATE
        self.compare(lambda me: pb.AlarmRequest(action=activate, memberID=me, alarm=pb.CORRUPT))
        self.compare(lambda me: pb.AlarmRequest(action=activate, memberID=me, alarm=pb.CORRUPT))
        self.compare(*(pb.AlarmRequest(alarm=kind) for kind in (0, 1, 2, 9)))
        puts = [pb.RequestOp(request_put=pb.PutRequest(key=b"a"))]
        gets = [pb.RequestOp(request_range=pb.RangeRequest(key=b"a"))]
        self.compare(pb.PutRequest(key=b"a"))
        self.compare(pb.DeleteRangeRequest(key=b"a"))
        self.compare(pb.TxnRequest(success=puts), pb.TxnRequest(success=gets))
        self.compare(pb.CompactionRequest(revision=1))
        self.compare(pb.RangeRequest(key=b"a"), pb.RangeRequest(key=b"a", serializable=True))
        self.compare(pb.LeaseGrantRequest(TTL=5))
        self.compare_health(b"ALARM CORRUPT", b"NOSPACE", b"CORRUPT")
        self.compare(lambda me: pb.AlarmRequest(action=deactivate, memberID=me, alarm=pb.NOSPACE))
        self.compare(lambda me: pb.AlarmRequest(action=deactivate, memberID=me, alarm=pb.CORRUPT))
        self.compare(pb.AlarmRequest())
        self.compare(pb.PutRequest(key=b"a"))

    def test_no_space(self) -> None:
        """A NOSPACE alarm refuses what takes space and leaves the rest; ``etcdctl alarm`` lists and disarms it."""
        self.compare(lambda me: pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=me, alarm=pb.NOSPACE))
        self.compare(pb.PutRequest(key=b"a", value=b"b"))
        self.compare(pb.DeleteRangeRequest(key=b"a"))
        self.compare(pb.RangeRequest(key=b"a"))
        self.compare_health(b"ALARM NOSPACE", b"CORRUPT", b"NOSPACE")
        for line in ("alarm list", "alarm disarm", "alarm list", "put a b"):
            expected, found = (run(server, Command(tuple(line.split()))) for server in self.servers)
            self.assertEqual(found, expected, line)

    def compare_health(self, reason: bytes, other: bytes, own: bytes) -> None:
        """/health of both, with each alarm excluded and without."""
        for query in (b"", b"?exclude=" + other, b"?exclude=" + own, b"?exclude=" + other + b"&exclude=" + own):
            expected, found = self.get("/health" + query.decode())
            self.assertEqual(found, expected, query)
            self.assertEqual(reason in found[1], not query.endswith(own))

    def test_probes_over_grpc(self) -> None:
        """The health service's answers, for the server and for names that nobody has."""
        path = "/grpc.health.v1.Health/"
        for name in ("", "etcdserverpb.KV", "nobody"):
            request = HealthCheckRequest(service=name).SerializeToString()
            expected, found = (client.call_raw(path + "Check", request) for client in self.clients)
            self.assertEqual(found, expected, name)
            streams = [client.open(path + "Watch", iter([request])) for client in self.clients]
            first, second = (next(stream) for stream in streams)
            self.assertEqual(second, first, name)
            for stream in streams:
                stream.cancel()


class MirrorTests(ServersCase):
    """``etcdctl make-mirror``."""

    def test_to_and_from_a_real_etcd(self) -> None:
        """What is there is copied, and what is written and deleted meanwhile follows, in either direction."""
        ours, theirs = TwistedkvProcess(self.directory / "ours"), EtcdProcess(self.directory / "theirs")
        self.start(ours, theirs)
        for source, target in ((ours, theirs), (theirs, ours)):
            prefix = f"from {source.label}/".encode()
            writer, reader = self.client(source), self.client(target)
            for number in range(100):  # a transaction of the mirror's takes no more than 128 deletions
                writer.call(pb.PutRequest(key=prefix + b"%03d" % number, value=b"before"))
            command = [str(etcd_binary("etcdctl")), "--endpoints", source.endpoint, "make-mirror", target.address]
            command += ["--prefix", prefix.decode(), "--dest-insecure-transport"]
            environment = {**os.environ, "ETCDCTL_API": "3"}
            with (self.directory / "mirror.log").open("ab") as log:
                mirror = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            self.addCleanup(mirror.wait)
            self.addCleanup(mirror.kill)
            everything = pb.RangeRequest(key=prefix, range_end=prefix[:-1] + b"0")
            self.wait_for(reader, everything, {prefix + b"%03d" % number: b"before" for number in range(100)})
            writer.call(pb.PutRequest(key=prefix + b"new", value=b"after"))
            writer.call(pb.DeleteRangeRequest(key=prefix + b"000", range_end=prefix + b"099"))
            self.wait_for(reader, everything, {prefix + b"099": b"before", prefix + b"new": b"after"})
            mirror.kill()

    def wait_for(self, client: GrpcClient, request: pb.RangeRequest, wanted: dict[bytes, bytes]) -> None:
        """Ask until the answer is ``wanted``; each question paces the next."""
        deadline = time.monotonic() + 20
        found: dict[bytes, bytes] = {}
        while time.monotonic() < deadline:
            answer = client.call(request).message
            assert isinstance(answer, pb.RangeResponse)
            found = {pair.key: pair.value for pair in answer.kvs}
            if found == wanted:
                return
        self.assertEqual(found, wanted, (self.directory / "mirror.log").read_text())


class CheckTests(ServersCase):
    """``etcdctl check``."""

    def test_datascale(self) -> None:
        """The small load, which also reads the server's memory from /metrics."""
        (port,) = free_ports(1)  # the tool asks a metrics address without TLS
        metrics = ("--listen-metrics-urls", f"http://127.0.0.1:{port}")
        server = TwistedkvProcess(self.directory / "ours", options=metrics)
        self.start(server)
        printed = self.tool("etcdctl", "check", "datascale", "--load", "s", "--prefix", "/scale/", server=server)
        self.assertIn("PASS: Approximate system memory used", printed)

    def test_perf(self) -> None:
        """A minute of 150 puts a second, without a miss."""
        server = TwistedkvProcess(self.directory / "ours", self.tls)
        self.start(server)
        printed = self.tool("etcdctl", "check", "perf", "--load", "s", "--prefix", "/perf/", server=server)
        self.assertIn("PASS: Throughput is", printed)
        self.assertNotIn("FAIL", printed)

    if not os.environ.get("TWISTEDKV_CHECK_PERF"):
        test_perf.skip = "takes a minute: set TWISTEDKV_CHECK_PERF=1"  # type: ignore[attr-defined]
