"""Watches by real clients: twistedkv next to etcd 3.5.1, and many watchers under load.

``TWISTEDKV_SOAK_SECONDS`` makes the load last longer.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf.message import Message
from twisted.trial.unittest import SynchronousTestCase

from tests.functional.clients import WATCH, GrpcClient
from tests.functional.processes import (
    MISSING_ETCD,
    EtcdProcess,
    ServerProcess,
    TLSFiles,
    TwistedkvProcess,
    etcd_binary,
)
from tests.functional.soak_watch import soak
from tests.functional.streams import GatewayStream, GrpcStream, Stream
from twistedkv.pb import rpc_pb2 as pb

_SOAK_SECONDS = float(os.environ.get("TWISTEDKV_SOAK_SECONDS", "10"))
_TIMEOUT_S = 10.0
_MOST_GROWTH_BYTES = 48 << 20  # of a server's memory, while 500 bytes a put are not read by one of its watchers


def create(key: bytes = b"k", **fields: object) -> pb.WatchRequest:
    return pb.WatchRequest(create_request=pb.WatchCreateRequest(key=key, **fields))  # type: ignore[arg-type]


def cancel(watch_id: int) -> pb.WatchRequest:
    return pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id))


PROGRESS = pb.WatchRequest(progress_request=pb.WatchProgressRequest())


class Servers(SynchronousTestCase):
    """One server of each kind for a class of tests is not worth the order that they would depend on: new ones each."""

    def start(self, *kinds: type[ServerProcess]) -> list[ServerProcess]:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        tls = TLSFiles.make(Path(scratch.name) / "tls")
        servers = [kind(Path(scratch.name) / str(number), tls) for number, kind in enumerate(kinds)]
        for server in servers:
            self.addCleanup(server.stop)
            server.spawn()
        for server in servers:
            server.wait_until_ready()
        return servers


class Script:
    """What is done on one server, and what its watch stream showed."""

    def __init__(self, server: ServerProcess) -> None:
        self.client = GrpcClient(server)
        self.stream: Stream = GrpcStream(self.client, WATCH)
        self.shown = 0

    def put(self, key: bytes, value: bytes = b"v") -> int:
        return self.do(pb.PutRequest(key=key, value=value))

    def do(self, request: Message) -> int:
        answer = self.client.call(request).message
        revision: int = answer.header.revision  # type: ignore[union-attr]
        return revision

    def ask(self, *requests: pb.WatchRequest, answers: int) -> None:
        """Send requests, and wait until so many more responses have come."""
        for request in requests:
            self.stream.send(request)
        self.expect(answers)

    def expect(self, answers: int) -> None:
        self.shown += answers
        if not self.stream.wait_for(lambda messages: len(messages) >= self.shown, _TIMEOUT_S):
            raise AssertionError(f"{len(self.stream.messages)} of {self.shown} responses: {self.stream.messages[-3:]}")

    def close(self) -> None:
        self.stream.close()
        self.client.close()


class StreamRuleTests(Servers):
    """The answers on a stream, one by one."""

    skip = MISSING_ETCD

    def compare(self, play: Callable[[Script], None]) -> None:
        """Play on both servers; every response must be the same, but for the ids of member and cluster."""
        shown = []
        for server in self.start(EtcdProcess, TwistedkvProcess):
            script = Script(server)
            self.addCleanup(script.close)
            play(script)
            for message in script.stream.messages:
                header = message.header  # type: ignore[attr-defined]
                self.assertNotEqual((header.member_id, header.cluster_id, header.raft_term), (0, 0, 0))
                for name in ("member_id", "cluster_id", "raft_term"):
                    header.ClearField(name)
            shown.append([str(message) for message in script.stream.messages])
        self.assertEqual(shown[1], shown[0])

    def test_making_and_ending(self) -> None:
        """Ids, empty keys and ranges, duplicates, negative starts, cancels, progress: etcd's answers in its order."""

        def play(script: Script) -> None:
            script.ask(create(start_revision=-1), answers=1)
            script.ask(create(start_revision=-5), answers=2)
            script.ask(create(b""), create(b"b", range_end=b"a"), create(b"b", range_end=b"b"), answers=3)
            script.ask(create(watch_id=1), create(watch_id=-7), create(watch_id=3), create(), create(), answers=5)
            script.ask(cancel(99), cancel(1), answers=1)
            script.ask(cancel(1), cancel(3), answers=1)
            script.ask(create(watch_id=3), answers=1)
            script.ask(PROGRESS, pb.WatchRequest(), PROGRESS, answers=2)

        self.compare(play)

    def test_events(self) -> None:
        """Past and live events, with filters and the pairs before, around a compaction."""

        def play(script: Script) -> None:
            span = {"range_end": b"l", "prev_kv": True}
            for number in range(3):
                script.put(b"k%d" % number)
            script.do(pb.DeleteRangeRequest(key=b"k", range_end=b"l"))
            script.ask(create(start_revision=1, **span), answers=2)
            script.put(b"k1")
            script.expect(1)
            script.put(b"k1", b"2")
            script.expect(1)
            ops = [
                pb.RequestOp(request_put=pb.PutRequest(key=b"k1")),
                pb.RequestOp(request_put=pb.PutRequest(key=b"k9")),
                pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"k2")),
            ]
            script.do(pb.TxnRequest(success=ops))
            script.expect(1)
            script.ask(cancel(0), answers=1)
            script.ask(create(start_revision=3, filters=[pb.WatchCreateRequest.NOPUT], **span), answers=2)
            script.ask(cancel(1), answers=1)
            script.ask(create(start_revision=3, filters=[pb.WatchCreateRequest.NODELETE], **span), answers=2)
            script.ask(cancel(2), answers=1)
            revision = script.put(b"k1")
            script.do(pb.CompactionRequest(revision=revision - 1))
            script.ask(create(start_revision=3, **span), answers=2)
            script.ask(cancel(3), answers=1)
            script.ask(create(start_revision=revision - 1, **span), answers=2)
            script.ask(cancel(4), answers=1)
            script.ask(create(start_revision=revision + 2, **span), answers=1)
            script.put(b"k1")
            script.put(b"k1")
            script.expect(1)
            script.ask(cancel(5), PROGRESS, answers=2)

        self.compare(play)

    def test_fragments(self) -> None:
        """A past that is larger than a request may be comes in etcd's fragments."""

        def play(script: Script) -> None:
            script.ask(create(b"other"), answers=1)
            first = script.put(b"k0", bytes(600_000))
            for number in range(1, 6):
                script.put(b"k%d" % number, bytes(600_000))
            script.ask(create(range_end=b"l", start_revision=first, fragment=True), answers=3)

        self.compare(play)

    def test_the_gateway(self) -> None:
        """``/v3/watch`` gives etcd's lines, to the byte."""
        lines = []
        for server in self.start(EtcdProcess, TwistedkvProcess):
            client = GrpcClient(server)
            self.addCleanup(client.close)
            for value in (b"1", b"2"):
                client.call(pb.PutRequest(key=b"k", value=value))
            requests = [create(start_revision=2, prev_kv=True), create(b"b", range_end=b"a"), create(watch_id=1)]
            stream = GatewayStream(server, WATCH, requests)
            self.addCleanup(stream.close)
            self.assertTrue(stream.wait_for(lambda messages: len(messages) >= 4, _TIMEOUT_S))
            client.call(pb.DeleteRangeRequest(key=b"k"))
            self.assertTrue(stream.wait_for(lambda messages: len(messages) >= 6, _TIMEOUT_S))
            lines.append(
                sorted(re.sub(rb'"(cluster_id|member_id|raft_term)":"\d+"', rb'"\1":""', line) for line in stream.lines)
            )
        self.assertEqual(lines[1], lines[0])


class EtcdctlTests(Servers):
    """``etcdctl watch``, word by word."""

    skip = MISSING_ETCD

    def etcdctl(self, server: ServerProcess, *arguments: str) -> subprocess.Popen[bytes]:
        assert server.tls is not None
        tls = ["--cacert", server.tls.ca, "--cert", server.tls.client_cert, "--key", server.tls.client_key]
        command = [etcd_binary("etcdctl"), "--endpoints", server.endpoint, *tls, *arguments]
        return subprocess.Popen(
            [str(each) for each in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run_etcdctl(self, server: ServerProcess, *arguments: str) -> None:
        process = self.etcdctl(server, *arguments)
        output, _ = process.communicate(timeout=_TIMEOUT_S)
        self.assertEqual(process.returncode, 0, output)

    def watch(self, server: ServerProcess, arguments: Sequence[str], typed: bytes, lines: int) -> bytes:
        """What a watch over the past prints, so many lines of it, then it is ended."""
        process = self.etcdctl(server, *arguments)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(typed)
        process.stdin.flush()
        guard = threading.Timer(_TIMEOUT_S, process.kill)  # then the lines that are missing are empty
        guard.start()
        printed = b"".join(process.stdout.readline() for _ in range(lines))
        guard.cancel()
        process.kill()
        process.communicate()
        return re.sub(rb'"(cluster_id|member_id|raft_term|ClusterID|MemberID|RaftTerm)" ?: ?\d+', rb'"\1"', printed)

    def test_prints_the_same(self) -> None:
        """Every way of watching prints what it prints with etcd: flags, several keys, interactive, with a command."""
        cases: list[tuple[Sequence[str], bytes, int]] = [
            (["watch", "a", "--rev=1"], b"", 9),
            (["watch", "a", "b", "--rev=1"], b"", 12),
            (["watch", "--prefix", "a", "--rev=3", "--prev-kv"], b"", 13),
            (["watch", "a", "--rev=1", "-w", "json"], b"", 1),
            (["watch", "a", "--rev=1", "-w", "fields"], b"", 25),
            (["watch", "a", "--rev=1", "--", "printenv", "ETCD_WATCH_REVISION", "ETCD_WATCH_VALUE"], b"", 15),
            (["watch", "z", "a", "--rev=1"], b"", 1),
            (["watch", "-i"], b"watch a --rev=1\nwatch ab --rev=1\n", 12),
            (["watch", "-i", "--progress-notify"], b"watch zz\nprogress\n", 1),
            (["watch", "a", "--rev=2", "--progress-notify"], b"", 9),
        ]
        servers = self.start(EtcdProcess, TwistedkvProcess)
        for server in servers:
            for arguments in (["put", "a", "1"], ["put", "a", "2"], ["put", "ab", "3"], ["del", "a"]):
                self.run_etcdctl(server, *arguments)
        for arguments, typed, lines in cases:
            theirs, ours = (self.watch(server, arguments, typed, lines) for server in servers)
            self.assertEqual(sorted(ours.splitlines()), sorted(theirs.splitlines()), arguments)
            if arguments[1] != "-i":
                self.assertEqual(ours, theirs, arguments)

    def test_compacted(self) -> None:
        """A watch from a compacted revision ends with etcd's words and status."""
        ends = []
        for server in self.start(EtcdProcess, TwistedkvProcess):
            for arguments in (["put", "a", "1"], ["put", "a", "2"], ["put", "a", "3"], ["compact", "4"]):
                self.run_etcdctl(server, *arguments)
            process = self.etcdctl(server, "watch", "a", "--rev=2")
            output, _ = process.communicate(timeout=_TIMEOUT_S)
            ends.append((process.returncode, output))
        self.assertEqual(ends[1], ends[0])
        self.assertIn(b"required revision has been compacted", ends[0][1])


class SoakTests(Servers):
    """Many at once."""

    def test_a_thousand_watchers_under_load(self) -> None:
        """A thousand watchers see all that fifty clients write, once and in order; one that does not read costs no
        memory, and sees all of it later."""
        (server,) = self.start(TwistedkvProcess)
        outcome = soak(server, _SOAK_SECONDS)
        self.assertGreater(outcome.puts, 100 * _SOAK_SECONDS)
        self.assertGreaterEqual(outcome.slow_watchers, 1)
        self.assertLess(outcome.rss_after - outcome.rss_before, _MOST_GROWTH_BYTES)
