"""Leases: which exist and what hangs on them (:class:`Lessor`), and when they end (:class:`Deadlines`).

The two are apart because only the first is replicated. Granting, revoking and attaching come out of the log and are
equal on all members. Time is not: the leader alone counts it, begins anew when it becomes leader, and says through the
log when a lease is over. Sources: etcd ``server/lease/lessor.go``, ``lease_queue.go``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import Protocol

from twistedkv.errors import LeaseExistsError, LeaseNotFoundError, LeaseTTLTooLargeError
from twistedkv.pb.kv_pb2 import KeyValue
from twistedkv.pb.lease_pb2 import Lease as LeaseRecord
from twistedkv.storage.keyindex import Evicted

MAX_TTL_S = 9_000_000_000  # etcd lessor.go, MaxLeaseTTL: more would overflow Go's durations
RETRY_S = 3.0  # etcd lessor.go, defaultExpiredleaseRetryInterval

_NO_KEYS: frozenset[bytes] = frozenset()  # in place of an empty set, which takes more memory than all else of a lease
_STALE_ENTRIES = 1_000  # of a heap, beside as many as there are leases, before it is made anew


class Lease:
    """One lease. ``keys`` change with every put and delete; the rest when the log says so."""

    __slots__ = ("id", "keys", "remaining_ttl_s", "ttl_s")

    def __init__(self, lease_id: int, ttl_s: int, remaining_ttl_s: int = 0) -> None:
        self.id = lease_id  # signed 64 bits, not 0
        self.ttl_s = ttl_s
        self.remaining_ttl_s = remaining_ttl_s  # what a new leader gives it: the last checkpoint; 0: there is none
        self.keys: set[bytes] | frozenset[bytes] = _NO_KEYS

    def attach(self, key: bytes) -> None:
        """Hang ``key`` on it."""
        if isinstance(self.keys, frozenset):
            self.keys = {key}
        else:
            self.keys.add(key)

    def detach(self, key: bytes) -> None:
        """Take ``key`` off it; one that does not hang there is no error."""
        if not isinstance(self.keys, frozenset):
            self.keys.discard(key)

    @property
    def initial_s(self) -> int:
        """What a leader that just began gives it."""
        return self.remaining_ttl_s or self.ttl_s


class LeaseListener(Protocol):
    """Who wants to know of leases that come and go, such as the one who counts their time."""

    def granted(self, lease: Lease) -> None:
        """It exists from now on."""

    def revoked(self, lease: Lease) -> None:
        """It is gone, and its keys with it."""


class Lessor:
    """Which leases exist and which keys are attached to each. A key has at most one lease.

    Args:
        min_ttl_s: what a shorter TTL is raised to.
        leases: those that exist.
    """

    def __init__(self, min_ttl_s: int = 1, leases: Iterable[Lease] = ()) -> None:
        self.granted = 0  # since the start
        self.revoked = 0
        self.listener: LeaseListener | None = None
        self._min_ttl_s = min_ttl_s
        self._leases = {lease.id: lease for lease in leases}

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases.values())

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._leases

    def get(self, lease_id: int) -> Lease:
        """The lease with this id.

        Raises:
            LeaseNotFoundError: there is none.
        """
        lease = self._leases.get(lease_id)
        if lease is None:
            raise LeaseNotFoundError
        return lease

    def keys(self, lease_id: int) -> frozenset[bytes]:
        """The keys that hang on a lease that exists."""
        return frozenset(self._leases[lease_id].keys)

    def check(self, lease_id: int) -> None:
        """Refuse a lease that does not exist; 0 stands for no lease.

        Raises:
            LeaseNotFoundError: there is none with this id.
        """
        if lease_id and lease_id not in self._leases:
            raise LeaseNotFoundError

    def grant(self, lease_id: int, ttl_s: int) -> Lease:
        """Make a lease.

        Raises:
            LeaseNotFoundError: the id is 0, which is nobody's.
            LeaseTTLTooLargeError: longer than :data:`MAX_TTL_S`.
            LeaseExistsError: the id is taken.
        """
        if not lease_id:
            raise LeaseNotFoundError
        if ttl_s > MAX_TTL_S:
            raise LeaseTTLTooLargeError
        if lease_id in self._leases:
            raise LeaseExistsError
        lease = self._leases[lease_id] = Lease(lease_id, max(ttl_s, self._min_ttl_s))
        self.granted += 1
        if self.listener is not None:
            self.listener.granted(lease)
        return lease

    def revoke(self, lease_id: int) -> Lease:
        """Take a lease away. Its keys are the caller's to delete.

        Raises:
            LeaseNotFoundError: there is none.
        """
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            raise LeaseNotFoundError
        self.revoked += 1
        if self.listener is not None:
            self.listener.revoked(lease)
        return lease

    def reattach(self, entries: Iterable[tuple[bytes, bytes | Evicted]]) -> None:
        """Hang every key on the lease that its pair names, as a member does when it starts."""
        if not self._leases:
            return
        for key, entry in entries:
            lease_id = entry.lease if isinstance(entry, Evicted) else KeyValue.FromString(entry).lease
            if lease_id in self._leases:
                self._leases[lease_id].attach(key)

    def restore(self, other: Lessor) -> None:
        """Have the leases of ``other``, with the keys that hang on them; ``other`` is not used any more.

        The listener is told of each lease that is gone and of each one that is new, as if by the log; what was counted
        stays. This happens to members that follow, which is why no lease has a time to be kept.
        """
        before, self._leases = self._leases, other._leases
        if self.listener is None:
            return
        # One with the same id and another TTL was revoked and granted again in between.
        for lease in before.values():
            if not _same(lease, self._leases.get(lease.id)):
                self.listener.revoked(lease)
        for lease in self._leases.values():
            if not _same(lease, before.get(lease.id)):
                self.listener.granted(lease)

    def checkpoint(self, lease_id: int, remaining_ttl_s: int) -> Lease | None:
        """Remember how long a lease had left, 0 for all of it; None if it is gone, which is no error."""
        lease = self._leases.get(lease_id)
        if lease is not None:
            lease.remaining_ttl_s = remaining_ttl_s
        return lease

    def attach(self, lease_id: int, key: bytes) -> None:
        """Hang ``key`` on a lease that exists."""
        self._leases[lease_id].attach(key)

    def detach(self, lease_id: int, key: bytes) -> None:
        """Take ``key`` off its lease; a lease that is gone is no error."""
        if (lease := self._leases.get(lease_id)) is not None:
            lease.detach(key)


def _same(lease: Lease, other: Lease | None) -> bool:
    return other is not None and lease.ttl_s == other.ttl_s


def min_ttl_s(election_ticks: int, heartbeat_ms: int) -> int:
    """The shortest TTL: no lease may end while a new leader is being found. etcd ``server.go``, NewServer."""
    ticks_ms = 3 * election_ticks // 2 * heartbeat_ms
    return -(-ticks_ms // 1000)


# --- as the database keeps them ----------------------------------------------------------------------


def record_key(lease_id: int) -> bytes:
    """The key of a lease's record: 8 bytes, big-endian, two's complement."""
    return lease_id.to_bytes(8, "big", signed=True)


def encode_record(lease: Lease) -> bytes:
    """A lease's record: ``leasepb.Lease``. Its keys are in their own rows."""
    return LeaseRecord(ID=lease.id, TTL=lease.ttl_s, RemainingTTL=lease.remaining_ttl_s).SerializeToString()


def load_leases(records: Mapping[bytes, bytes]) -> Iterator[Lease]:
    """The leases of all records, without their keys."""
    for encoded in records.values():
        record = LeaseRecord.FromString(encoded)
        yield Lease(record.ID, record.TTL, record.RemainingTTL)


# --- time --------------------------------------------------------------------------------------------


class Deadlines:
    """When each lease ends, on whatever clock the caller counts by. Forgets nothing by itself.

    A heap with lazy deletion: renewing a lease only notes its new end, and its place in the heap is put right when it
    comes to the top. So a renewal costs a dictionary entry, and looking for ended leases costs nothing while there are
    none, however many leases there are.
    """

    def __init__(self) -> None:
        self._ends_s: dict[int, float] = {}
        self._queued_s: dict[int, float] = {}  # when the heap's one entry of each lease comes up; not after its end
        self._heap: list[tuple[float, int]] = []  # an entry that is not the queued one is stale

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._ends_s

    def set(self, lease_id: int, end_s: float) -> None:
        """Have a lease end at ``end_s``."""
        self._ends_s[lease_id] = end_s
        queued_s = self._queued_s.get(lease_id)
        if queued_s is None or queued_s > end_s:
            self._queue(lease_id, end_s)

    def forget(self, lease_id: int) -> None:
        """A lease is gone; one that is not known is no error."""
        self._ends_s.pop(lease_id, None)
        self._queued_s.pop(lease_id, None)

    def clear(self) -> None:
        """Forget all of them."""
        self._ends_s.clear()
        self._queued_s.clear()
        self._heap.clear()

    def remaining_s(self, lease_id: int, now_s: float) -> float:
        """How long a lease has left; not above 0 once it has ended."""
        return self._ends_s[lease_id] - now_s

    def ended(self, now_s: float, limit: int) -> list[int]:
        """Leases that have ended, at most ``limit``, the first to end first.

        Those named are named again :data:`RETRY_S` later if they are still known then.
        """
        heap, ends_s, queued_s = self._heap, self._ends_s, self._queued_s
        found: list[int] = []
        while heap and heap[0][0] <= now_s and len(found) < limit:
            at_s, lease_id = heappop(heap)
            if queued_s.get(lease_id) != at_s:
                continue
            end_s = ends_s[lease_id]
            if end_s <= now_s:
                found.append(lease_id)
                end_s = now_s + RETRY_S
            self._queue(lease_id, end_s)
        return found

    def by_end(self) -> list[int]:
        """All leases, the first to end first."""
        return sorted(self._ends_s, key=self._ends_s.__getitem__)

    def _queue(self, lease_id: int, at_s: float) -> None:
        self._queued_s[lease_id] = at_s
        heap = self._heap
        heappush(heap, (at_s, lease_id))
        if len(heap) > 2 * len(self._queued_s) + _STALE_ENTRIES:  # leases that were revoked long before their end
            heap[:] = [(at_s, lease_id) for lease_id, at_s in self._queued_s.items()]
            heapify(heap)
