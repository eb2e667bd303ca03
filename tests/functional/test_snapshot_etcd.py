"""Snapshots between a real etcd 3.5.1 and us, either way: equal state on both sides, and both go on."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet import reactor as trial_reactor  # noqa: TID251  the one that trial runs
from twisted.internet.defer import gatherResults, inlineCallbacks
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.functional.clients import GrpcClient
from tests.functional.follower import Follower
from tests.functional.processes import MISSING_ETCD, EtcdProcess, etcd_binary, free_ports
from tests.storage.test_sql import sqlite_at
from tests.test_restore import Member
from tests.v2trees import content, new_store, told
from twistedkv.clusternodes import attributes_set, member_added, member_removed, member_updated, version_set
from twistedkv.configload import load_config
from twistedkv.members import MemberInfo, bootstrap_changes, promotion
from twistedkv.pb import rpc_pb2 as pb
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.pb.membership_pb2 import Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.raft_pb2 import ConfChange, ConfChangeAddLearnerNode, ConfChangeAddNode
from twistedkv.protocols.client import connect
from twistedkv.raft.config import Config as RaftConfig
from twistedkv.raft.log import RaftLog
from twistedkv.raft.messages import HardState, MessageType, Role, Snapshot
from twistedkv.raft.node import RaftNode
from twistedkv.restore import Loaded, examine_snapshot, load_state, read_snapshot
from twistedkv.snapshot import StateCopy
from twistedkv.storage.backend import Backend
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import hash_kv
from twistedkv.v2text import decode, encode

KEPT_ENTRIES = 5000  # behind a snapshot, for members that are slow (etcd server/etcdserver/server.go)
CLUSTER = 0xC1
OURS = 0xA
TERM = 3
EVERYTHING = pb.RangeRequest(key=b"\0", range_end=b"\0")
CONFIG = load_config({"data-dir": "d"}, {})


def history() -> list[Any]:
    """Requests that leave something of everything: old revisions, tombstones, leases, a compaction, an alarm.

    No lease has a negative id: etcd forgets those when it starts (lessor.go, initAndRecover).
    """
    puts = [pb.PutRequest(key=b"key/%02d" % (n % 40), value=b"value %d" % n * (n % 17)) for n in range(90)]
    wide = [pb.RequestOp(request_put=pb.PutRequest(key=b"wide/%03d" % n, value=b"w")) for n in range(100)]
    return [
        pb.LeaseGrantRequest(ID=0x77, TTL=600),
        pb.LeaseGrantRequest(ID=9, TTL=900),
        pb.LeaseGrantRequest(ID=8, TTL=900),
        *puts,
        pb.PutRequest(key=b"leased", lease=0x77),
        pb.PutRequest(key=b"key/00", lease=9),
        pb.PutRequest(key=b"large", value=bytes(range(256)) * 400),
        pb.DeleteRangeRequest(key=b"key/10", range_end=b"key/20"),
        pb.LeaseRevokeRequest(ID=8),
        pb.CompactionRequest(revision=60, physical=True),
        pb.TxnRequest(success=wide),
        pb.DeleteRangeRequest(key=b"large"),
        pb.PutRequest(key=b"\xff\xff"),
        pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=9, alarm=pb.NOSPACE),
    ]


class AlarmedEtcd(EtcdProcess):
    """etcd with a NOSPACE alarm, by which it is not unwell here."""

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health?exclude=NOSPACE")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class Leader(Follower):
    """A member that leads, with a state, and a log that begins behind it."""

    def __init__(
        self, url: str, directory: Path, path: Path, snapshot: Snapshot, crc32c: int, members: list[MemberInfo]
    ) -> None:
        super().__init__(trial_reactor, OURS, CLUSTER, url, directory)
        index, term, conf_state = snapshot.meta
        self._path = path
        self._crc32c = crc32c
        self._members = members
        self.delivered: list[bool] = []
        self.node = RaftNode(
            RaftConfig(OURS, Random(1)),
            RaftLog((), index, term),
            HardState(term, 0, index),
            conf_state,
            index,
            take_snapshot=lambda: snapshot,
        )

    def members_json(self) -> bytes:
        return b"[" + b",".join(each.to_json() for each in self._members) + b"]\n"

    def snapshot_sent(self, member_id: int, ok: bool) -> None:
        self.delivered.append(ok)
        super().snapshot_sent(member_id, ok)
        self.drive()

    def _drive(self) -> None:
        send = self.peers.send

        def send_all(messages: Any) -> None:
            for message in messages:
                if message.type is MessageType.SNAPSHOT:
                    self.peers.send_snapshot(message, lambda: iter([self._path.read_bytes()]), self._crc32c)
            send([each for each in messages if each.type is not MessageType.SNAPSHOT])

        self.peers.send = send_all  # type: ignore[method-assign]
        try:
            super()._drive()
        finally:
            self.peers.send = send  # type: ignore[method-assign]


class SnapshotCase(TestCase):
    """Servers that are started for a test, and end with it."""

    skip = MISSING_ETCD
    timeout = 120

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)

    def client(self, server: EtcdProcess) -> GrpcClient:
        """A connection that blocks."""
        client = GrpcClient(server)
        self.addCleanup(client.close)
        return client

    def call(self, client: GrpcClient, request: Any) -> Any:
        """The answer, which is no error."""
        reply = client.call(request)
        self.assertEqual(reply.code, 0, reply.text)
        return reply.message

    def tool(self, name: str, *arguments: str) -> str:
        """What one of etcd's tools prints."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD")}
        done = subprocess.run(
            [str(etcd_binary(name)), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def compare(self, client: GrpcClient, backend: Backend, loaded: Loaded) -> None:
        """A server has the state that we have: keys, hash, leases and alarms."""
        store = loaded.store
        found = self.call(client, EVERYTHING)
        self.assertEqual([pair.SerializeToString() for pair in found.kvs], store.pairs(b"\0", b"\0"))
        self.assertEqual(found.header.revision, store.revision)
        for revision in (0, store.compacted + 1, (store.compacted + store.revision) // 2):
            hashed = self.call(client, pb.HashKVRequest(revision=revision))
            ours = hash_kv(backend, revision or store.revision, store.compacted)
            self.assertEqual((hashed.hash, hashed.compact_revision), (ours, store.compacted), revision)
        alarms = self.call(client, pb.AlarmRequest()).alarms
        self.assertEqual(list(alarms), loaded.alarms.listed())
        for lease in loaded.lessor:
            told = self.call(client, pb.LeaseTimeToLiveRequest(ID=lease.id, keys=True))
            self.assertEqual((told.grantedTTL, set(told.keys)), (lease.ttl_s, lease.keys))
        ids = {each.ID for each in self.call(client, pb.LeaseLeasesRequest()).leases}
        self.assertEqual(ids, {lease.id for lease in loaded.lessor})


class FromEtcdTests(SnapshotCase):
    """etcd leads."""

    def setUp(self) -> None:
        super().setUp()
        self.server = EtcdProcess(self.directory / "etcd", None, ["--snapshot-count", "100"])
        self.addCleanup(self.server.kill9)
        self.server.start()

    @inlineCallbacks
    def received(self) -> Any:
        """The message and the database that a learner gets which joins late."""
        blocking = self.client(self.server)
        *requests, alarm = history()
        for request in requests:
            yield deferToThread(self.call, blocking, request)
        client = yield connect(trial_reactor, "127.0.0.1", self.server.port, None)
        self.addCleanup(client.close)
        put = pb.PutRequest(key=b"k", value=b"v" * 30).SerializeToString()
        for _ in range(12):
            answers = [client.unary("/etcdserverpb.KV/Put", put) for _ in range((KEPT_ENTRIES + 400) // 12)]
            yield gatherResults(answers)
        yield deferToThread(self.call, blocking, alarm)
        (port,) = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        added = yield deferToThread(self.add_learner, url)
        follower = Follower(trial_reactor, added.member.ID, added.header.cluster_id, url, self.directory)
        self.addCleanup(follower.stop)
        follower.start()
        follower.peers.set_peer(added.header.member_id, [self.server.peer_url])
        yield follower.when(lambda: bool(follower.databases) and follower.node.log.compacted > 0)
        (message,) = [each for each in follower.messages if each.type is MessageType.SNAPSHOT]
        return blocking, message.snapshot, follower.databases[0]

    def add_learner(self, url: str) -> Any:
        """Make room for us in the cluster."""
        stub = GrpcClient(self.server)
        try:
            request = pb.MemberAddRequest(peerURLs=[url], isLearner=True).SerializeToString()
            code, text, answer = stub.call_raw("/etcdserverpb.Cluster/MemberAdd", request)
        finally:
            stub.close()
        self.assertEqual(code, 0, text)
        assert answer is not None
        return pb.MemberAddResponse.FromString(answer)

    @inlineCallbacks
    def test_a_state_of_etcds(self) -> Any:
        """What a real leader sends makes the state that it has, in memory and in SQL; and an etcd that starts from our
        copy of that has it again."""
        client, snapshot, path = yield self.received()
        examine_snapshot(snapshot, path, None)
        sql = sqlite_at(self.directory / "our.db")
        copies = []
        for backend in (MemoryBackend(), sql):
            backend.open()
            self.addCleanup(backend.close)
            with read_snapshot(path, snapshot, {b"member_id": b"1c"}) as batches:
                backend.replace(batches)
            backend.sync()
            loaded = load_state(backend, CONFIG)
            self.assertEqual(loaded.described, snapshot.meta)
            self.assertEqual((loaded.store.compacted, loaded.compaction_done), (60, 60))
            self.assertEqual((loaded.cluster_version, loaded.meta[b"member_id"]), ("3.5.0", b"1c"))
            yield deferToThread(self.compare, client, backend, loaded)
            listed = yield deferToThread(self.call, client, pb.MemberListRequest())
            members = {
                each.ID: MemberInfo(each.ID, tuple(each.peerURLs), each.name, tuple(each.clientURLs), each.isLearner)
                for each in listed.members
            }
            self.assertEqual(loaded.membership.members, members)
            copies.append(self.copied(backend, snapshot))
        self.assertEqual(*(path.read_bytes() for path in copies))
        restored = AlarmedEtcd(self.directory / "restored")
        self.tool(
            *("etcdutl", "snapshot", "restore", str(copies[0]), "--data-dir", str(restored.directory / "data")),
            *("--name", "m1", "--initial-cluster", f"m1={restored.peer_url}"),
            *("--initial-advertise-peer-urls", restored.peer_url),
        )
        self.addCleanup(restored.stop)
        yield deferToThread(restored.start)
        yield deferToThread(self.compare, self.client(restored), backend, loaded)

    def copied(self, backend: Backend, snapshot: Snapshot) -> Path:
        """A copy of ours of what came from etcd, as ``etcdctl snapshot save`` leaves it."""
        copy = StateCopy(self.directory)
        copy.begin(backend, 0)
        while not copy.copy_some(backend):
            backend.size()
        data = copy.read(copy.size_bytes)
        copy.close()
        self.assertEqual(copy.meta, snapshot.meta)
        theirs, ours = decode(snapshot.data), decode(copy.v2_store)
        self.assertEqual(content(ours.directory), content(theirs.directory))
        self.assertEqual(told(ours.history), told(theirs.history))
        path = self.directory / f"{type(backend).__name__}.snap"
        path.write_bytes(data + hashlib.sha256(data).digest())
        return path


class ToEtcdTests(SnapshotCase):
    """We lead."""

    @inlineCallbacks
    def test_a_state_of_ours(self) -> Any:
        """A real etcd that joins us, and for which our log begins too late, has our state by a snapshot; it goes on by
        the log, becomes a voter, and starts again from what it kept."""
        (port,) = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        etcd = AlarmedEtcd(self.directory / "etcd")
        cluster = f"m1={etcd.peer_url},ours={url}"
        etcd.options = ("--initial-cluster-state", "existing", "--initial-cluster", cluster, "--enable-v2")
        ours = MemberInfo(OURS, (url,), "ours", ("http://127.0.0.1:1",))
        joiner = MemberInfo(0xB0B, (etcd.peer_url,), is_learner=True)
        member = self.member_with(ours, joiner)
        path = self.directory / "snapshot.db"
        snapshot, crc32c = member.snapshot(path)
        loaded = load_state(member.backend, CONFIG)
        leader = Leader(url, self.directory, path, snapshot, crc32c, [ours, joiner])
        self.addCleanup(leader.stop)
        leader.start()
        leader.node.campaign()
        leader.drive()
        yield leader.when(lambda: leader.node.role is Role.LEADER)
        leader.peers.set_peer(joiner.id, [etcd.peer_url])
        self.addCleanup(etcd.kill9)
        etcd.spawn()
        yield leader.when(lambda: leader.node.progress[joiner.id].match > snapshot.meta.index, 60)
        self.assertEqual(leader.delivered[-1:], [True])
        leader.node.propose_conf_change(
            ConfChange(id=1, type=ConfChangeAddNode, node_id=joiner.id, context=promotion(joiner.id))
        )
        leader.drive()
        yield leader.when(lambda: joiner.id in leader.node.configuration.voters)
        yield deferToThread(etcd.wait_until_ready)
        yield self.hand_over(leader, joiner.id)
        client = self.client(etcd)
        yield deferToThread(self.compare, client, member.backend, loaded)
        listed = yield deferToThread(self.call, client, pb.MemberListRequest())
        self.assertEqual(
            [(each.ID, each.name, list(each.clientURLs), each.isLearner) for each in listed.members],
            [(OURS, "ours", ["http://127.0.0.1:1"], False), (joiner.id, "m1", [etcd.endpoint], False)],
        )
        yield deferToThread(self.compare_v2, etcd, loaded)
        yield deferToThread(etcd.kill9)
        yield deferToThread(etcd.start)
        yield self.hand_over(leader, joiner.id)
        yield deferToThread(self.compare, client, member.backend, loaded)
        yield deferToThread(self.compare_v2, etcd, loaded)

    @inlineCallbacks
    def hand_over(self, leader: Leader, target: int) -> Any:
        """Have etcd lead, so that it answers by itself what only a leader knows."""
        yield leader.when(lambda: leader.node.leader != 0)
        if leader.node.role is Role.LEADER:
            leader.node.transfer_leader(target)
            leader.drive()
        yield leader.when(lambda: leader.node.leader == target)

    def compare_v2(self, etcd: EtcdProcess, loaded: Loaded) -> None:
        """The server has the key of the v2 API that we have, with its end, and what happened to it."""
        kept = loaded.directory.node("/1/dir/k")
        assert kept is not None
        node = {
            "key": "/dir/k",
            "value": "<v>",
            "expiration": "2100-01-01T00:00:00.000000001Z",
            "modifiedIndex": kept.modified,
            "createdIndex": kept.created,
        }
        connection = http.client.HTTPConnection("127.0.0.1", etcd.port, timeout=10)
        try:
            for query in ("", f"?wait=true&waitIndex={kept.modified}"):
                connection.request("GET", f"/v2/keys/dir/k{query}")
                found = json.loads(connection.getresponse().read())["node"]
                self.assertGreater(found.pop("ttl"), 1)
                self.assertEqual(found, node)
        finally:
            connection.close()

    def member_with(self, ours: MemberInfo, joiner: MemberInfo) -> Member:
        """A member with some history."""
        member = Member(0)
        member.feed(ConfChange.FromString(bootstrap_changes([ours])[0]))
        attributes = Attributes(name=ours.name, client_urls=ours.client_urls)
        started = ClusterMemberAttrSetRequest(member_ID=ours.id, member_attributes=attributes)
        member.feed(InternalRaftRequest(cluster_member_attr_set=started).SerializeToString())
        version = ClusterVersionSetRequest(ver="3.5.0")
        member.feed(InternalRaftRequest(cluster_version_set=version).SerializeToString())
        change = ConfChange(type=ConfChangeAddLearnerNode, node_id=joiner.id, context=joiner.to_json())
        member.feed(change)
        fields = {
            field.message_type.name: field.name for field in InternalRaftRequest.DESCRIPTOR.fields if field.message_type
        }
        for request in history():
            name = fields[type(request).DESCRIPTOR.name]
            member.feed(InternalRaftRequest(**{name: request}).SerializeToString())
            if isinstance(request, pb.CompactionRequest):
                member.sweep()
        end_ns = 4_102_444_800_000_000_001  # 2100
        member.feed(Request(ID=1, Method="PUT", Path=b"/1/dir/k", Val=b"<v>", Expiration=end_ns))
        self.assertEqual([each for each in member.answers if isinstance(each, type)], [])
        return member


class TextTests(SnapshotCase):
    """The v2 store as a lone etcd writes it."""

    def setUp(self) -> None:
        super().setUp()
        self.server = EtcdProcess(self.directory / "etcd", None, ["--snapshot-count", "10", "--enable-v2"])
        self.addCleanup(self.server.kill9)
        self.server.start()
        self.connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        self.addCleanup(self.connection.close)
        self.changing = self.client(self.server)

    def v2(self, method: str, path: str, form: str = "") -> int:
        """Ask for a key; the index of the store behind it."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
        self.connection.request(method, f"/v2/keys{path}", form or None, headers)
        answer = self.connection.getresponse()
        self.assertIn(answer.status, (200, 201), answer.read())
        answer.read()
        return int(answer.headers["X-Etcd-Index"])

    def cluster(self, request: Any) -> Any:
        """Ask for a change of members."""
        method = type(request).__name__.removesuffix("Request")
        path = f"/etcdserverpb.Cluster/{method}"
        code, text, answer = self.changing.call_raw(path, request.SerializeToString())
        self.assertEqual(code, 0, text)
        assert answer is not None
        return getattr(pb, f"{method}Response").FromString(answer)

    def written(self) -> bytes:
        """The newest snapshot's text, when there is another one than now."""
        directory = self.server.directory / "data" / "member" / "snap"
        before = set(directory.glob("*.snap"))
        for _ in range(30):
            self.v2("PUT", "/n", "value=n")
        self.connection.close()
        self.changing.close()
        self.server.stop()
        found = max(set(directory.glob("*.snap")) - before, key=lambda path: path.name).read_bytes()
        end = b'"CurrentVersion":2}'
        return found[found.index(b'{"Root"') : found.rindex(end) + len(end)]

    def test_equal_texts(self) -> None:
        """What etcd has of members, keys, directories, ends and their history is understood, and is the same text
        again; and each change of members takes the indexes that it takes here."""
        listed = self.cluster(pb.MemberListRequest()).members[0]
        me = MemberInfo(listed.ID, tuple(listed.peerURLs), listed.name, tuple(listed.clientURLs))
        tree, history = new_store()
        member_added(tree, me)
        attributes_set(tree, me)
        version_set(tree, "3.5.0")
        self.assertEqual(self.v2("GET", "/"), tree.index)
        url, moved = (f"http://127.0.0.1:{port}" for port in free_ports(2))
        added = self.cluster(pb.MemberAddRequest(peerURLs=[url], isLearner=True)).member
        member_added(tree, MemberInfo(added.ID, (url,), is_learner=True))
        self.assertEqual(self.v2("GET", "/"), tree.index)
        self.cluster(pb.MemberUpdateRequest(ID=added.ID, peerURLs=[moved]))
        member_updated(tree, MemberInfo(added.ID, (moved,)))  # 3.5.1 forgets here that it learns
        self.assertEqual(self.v2("GET", "/"), tree.index)
        self.cluster(pb.MemberRemoveRequest(ID=added.ID))
        member_removed(tree, added.ID)
        self.assertEqual(self.v2("GET", "/"), tree.index)

        self.v2("PUT", "/a", "value=%3C%26%3E%22%E2%80%A8%C3%A9%01%08")
        self.v2("PUT", "/a", "value=second&ttl=1")
        self.v2("PUT", "/dir/x/y", "value=deep&ttl=100")
        self.v2("PUT", "/e", "dir=true&ttl=1000")
        self.v2("PUT", "/dir/x/y", "ttl=500&refresh=true&prevExist=true")
        self.v2("PUT", "/_h/k", "value=")
        self.v2("DELETE", "/_h?recursive=true")
        self.v2("POST", "/dir", "value=in+order")
        expiring = self.v2("GET", "/?quorum=true")
        self.v2("GET", f"/a?wait=true&waitIndex={expiring + 1}")  # it expires
        text = self.written()
        stored = decode(text)
        self.assertEqual((stored.facts.membership.members, stored.facts.membership.removed), ({me.id: me}, {added.ID}))
        self.assertEqual(plain(encode(stored.directory, stored.history)), plain(text))
        kept = [each for each in content(stored.directory) if each[0].startswith("/0")]
        self.assertEqual(kept, [each for each in content(tree) if each[0].startswith("/0")])
        self.assertEqual(told(stored.history)[: tree.index], told(history))


def plain(text: bytes) -> bytes:
    """A text without what the store counted, and without what was left of lives when it was."""
    start, end = text.index(b'"Stats"'), text.index(b'"CurrentVersion"')
    return re.sub(rb',"ttl":\d+', b"", text[:start] + text[end:])
