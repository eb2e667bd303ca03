"""From one member to another: a state as a file, put in place of the other's, and the log that goes on from there."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.requests import Requests
from tests.test_apply import random_entry
from tests.v2trees import START_NS, content, told
from twistedkv.apply import CLUSTER_VERSION, META_APPLIED_INDEX, META_APPLIED_TERM, Alarms, Applier
from twistedkv.clusternodes import facts
from twistedkv.configload import load_config
from twistedkv.errors import InvariantError, KVError
from twistedkv.lease import Lessor
from twistedkv.members import MemberInfo, Membership, bootstrap_changes, promotion
from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.raft_pb2 import ConfChange, ConfChangeAddLearnerNode, ConfChangeAddNode, ConfChangeRemoveNode
from twistedkv.pb.rpc_pb2 import LeaseGrantRequest, LeaseRevokeRequest, PutRequest
from twistedkv.raft.messages import Snapshot
from twistedkv.restore import examine_snapshot, load_state, read_snapshot
from twistedkv.snapshot import StateCopy
from twistedkv.snapshotreader import SnapshotDamagedError
from twistedkv.storage.backend import MAX_MAIN, BackendError, Batch, Bucket, pack
from twistedkv.storage.keyindex import KeyIndex
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import META_COMPACTED, META_REVISION, Store, fetch, hash_kv
from twistedkv.txn import Done
from twistedkv.v2errors import V2Error
from twistedkv.v2records import META_DIRECTORY_INDEX, load_directory
from twistedkv.v2text import decode

FIRST = MemberInfo(10, ("http://192.0.2.1:2380",), "a")
SECOND = MemberInfo(11, ("http://192.0.2.2:2380",))
CONFIG = load_config({"data-dir": "d"}, {})


class Member:
    """A state with its database, which the log changes.

    Args:
        limit_bytes: of values kept in memory.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.backend = MemoryBackend()
        self.applier = Applier(Store(KeyIndex(limit_bytes)), Lessor(2), Alarms(), Membership())
        self.index = 0
        self.answers: list[Done | type[Exception] | None] = []

    def feed(self, entry: bytes | ConfChange | Request) -> None:
        """Apply one entry of the log."""
        self.index += 1
        try:
            self.answers.append(self._apply(entry))
        except (KVError, V2Error, ValueError) as error:
            self.answers.append(type(error))
        self.applier.store.lend(None)
        self.applier.store.index.evict()

    def _apply(self, entry: bytes | ConfChange | Request) -> Done | None:
        applier = self.applier
        if isinstance(entry, Request):
            applier.apply_v2(entry)
            return None
        if isinstance(entry, ConfChange):
            applier.apply_conf_change(entry)
            return None
        request = InternalRaftRequest.FromString(entry)
        if needs := tuple(applier.needs(request)):
            self.flush()
            applier.store.lend(fetch(self.backend, needs))
        return applier.apply(request)

    def flush(self) -> None:
        """What the write-behind does."""
        store = self.applier.store
        self.applier.v2.records.drain(store.record)
        store.record(Bucket.META, META_APPLIED_INDEX, b"%d" % self.index)
        store.record(Bucket.META, META_APPLIED_TERM, b"3")
        self.backend.write(store.take_batch())

    def sweep(self) -> None:
        """What the sweeper does."""
        self.flush()
        after = 0
        while self.applier.store.compacted > 0:
            _, after = self.backend.compact(self.applier.store.compacted - 1, after, 7)
            if not after:
                return

    def snapshot(self, path: Path) -> tuple[Snapshot, int]:
        """The state as a message and a file; the file's checksum."""
        self.flush()
        copy = StateCopy(path.parent)
        copy.begin(self.backend, START_NS)
        while not copy.copy_some(self.backend):
            self.backend.size()
        path.write_bytes(copy.read(copy.size_bytes))
        copy.close()
        return Snapshot(copy.meta, copy.v2_store), copy.crc32c

    def install(self, path: Path, snapshot: Snapshot) -> None:
        """What the member does with a snapshot that has arrived."""
        self.flush()
        with read_snapshot(path, snapshot, {b"member_id": b"b"}) as batches:
            self.backend.replace(batches)
        loaded = load_state(self.backend, CONFIG)
        self.applier.restore(loaded)
        self.index = loaded.described.index

    def state(self) -> tuple[Any, ...]:
        """All that was replicated, in memory and in the database."""
        self.flush()
        applier, records = self.applier, {bucket: self.backend.records(bucket) for bucket in Bucket}
        marks = records.pop(Bucket.META)
        records[Bucket.AUTH].setdefault(b"authRevision", (1).to_bytes(8, "big"))
        v2_index = int(marks.get(META_DIRECTORY_INDEX, b"0"))
        events = records.pop(Bucket.DIRECTORY_EVENTS)  # of a member's own size, with the same in them
        _, hub = load_directory(records[Bucket.DIRECTORY], events, v2_index)
        return (
            self.backend.scan(0, pack(MAX_MAIN), 1 << 20),
            records,
            {name: marks.get(name) for name in (META_REVISION, META_COMPACTED, META_APPLIED_INDEX)},
            hash_kv(self.backend, applier.store.revision, applier.store.compacted),
            applier.store.revision,
            applier.store.compacted,
            sorted(applier.store.index.entries),
            {each.id: (each.ttl_s, each.remaining_ttl_s, set(each.keys)) for each in applier.lessor},
            applier.alarms.listed(),
            applier.membership.members,
            applier.membership.removed,
            (applier.cluster_version, applier.downgrade),
            (content(applier.v2.directory), applier.v2.directory.index, v2_index),
            (told(applier.v2.hub.history), told(hub.history)),
        )


def random_log(dice: Random, length: int, member: Member) -> list[bytes | ConfChange | Request]:
    """A log that ``member`` has applied, with members, leases and keys of the v2 API in it."""
    requests = Requests(dice)
    log: list[bytes | ConfChange | Request] = []
    for number in range(length):
        requests.revision = member.applier.store.revision
        entry: bytes | ConfChange | Request
        match dice.randint(0, 14):
            case 0:
                entry = InternalRaftRequest(
                    lease_grant=LeaseGrantRequest(ID=dice.choice((7, 8)), TTL=60)
                ).SerializeToString()
            case 1:
                entry = InternalRaftRequest(lease_revoke=LeaseRevokeRequest(ID=dice.choice((7, 8)))).SerializeToString()
            case 2:
                another = MemberInfo(100 + number, (f"http://192.0.2.3:{number}",))
                entry = ConfChange(type=ConfChangeAddLearnerNode, node_id=another.id, context=another.to_json())
            case 3:
                learners = [each.id for each in member.applier.membership.members.values() if each.is_learner]
                entry = ConfChange(type=ConfChangeRemoveNode, node_id=dice.choice([*learners, 99]))
                if dice.random() < 0.3:
                    entry = ConfChange(type=ConfChangeAddNode, node_id=entry.node_id, context=promotion(entry.node_id))
            case 4 | 5 | 6:
                entry = random_v2(dice)
            case _:
                entry = random_entry(requests)
        log.append(entry)
        member.feed(entry)
        if dice.random() < 0.1:
            member.sweep()
    return log


def random_v2(dice: Random) -> Request:
    """A request for keys of the v2 API, or that they expire."""
    path = b"/1/" + b"/".join(dice.choice((b"a", b"b", b"\xff")) for _ in range(dice.randint(1, 3)))
    value, end_ns = dice.choice((b"", b"v", b"\xfe")), dice.choice((0, START_NS, START_NS + 10**9 + 1))
    match dice.randrange(6):
        case 0:
            return Request(ID=1, Method="DELETE", Path=path, Recursive=dice.random() < 0.5)
        case 1:
            return Request(ID=1, Method="SYNC", Time=START_NS)
        case 2:
            return Request(ID=1, Method="POST", Path=path, Val=value, Expiration=end_ns)
        case 3:
            return Request(ID=1, Method="PUT", Path=path, Dir=True, Expiration=end_ns)
        case _:
            return Request(ID=1, Method="PUT", Path=path, Val=value, Expiration=end_ns, Refresh=dice.random() < 0.2)


class RoundTripTests(SynchronousTestCase):
    """The whole way."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 1 << 32), st.integers(0, 60), st.integers(0, 60), st.sampled_from((0, 1 << 20)))
    def test_a_snapshot_is_as_good_as_the_log(self, seed: int, length: int, rest: int, limit_bytes: int) -> None:
        """A member that followed the log for a while and jumped to a snapshot is equal to the one that made it, and
        stays so when both go on: answers, keys, leases, alarms, members, rows, records, hash and v2 store."""
        dice = Random(seed)
        leader, follower = Member(1 << 20), Member(limit_bytes)
        log: list[bytes | ConfChange | Request] = [*map(ConfChange.FromString, bootstrap_changes([FIRST, SECOND]))]
        for entry in log:
            leader.feed(entry)
        log += random_log(dice, length, leader)
        for entry in log[: dice.randint(0, len(log))]:
            follower.feed(entry)
        applier, executor = follower.applier, follower.applier.executor
        parts = (
            applier.store,
            applier.lessor,
            applier.alarms,
            applier.membership,
            applier.v2.directory,
            applier.v2.hub,
        )
        snapshot, crc32c = leader.snapshot(self.path)
        examine_snapshot(snapshot, self.path, crc32c)
        follower.install(self.path, snapshot)
        self.assertEqual(follower.state(), leader.state())
        done = len(leader.answers), len(follower.answers)
        for entry in random_log(dice, rest, leader):
            follower.feed(entry)
        self.assertEqual(follower.answers[done[1] :], leader.answers[done[0] :])
        leader.sweep()
        follower.sweep()
        self.assertEqual(follower.state(), leader.state())
        self.assertIs(applier.executor, executor)
        self.assertEqual([executor.store is applier.store, executor.lessor is applier.lessor], [True, True])
        now = (applier.store, applier.lessor, applier.alarms, applier.membership, applier.v2.directory, applier.v2.hub)
        self.assertTrue(all(one is other for one, other in zip(now, parts, strict=True)))

    def test_an_earlier_state_is_refused(self) -> None:
        """The state never goes back; whose parts were to change are as they were."""
        leader, follower = Member(0), Member(0)
        for member in (leader, follower):
            for entry in map(ConfChange.FromString, bootstrap_changes([FIRST])):
                member.feed(entry)
        snapshot, _ = leader.snapshot(self.path)
        put = InternalRaftRequest(put=PutRequest(key=b"k")).SerializeToString()
        grant = InternalRaftRequest(lease_grant=LeaseGrantRequest(ID=7, TTL=60)).SerializeToString()
        follower.feed(put)
        follower.feed(grant)
        self.assertRaises(InvariantError, follower.install, self.path, snapshot)
        self.assertEqual((follower.applier.store.revision, len(follower.applier.lessor)), (2, 1))


class DatabaseTests(SynchronousTestCase):
    """What a database makes of the v2 store when a member starts."""

    def setUp(self) -> None:
        self.member = Member(0)
        self.member.feed(ConfChange.FromString(bootstrap_changes([FIRST])[0]))
        self.member.feed(Request(ID=1, Method="PUT", Path=b"/1/k", Val=b"v"))

    def test_it_is_loaded(self) -> None:
        """Tree, history and index are those that were written, and nothing is to be written of them."""
        self.member.flush()
        loaded = load_state(self.member.backend, CONFIG)
        self.assertEqual(content(loaded.directory), content(self.member.applier.v2.directory))
        self.assertEqual(told(loaded.v2hub.history), told(self.member.applier.v2.hub.history))
        self.assertEqual((loaded.directory.index, loaded.directory.changed), (2, set()))
        self.assertIs(loaded.directory.sink, loaded.v2hub)

    def test_a_database_of_before(self) -> None:
        """Without a v2 store it gets that of its members, which is written with what is applied next, and copied."""
        self.member.flush()
        dropped = {(Bucket.META, META_DIRECTORY_INDEX): None}
        for bucket in (Bucket.DIRECTORY, Bucket.DIRECTORY_EVENTS):
            dropped |= {(bucket, key): None for key in self.member.backend.records(bucket)}
        self.member.backend.write(Batch(records={**dropped, (Bucket.CLUSTER, CLUSTER_VERSION): b"3.5.0"}))
        copy = StateCopy(Path())
        copy.begin(self.member.backend, 0)
        copy.close()
        loaded = load_state(self.member.backend, CONFIG)
        self.assertEqual(content(decode(copy.v2_store).directory), content(loaded.directory))
        membership, version = facts(loaded.directory)
        self.assertEqual((membership.members, version), ({FIRST.id: FIRST}, "3.5.0"))
        self.assertEqual(loaded.directory.index, 3)
        self.member.applier = Applier.of(loaded)
        self.member.flush()
        again = load_state(self.member.backend, CONFIG)
        self.assertEqual(content(again.directory), content(loaded.directory))
        self.assertEqual(again.directory.changed, set())

    def test_damage(self) -> None:
        """It is said in one line when a member starts, and when its state is copied."""
        self.member.flush()
        self.member.backend.write(Batch(records={(Bucket.DIRECTORY, b"/1/k"): b"\xff"}))
        text = "the database is damaged: the record b'/1/k' of the v2 store is too short"
        self.assertEqual(str(self.assertRaises(BackendError, load_state, self.member.backend, CONFIG)), text)
        copy = StateCopy(Path())
        self.addCleanup(copy.close)
        self.assertEqual(str(self.assertRaises(BackendError, copy.begin, self.member.backend, 0)), text)


class FileTests(SynchronousTestCase):
    """The file that has arrived."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        member = Member(0)
        member.feed(ConfChange.FromString(bootstrap_changes([FIRST])[0]))
        for number in range(50):
            put = PutRequest(key=b"k%d" % number, value=bytes(1_000))
            member.feed(InternalRaftRequest(put=put).SerializeToString())
        self.message, self.crc32c = member.snapshot(self.path)

    def refusal(self, crc32c: int | None = None) -> str:
        """Why it is refused."""
        return str(self.assertRaises(SnapshotDamagedError, examine_snapshot, self.message, self.path, crc32c))

    def test_a_good_one(self) -> None:
        """It passes, with a checksum and without."""
        examine_snapshot(self.message, self.path, self.crc32c)
        examine_snapshot(self.message, self.path, None)

    def test_a_changed_value(self) -> None:
        """What no other check can see, the checksum does."""
        data = bytearray(self.path.read_bytes())
        data[data.index(bytes(900)) + 100] = 1
        self.path.write_bytes(data)
        examine_snapshot(self.message, self.path, None)
        self.assertIn(f"was sent with {self.crc32c:08x}", self.refusal(self.crc32c))

    def test_a_short_one(self) -> None:
        """Nothing at all, and less than all, is damage."""
        data = self.path.read_bytes()
        for size in (0, 10, len(data) // 2, len(data) - 1):
            self.path.write_bytes(data[:size])
            self.assertIn("the database is damaged", self.refusal())

    def test_a_file_that_is_gone(self) -> None:
        """That is an error of the file system, and no damage."""
        self.path.unlink()
        self.assertRaises(FileNotFoundError, examine_snapshot, self.message, self.path, None)
