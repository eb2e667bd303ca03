"""Leases and keys together, as entries of the log change them: against a model, through restarts."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv import txn
from twistedkv.apply import Alarms, Applier
from twistedkv.errors import (
    CorruptError,
    KVError,
    LeaseExistsError,
    LeaseNotFoundError,
    LeaseTTLTooLargeError,
    NoSpaceError,
)
from twistedkv.lease import Lessor, load_leases
from twistedkv.members import Membership
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.rpc_pb2 import (
    CORRUPT,
    NOSPACE,
    DeleteRangeRequest,
    LeaseCheckpoint,
    LeaseCheckpointRequest,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseRevokeRequest,
    PutRequest,
    RequestOp,
    TxnRequest,
)
from twistedkv.storage.backend import MAX_MAIN, Bucket, main_of, pack
from twistedkv.storage.keyindex import KeyIndex
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.mvcc import Store, load
from twistedkv.txn import Done

_IDS = (1, 2, -5)
_KEYS = (b"a", b"b", b"c", b"d")


class World:
    """An applier with its database."""

    def __init__(self) -> None:
        self.backend = MemoryBackend()
        self.applier = Applier(Store(KeyIndex(1 << 20)), Lessor(2), Alarms(), Membership())

    def apply(self, **fields: Any) -> Done:
        return self.applier.apply(InternalRaftRequest(**fields))

    def grant(self, lease_id: int, ttl_s: int = 60) -> LeaseGrantResponse:
        return LeaseGrantResponse.FromString(self.apply(lease_grant=LeaseGrantRequest(ID=lease_id, TTL=ttl_s)).body)

    def revoke(self, lease_id: int) -> int:
        return self.apply(lease_revoke=LeaseRevokeRequest(ID=lease_id)).revision

    def put(self, key: bytes, lease: int = 0) -> int:
        return self.apply(put=PutRequest(key=key, lease=lease)).revision

    def restart(self) -> None:
        """A member that starts on what the database holds."""
        self.backend.write(self.applier.store.take_batch())
        store = load(self.backend, 1 << 20)
        lessor = Lessor(2, load_leases(self.backend.records(Bucket.LEASES)))
        lessor.reattach(store.index.entries.items())
        self.applier = Applier(store, lessor, Alarms(), Membership())

    def leases(self) -> dict[int, tuple[int, frozenset[bytes]]]:
        return {lease.id: (lease.ttl_s, frozenset(lease.keys)) for lease in self.applier.lessor}

    def live(self) -> set[bytes]:
        return set(self.applier.store.index.entries)


class Model:
    """The same in a few dictionaries."""

    def __init__(self) -> None:
        self.revision = 1
        self.ttls: dict[int, int] = {}
        self.keys: dict[bytes, int] = {}

    def grant(self, lease_id: int, ttl_s: int) -> None:
        if ttl_s > 9_000_000_000:
            raise LeaseTTLTooLargeError
        if lease_id in self.ttls:
            raise LeaseExistsError
        self.ttls[lease_id] = max(ttl_s, 2)

    def revoke(self, lease_id: int) -> None:
        if lease_id not in self.ttls:
            raise LeaseNotFoundError
        del self.ttls[lease_id]
        kept = {key: lease for key, lease in self.keys.items() if lease != lease_id}
        self.revision += len(kept) != len(self.keys)
        self.keys = kept

    def put(self, key: bytes, lease: int) -> None:
        if lease and lease not in self.ttls:
            raise LeaseNotFoundError
        self.keys[key] = lease
        self.revision += 1

    def delete(self, key: bytes) -> None:
        self.revision += self.keys.pop(key, None) is not None

    def leases(self) -> dict[int, tuple[int, frozenset[bytes]]]:
        return {
            lease_id: (ttl_s, frozenset(key for key, lease in self.keys.items() if lease == lease_id))
            for lease_id, ttl_s in self.ttls.items()
        }


_ID, _KEY = st.sampled_from(_IDS), st.sampled_from(_KEYS)
_STEPS = st.one_of(
    st.tuples(st.just("grant"), _ID, st.sampled_from((-1, 0, 2, 60, 9_000_000_001))),
    st.tuples(st.just("revoke"), _ID),
    st.tuples(st.just("put"), _KEY, st.sampled_from((0, *_IDS))),
    st.tuples(st.just("put"), _KEY, st.sampled_from((0, *_IDS))),
    st.tuples(st.just("delete"), _KEY),
    st.tuples(st.just("restart")),
)


class LeaseTests(SynchronousTestCase):
    """etcd semantics §7: grants, revocations, and what they do to keys."""

    def setUp(self) -> None:
        self.world = World()

    @given(st.lists(_STEPS, max_size=40))
    def test_as_in_the_model(self, steps: list[tuple[Any, ...]]) -> None:
        """Whatever is granted, revoked, put and deleted, with restarts between: leases, keys and revision agree."""
        world, model = World(), Model()
        for name, *arguments in steps:
            if name == "restart":
                world.restart()
                continue
            refused: list[type[KVError] | None] = []
            for target in (self._real(world, name), getattr(model, name)):
                try:
                    target(*arguments)
                    refused.append(None)
                except KVError as error:
                    refused.append(type(error))
            self.assertEqual(*refused)
            self.assertEqual(world.leases(), model.leases())
            self.assertEqual(world.live(), set(model.keys))
            self.assertEqual(world.applier.store.revision, model.revision)

    @staticmethod
    def _real(world: World, name: str) -> Any:
        if name == "delete":
            return lambda key: world.apply(delete_range=DeleteRangeRequest(key=key))
        return getattr(world, name)

    def test_a_grant_changes_no_revision(self) -> None:
        """Granting answers with the id and the TTL, raised to the minimum, and takes no revision."""
        answer = self.world.grant(7, 1)
        self.assertEqual((answer.ID, answer.TTL), (7, 2))
        self.assertEqual(self.world.applier.store.revision, 1)

    def test_revoking_deletes_in_one_revision_and_in_order(self) -> None:
        """The keys of a lease go in one revision, sorted; the answer names it, and without keys there is none."""
        self.world.grant(7)
        for key in (b"c", b"a", b"b"):
            self.world.put(key, 7)
        self.assertEqual(self.world.revoke(7), 5)
        rows = self.world.applier.store.batch.rows[-3:]
        self.assertEqual([(row.key, row.revision, row.tombstone) for row in rows], [
            (b"a", pack(5, 0), True), (b"b", pack(5, 1), True), (b"c", pack(5, 2), True)
        ])  # fmt: skip
        self.world.grant(8)
        self.assertEqual(self.world.revoke(8), 5)

    def test_more_keys_than_a_revision_holds(self) -> None:
        """A lease with more keys than fit into one revision goes in several, the same on every member."""
        self.patch(txn, "MAX_DELETED", 2)
        self.world.grant(7)
        for number in range(5):
            self.world.put(b"%d" % number, 7)
        self.assertEqual(self.world.revoke(7), 9)
        rows = self.world.applier.store.batch.rows[-5:]
        self.assertEqual([main_of(row.revision) for row in rows], [7, 7, 8, 8, 9])
        self.assertEqual((self.world.live(), self.world.leases()), (set(), {}))

    def test_a_transaction_attaches_too(self) -> None:
        """Puts inside of a transaction hang their keys on leases, and move them from one to another."""
        self.world.grant(7)
        self.world.grant(8)
        self.world.put(b"a", 7)
        moves = [RequestOp(request_put=PutRequest(key=key, lease=8)) for key in (b"a", b"b")]
        self.world.apply(txn=TxnRequest(success=moves))
        self.assertEqual(self.world.leases(), {7: (60, frozenset()), 8: (60, frozenset((b"a", b"b")))})

    def test_checkpoints_survive_a_restart(self) -> None:
        """What was logged of the remaining time is what a member that starts knows; unknown leases are passed over."""
        self.world.grant(7, 900)
        checkpoints = [LeaseCheckpoint(ID=each, remaining_TTL=400) for each in (7, 99)]
        self.world.apply(lease_checkpoint=LeaseCheckpointRequest(checkpoints=checkpoints))
        self.world.restart()
        lease = self.world.applier.lessor.get(7)
        self.assertEqual((lease.initial_s, lease.ttl_s), (400, 900))

    def test_alarms_refuse_leases(self) -> None:
        """Without space nothing is granted but leases are revoked; a corrupt cluster does neither."""
        self.world.grant(7)
        self.world.applier.alarms.activate(1, NOSPACE)
        self.assertRaises(NoSpaceError, self.world.grant, 8)
        self.world.revoke(7)
        self.world.applier.alarms.activate(1, CORRUPT)
        self.assertRaises(CorruptError, self.world.grant, 8)
        self.assertRaises(CorruptError, self.world.revoke, 7)

    def test_the_database_forgets_what_was_revoked(self) -> None:
        """Records of leases are there as long as the leases are, under their ids' 8 bytes."""
        self.world.grant(7)
        self.world.grant(-5)
        self.world.restart()
        keys = [b"\0\0\0\0\0\0\0\x07", b"\xff\xff\xff\xff\xff\xff\xff\xfb"]
        self.assertEqual(sorted(self.world.backend.records(Bucket.LEASES)), keys)
        self.world.revoke(7)
        self.world.restart()
        self.assertEqual(sorted(self.world.backend.records(Bucket.LEASES)), keys[1:])
        self.assertEqual(self.world.backend.scan(0, pack(MAX_MAIN), 10), [])
