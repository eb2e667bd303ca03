"""Our peer transport and Raft node as a member of a real etcd 3.5.1 cluster, over mutual TLS."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor as trial_reactor  # noqa: TID251  the one that trial runs
from twisted.internet.defer import gatherResults, inlineCallbacks
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.functional.follower import Follower
from tests.functional.processes import MISSING_ETCD, EtcdProcess, etcd_binary, free_ports
from twistedkv.certs import Certificates, ensure_certificates
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.rpc_pb2 import PutRequest
from twistedkv.protocols.client import connect
from twistedkv.raft.messages import EntryType, MessageType, Role

CERTIFICATES = "--peer-cert-file {} --peer-key-file {} --peer-trusted-ca-file {} --peer-client-cert-auth"
KEPT_ENTRIES = 5000  # behind a snapshot, for members that are slow (etcd server/etcdserver/server.go)
BOLT_MAGIC = bytes.fromhex("edda0ced")  # 16 bytes into the file
PUT = b"\x22"  # the tag of InternalRaftRequest.put, which comes first in it


class PeerEtcd(EtcdProcess):
    """etcd whose peer port speaks TLS."""

    def __init__(self, directory: Path, made: Certificates) -> None:
        pair = made.peer
        options = CERTIFICATES.format(pair.certificate, pair.key, made.ca.certificate).split()
        super().__init__(directory, None, [*options, "--snapshot-count", "100"])

    @property
    def peer_url(self) -> str:
        return f"https://127.0.0.1:{self.peer_port}"


class MemberOfEtcdTests(TestCase):
    """A learner joins, becomes a voter, and has its part in reads and writes."""

    skip = MISSING_ETCD
    timeout = 90

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.made = ensure_certificates(self.directory / "pki")
        self.server = PeerEtcd(self.directory / "etcd", self.made)
        self.addCleanup(self.server.kill9)  # without our vote it would try in vain to hand over
        self.server.start()

    def ctl(self, *arguments: str) -> Any:
        """What etcdctl answers; it does not hold up the reactor."""
        command = [str(etcd_binary("etcdctl")), "--endpoints", self.server.endpoint, *arguments]

        def run() -> Any:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
            if done.returncode:
                raise RuntimeError(done.stderr)
            return json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout

        return deferToThread(run)

    @inlineCallbacks
    def joined(self) -> Any:
        """A follower that is a learner of etcd's cluster."""
        (port,) = free_ports(1)
        url = f"https://127.0.0.1:{port}"
        added = yield self.ctl("member", "add", "ours", "--learner", "--peer-urls", url, "-w", "json")
        self.leader_id = added["header"]["member_id"]
        follower = Follower(
            trial_reactor, added["member"]["ID"], added["header"]["cluster_id"], url, self.directory, self.made
        )
        self.addCleanup(follower.stop)
        follower.start()
        follower.peers.set_peer(self.leader_id, [self.server.peer_url])
        return follower

    @inlineCallbacks
    def test_follows_the_log_and_becomes_a_voter(self) -> Any:
        """Entries come as etcd wrote them; with our vote etcd commits, without it it does not."""
        values = [f"{number}" * 330 for number in range(5)]
        for number, value in enumerate(values[:3]):
            yield self.ctl("put", f"k{number}", value)
        follower = yield self.joined()
        node = follower.node
        for number, value in enumerate(values[3:], 3):
            yield self.ctl("put", f"k{number}", value)

        def puts() -> list[tuple[bytes, bytes]]:
            return [
                (request.put.key, request.put.value)
                for entry in follower.applied
                if entry.type is EntryType.NORMAL and entry.data.startswith(PUT)
                for request in [InternalRaftRequest.FromString(entry.data)]
            ]

        yield follower.when(lambda: len(puts()) == 5)
        self.assertEqual(puts(), [(b"k%d" % n, value.encode()) for n, value in enumerate(values)])
        self.assertEqual([entry.index for entry in follower.applied], list(range(1, node.applied + 1)))
        self.assertTrue(node.is_learner)
        self.assertEqual((node.role, node.leader), (Role.FOLLOWER, self.leader_id))

        yield self.ctl("member", "promote", f"{node.config.id:x}")
        yield follower.when(lambda: node.config.id in node.configuration.voters)
        yield self.ctl("put", "needs", "our vote")  # one of two voters is no quorum
        read = yield self.ctl("get", "needs", "-w", "json")  # nor is it for ReadIndex
        self.assertEqual(read["count"], 1)

        node.read_index(b"12345678")
        follower.drive()
        yield follower.when(lambda: bool(follower.reads))
        self.assertGreater(follower.reads[0], 0)
        kinds = {message.type for message in follower.messages}
        self.assertLessEqual({MessageType.APPEND, MessageType.HEARTBEAT, MessageType.READ_INDEX_RESPONSE}, kinds)
        self.assertIsNotNone(follower.peers.active_since(self.leader_id))

        yield self.ctl("move-leader", f"{node.config.id:x}")
        yield follower.when(lambda: node.role is Role.LEADER)
        before = node.commit
        node.propose([b""])
        follower.drive()
        yield follower.when(lambda: node.commit > before)

    @inlineCallbacks
    def test_takes_a_snapshot(self) -> Any:
        """A learner for which the log begins too late gets the database first, then the rest of the log."""
        client = yield connect(trial_reactor, "127.0.0.1", self.server.port, None)
        self.addCleanup(client.close)
        put = PutRequest(key=b"k", value=b"v" * 100).SerializeToString()
        for _ in range(12):
            answers = [client.unary("/etcdserverpb.KV/Put", put) for _ in range((KEPT_ENTRIES + 400) // 12)]
            yield gatherResults(answers)
        follower = yield self.joined()
        yield follower.when(lambda: bool(follower.databases) and follower.node.log.compacted > 0)
        database = follower.databases[0].read_bytes()
        self.assertEqual(database[16:20], BOLT_MAGIC)
        self.assertEqual(len(database) % 4096, 0)
        (message,) = [each for each in follower.messages if each.type is MessageType.SNAPSHOT]
        assert message.snapshot is not None
        self.assertIn(b"CurrentVersion", message.snapshot.data)
        self.assertEqual(follower.node.log.compacted, message.snapshot.meta.index)
        self.assertTrue(follower.node.is_learner)
        yield self.ctl("put", "after", "snapshot")
        yield follower.when(lambda: any(b"after" in entry.data for entry in follower.applied))
