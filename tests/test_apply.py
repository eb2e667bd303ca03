"""Entries of the log in, changes of state out: the same ones on every member, and after a restart."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.requests import Requests
from twistedkv.apply import CLUSTER_VERSION, Alarms, Applier
from twistedkv.errors import (
    Code,
    CompactedError,
    CorruptError,
    KVError,
    LeaseNotFoundError,
    MemberNotFoundError,
    NoSpaceError,
    RPCError,
)
from twistedkv.lease import Lease, Lessor
from twistedkv.members import MemberInfo, Membership, bootstrap_changes
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.raft_pb2 import ConfChange, ConfChangeRemoveNode
from twistedkv.pb.rpc_pb2 import (
    CORRUPT,
    NONE,
    NOSPACE,
    AlarmMember,
    AlarmRequest,
    AlarmResponse,
    CompactionRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    PutResponse,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from twistedkv.storage.backend import MAX_MAIN, Bucket, RevisionRow, pack
from twistedkv.storage.keyindex import KeyIndex
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import Need, Store, fetch, hash_kv, load
from twistedkv.txn import Done

MEMBER = MemberInfo(10, ("http://a:2380",))
LEASES = (7, 8)


def new_applier(store: Store | None = None) -> Applier:
    """The state of a new cluster, but for the leases that the random requests name."""
    return Applier(
        store or Store(KeyIndex(1 << 20)), Lessor(1, [Lease(each, 60) for each in LEASES]), Alarms(), Membership()
    )


class World:
    """An applier with its database, driven as the server drives it.

    Args:
        limit_bytes: of values kept in memory.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.backend = MemoryBackend()
        self.applier = new_applier(Store(KeyIndex(limit_bytes)))
        self.answers: list[Done | type[KVError]] = []

    def feed(self, entry: bytes) -> None:
        """Apply one entry of the log."""
        request = InternalRaftRequest.FromString(entry)
        applier = self.applier
        if needs := tuple(applier.needs(request)):
            self.flush()
            applier.store.lend(fetch(self.backend, needs))
        try:
            self.answers.append(applier.apply(request))
        except KVError as error:
            self.answers.append(type(error))
        applier.store.lend(None)
        applier.store.index.evict()

    def flush(self) -> None:
        """What the write-behind does."""
        self.backend.write(self.applier.store.take_batch())

    def restart(self) -> None:
        """A new applier on what the database holds, and the attachments of leases."""
        self.flush()
        records = self.backend.records
        self.applier = Applier(
            load(self.backend, self.limit_bytes),
            self.applier.lessor,
            Alarms(records(Bucket.ALARMS)),
            Membership.from_records(records(Bucket.MEMBERS)),
            records(Bucket.CLUSTER).get(CLUSTER_VERSION, b"").decode(),
        )

    def state(self) -> tuple[list[RevisionRow], list[dict[bytes, bytes]], int, list[AlarmMember]]:
        """All that was replicated, as the database has it; the hash of it."""
        self.flush()
        store = self.applier.store
        rows = self.backend.scan(0, pack(MAX_MAIN), 1 << 20)
        records = [self.backend.records(bucket) for bucket in Bucket]
        return rows, records, hash_kv(self.backend, store.revision, store.compacted), self.applier.alarms.listed()


def random_entry(requests: Requests) -> bytes:
    """One entry of a log."""
    dice = requests.dice
    request = InternalRaftRequest()
    match dice.randint(0, 12):
        case 0:
            kind, action = dice.choice((NONE, NOSPACE, NOSPACE, CORRUPT)), dice.choice((0, 1, 1, 2, 2, 2))
            request.alarm.CopyFrom(AlarmRequest(action=action, memberID=dice.choice((0, 10)), alarm=kind))  # type: ignore[arg-type]
        case 1:
            request.cluster_version_set.ver = dice.choice(("3.5.0", "3.6.0"))
        case 2:
            request.cluster_member_attr_set.member_ID = dice.choice((10, 11))
            request.cluster_member_attr_set.member_attributes.name = dice.choice(("a", "b"))
        case _:
            match requests.any():
                case PutRequest() as put:
                    request.put.CopyFrom(put)
                case DeleteRangeRequest() as delete:
                    request.delete_range.CopyFrom(delete)
                case TxnRequest() as txn:
                    request.txn.CopyFrom(txn)
                case CompactionRequest() as compaction:
                    request.compaction.CopyFrom(compaction)
                case RangeRequest():
                    request.lease_grant.TTL = 5
    return request.SerializeToString()


class DeterminismTests(SynchronousTestCase):
    """Equal logs give equal state."""

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 1 << 32), length=st.integers(1, 60))
    def test_equal_logs_give_equal_state(self, seed: int, length: int) -> None:
        """Two members with different caches, one of which restarts and flushes now and then, stay equal: rows, records,
        answers and hash."""
        dice = Random(seed)
        steady, shaken = World(1 << 20), World(0)
        for world in (steady, shaken):
            world.applier.apply_conf_change(ConfChange.FromString(bootstrap_changes([MEMBER])[0]))
        requests = Requests(Random(seed))
        for _ in range(length):
            requests.revision = steady.applier.store.revision
            entry = random_entry(requests)
            steady.feed(entry)
            shaken.feed(entry)
            match dice.randint(0, 7):
                case 0:
                    shaken.restart()
                case 1:
                    shaken.flush()
        self.assertEqual(shaken.answers, steady.answers)
        self.assertEqual(shaken.state(), steady.state())
        shaken.restart()
        self.assertEqual(shaken.applier.cluster_version, steady.applier.cluster_version)
        self.assertEqual(shaken.applier.membership.listed(), steady.applier.membership.listed())
        self.assertEqual(shaken.applier.store.compacted, steady.applier.store.compacted)
        self.assertEqual(shaken.state(), steady.state())


class ApplyTests(SynchronousTestCase):
    """One entry of each kind."""

    def setUp(self) -> None:
        self.applier = new_applier()
        self.store = self.applier.store

    def apply(self, **fields: object) -> Done:
        """Apply one request."""
        return self.applier.apply(InternalRaftRequest(**fields))  # type: ignore[arg-type]

    def test_keys(self) -> None:
        """Puts, deletes and transactions change the store and answer with its revision."""
        self.assertEqual(self.apply(put=PutRequest(key=b"a")), Done(2, b""))
        put = RequestOp(request_put=PutRequest(key=b"b"))
        self.assertEqual(self.apply(txn=TxnRequest(success=[put])).revision, 3)
        deleted = self.apply(delete_range=DeleteRangeRequest(key=b"a", range_end=b"\0"))
        self.assertEqual(deleted, Done(4, b"\x10\x02"))

    def test_refusal_changes_nothing(self) -> None:
        """§1 no-op: a failed request takes no revision."""
        self.assertRaises(LeaseNotFoundError, self.apply, put=PutRequest(key=b"a", lease=9))
        self.assertEqual((self.store.revision, bool(self.store.batch)), (1, False))

    def test_compaction(self) -> None:
        """§5: a compaction answers with the current revision and takes none."""
        self.apply(put=PutRequest(key=b"a"))
        self.assertEqual(self.apply(compaction=CompactionRequest(revision=2)), Done(2, b""))
        self.assertRaises(CompactedError, self.apply, compaction=CompactionRequest(revision=2))

    def test_needs(self) -> None:
        """What must be fetched before a request can be applied is known from the request and the index."""
        store = Store(KeyIndex(0))
        applier = new_applier(store)
        applier.apply(InternalRaftRequest(put=PutRequest(key=b"a", value=b"v" * 200)))
        store.index.evict()
        need = Need(b"a", b"", 0, (pack(2),))
        get = RequestOp(request_range=RangeRequest(key=b"a"))
        for request in (
            InternalRaftRequest(put=PutRequest(key=b"a", prev_kv=True)),
            InternalRaftRequest(delete_range=DeleteRangeRequest(key=b"a", prev_kv=True)),
            InternalRaftRequest(txn=TxnRequest(success=[get])),
        ):
            self.assertEqual(list(applier.needs(request)), [need])
        compaction = InternalRaftRequest(compaction=CompactionRequest(revision=1))
        self.assertEqual(list(applier.needs(compaction)), [])

    def test_members(self) -> None:
        """A member that comes in and says who it is is recorded under its id in hex; an unknown one is not."""
        self.applier.apply_conf_change(ConfChange.FromString(bootstrap_changes([MEMBER])[0]))
        self.assertEqual(self.store.take_batch().records[Bucket.MEMBERS, b"a"], MEMBER.to_json())
        request = InternalRaftRequest()
        request.cluster_member_attr_set.member_ID = 10
        request.cluster_member_attr_set.member_attributes.name = "a"
        request.cluster_member_attr_set.member_attributes.client_urls.append("http://a:2379")
        self.applier.apply(request)
        started = MemberInfo(10, MEMBER.peer_urls, "a", ("http://a:2379",))
        self.assertEqual(self.applier.membership.listed(), [started])
        self.assertEqual(self.store.take_batch().records[Bucket.MEMBERS, b"a"], started.to_json())
        request.cluster_member_attr_set.member_ID = 11
        self.assertEqual(self.applier.apply(request), Done(1, b""))
        self.assertFalse(self.store.batch)

    def test_refused_change_of_membership(self) -> None:
        """A change that cannot be carried out records nothing."""
        change = ConfChange(type=ConfChangeRemoveNode, node_id=10)
        self.assertRaises(MemberNotFoundError, self.applier.apply_conf_change, change)
        self.assertFalse(self.store.batch)

    def test_cluster_version(self) -> None:
        """The cluster's version is kept and recorded."""
        request = InternalRaftRequest()
        request.cluster_version_set.ver = "3.5.0"
        self.assertEqual(self.applier.apply(request), Done(1, b""))
        self.assertEqual(self.applier.cluster_version, "3.5.0")
        self.assertEqual(self.store.batch.records, {(Bucket.CLUSTER, CLUSTER_VERSION): b"3.5.0"})

    def test_unknown_request(self) -> None:
        """A request of a later version is refused."""
        error = self.assertRaises(RPCError, self.apply)
        self.assertEqual(error.code, Code.UNIMPLEMENTED)


class AlarmTests(SynchronousTestCase):
    """§9, alarms."""

    def setUp(self) -> None:
        self.applier = new_applier()
        self.apply(put=PutRequest(key=b"a", value=b"v"))

    def apply(self, **fields: object) -> Done:
        """Apply one request."""
        return self.applier.apply(InternalRaftRequest(**fields))  # type: ignore[arg-type]

    def alarm(self, action: int, member: int = 0, kind: int = NONE) -> list[tuple[int, int]]:
        """Apply one alarm request; the alarms in its answer."""
        request = AlarmRequest(action=action, memberID=member, alarm=kind)  # type: ignore[arg-type]
        done = self.apply(alarm=request)
        self.assertEqual(done.revision, 2)
        return [(each.memberID, each.alarm) for each in AlarmResponse.FromString(done.body).alarms]

    def test_raise_and_take_back(self) -> None:
        """§9 Alarm: NONE asks for all; raising twice is raising once; only the exact member and kind take it back."""
        self.assertEqual(self.alarm(AlarmRequest.ACTIVATE, 2, NOSPACE), [(2, NOSPACE)])
        self.assertEqual(self.alarm(AlarmRequest.ACTIVATE, 2, NOSPACE), [(2, NOSPACE)])
        self.alarm(AlarmRequest.ACTIVATE, 1, CORRUPT)
        self.assertEqual(self.alarm(AlarmRequest.GET), [(2, NOSPACE), (1, CORRUPT)])
        self.assertEqual(self.alarm(AlarmRequest.GET, kind=CORRUPT), [(1, CORRUPT)])
        self.assertEqual(self.alarm(AlarmRequest.ACTIVATE, 3, NONE), [])
        self.assertEqual(self.alarm(AlarmRequest.DEACTIVATE, 1, NOSPACE), [])
        self.assertEqual(self.alarm(AlarmRequest.DEACTIVATE, 2, NOSPACE), [(2, NOSPACE)])
        self.assertEqual(self.alarm(AlarmRequest.GET), [(1, CORRUPT)])

    def test_alarms_survive(self) -> None:
        """An alarm is recorded as etcd does it, the message being the key, and found again; taken back, it is gone."""
        backend = MemoryBackend()
        self.alarm(AlarmRequest.ACTIVATE, 2, NOSPACE)
        backend.write(self.applier.store.take_batch())
        records = backend.records(Bucket.ALARMS)
        self.assertEqual(records, {AlarmMember(memberID=2, alarm=NOSPACE).SerializeToString(): b""})
        self.assertTrue(Alarms(records).raised(NOSPACE))
        self.alarm(AlarmRequest.DEACTIVATE, 2, NOSPACE)
        backend.write(self.applier.store.take_batch())
        self.assertFalse(Alarms(backend.records(Bucket.ALARMS)))

    def test_unknown_action(self) -> None:
        """§9: etcd 3.5.1 crashes on an action that does not exist; here it is a bad request."""
        error = self.assertRaises(RPCError, self.alarm, 3)
        self.assertEqual(error.code, Code.INVALID_ARGUMENT)

    def test_no_space(self) -> None:
        """§9 NOSPACE: puts, transactions whose puts cost, and grants are refused; what frees or reads is not."""
        self.alarm(AlarmRequest.ACTIVATE, 1, NOSPACE)
        put = RequestOp(request_put=PutRequest(key=b"b"))
        get = RequestOp(request_range=RangeRequest(key=b"a"))
        for refused in (
            {"put": PutRequest(key=b"b")},
            {"txn": TxnRequest(failure=[put])},
            {"lease_grant": LeaseGrantRequest(TTL=1)},
        ):
            self.assertRaises(NoSpaceError, self.apply, **refused)
        self.apply(txn=TxnRequest(success=[get]))
        self.apply(compaction=CompactionRequest(revision=1))
        self.assertEqual(self.apply(delete_range=DeleteRangeRequest(key=b"a")).revision, 3)

    def test_corrupt(self) -> None:
        """§9 CORRUPT: every write is refused, alarms are not; when it is taken back, writes go on."""
        self.alarm(AlarmRequest.ACTIVATE, 1, CORRUPT)
        for refused in (
            {"put": PutRequest(key=b"b", prev_kv=True)},
            {"txn": TxnRequest()},
            {"delete_range": DeleteRangeRequest(key=b"a")},
            {"compaction": CompactionRequest(revision=1)},
            {"lease_grant": LeaseGrantRequest(TTL=1)},
            {"lease_revoke": LeaseRevokeRequest(ID=1)},
        ):
            self.assertRaises(CorruptError, self.apply, **refused)
        self.alarm(AlarmRequest.DEACTIVATE, 1, CORRUPT)
        done = self.apply(put=PutRequest(key=b"a", prev_kv=True))
        self.assertEqual(PutResponse.FromString(done.body).prev_kv.value, b"v")
