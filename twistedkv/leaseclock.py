"""Time for leases, which the leader alone counts: renewing them, and having the log revoke those that have ended.

A lease never ends early: only the leader has it revoked; a new leader gives every lease all of its time again and an
election timeout on top, for it knows of no renewals; and the clock is one that nobody sets.

That time on top is also what lets a leader renew by its own clock. If a quorum said that it led at some moment, then
any other leader began after that moment, and ends no lease before its TTL and the time on top have passed since. So a
renewal holds as long as that moment is not further back than the time on top. Once it is, because the process was
stopped, say, or is cut off, :attr:`LeaseClock.is_certain` is false, and a quorum has to be asked again. etcd 3.5 renews
without asking (etcd-io/etcd#20813, #20418).

Source: etcd ``server/lease/lessor.go`` (Promote, Renew, runLoop) and ``server/etcdserver/server.go``, run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.errors import LeaseNotFoundError
from twistedkv.lease import Deadlines, Lease, Lessor
from twistedkv.metrics import Distribution
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest
from twistedkv.pb.rpc_pb2 import LeaseCheckpoint, LeaseCheckpointRequest, LeaseRevokeRequest

SCAN_S = 0.5  # etcd lessor.go, runLoop
REVOKED_A_SCAN = 1_000  # about 30 ms of work; etcd takes 500 (lessor.go, leaseRevokeRate / 2)
CHECKPOINT_S = 300.0  # etcd lessor.go, defaultLeaseCheckpointInterval
CHECKPOINTS_A_REQUEST = 1_000  # etcd lessor.go, maxLeaseCheckpointBatchSize

_log = Logger()


class LeaseClock:
    """Counts the time of every lease while this member leads.

    Args:
        lessor: the leases; this becomes its listener.
        propose: sends a request through the log.
        reactor: for the intervals between looks.
        now_s: the time that leases are counted by; it never jumps.
        extension_s: what a lease gets beside its TTL when this member begins to lead.
        ttls: the TTLs granted, for the metrics.
        checkpoints: whether to log now and then how long the leases have left, so that the next leader does not give
            long ones all of their time again.
        halt: told when looking failed in a way that is our own fault.
    """

    def __init__(
        self,
        lessor: Lessor,
        propose: Callable[[InternalRaftRequest], Deferred[bytes]],
        reactor: IReactorTime,
        now_s: Callable[[], float],
        extension_s: float,
        ttls: Distribution,
        checkpoints: bool,
        halt: Callable[[Failure], None],
    ) -> None:
        self.leading = False
        self.changes: list[Callable[[], None]] = []  # called after each begin and end of leading
        self.renewed = 0  # since the start
        self.expired = 0
        self._lessor = lessor
        self._propose = propose
        self._now_s = now_s
        self._extension_s = extension_s
        self._ttls = ttls
        self._checkpoints = checkpoints
        self._halt = halt
        self._deadlines = Deadlines()
        self._confirmed_s: float | None = None  # when a quorum last knew this member as its leader
        self._waiting: dict[int, list[Callable[[], None]]] = {}  # by lease, for its end
        self._refused = 0  # revocations that failed since the last look
        self._refusal: BaseException | None = None
        self._scan = LoopingCall(self._revoke_ended)
        self._checkpoint = LoopingCall(self._log_remaining)
        self._scan.clock = self._checkpoint.clock = reactor
        lessor.listener = self

    def start(self) -> None:
        """Begin to look for leases that have ended."""
        self._scan.start(SCAN_S, now=False).addErrback(self._halt)
        if self._checkpoints:
            self._checkpoint.start(CHECKPOINT_S, now=False).addErrback(self._halt)

    def stop(self) -> None:
        """Look no more, and count no more; whoever waits for the end of a lease is told so."""
        for loop in (self._scan, self._checkpoint):
            if loop.running:
                loop.stop()
        self.follow()

    def lead(self) -> None:
        """This member leads, and has applied what earlier leaders committed: all leases begin anew."""
        self.leading = True
        now_s = self._now_s()
        for lease in self._lessor:
            self._deadlines.set(lease.id, now_s + lease.initial_s + self._extension_s)
        self._tell_of_change()

    def follow(self) -> None:
        """Another member leads, or nobody does: no lease ends by this member's clock."""
        self.leading = False
        self._confirmed_s = None
        self._deadlines.clear()
        waiting, self._waiting = self._waiting, {}
        for tells in waiting.values():
            for tell in tells:
                tell()
        self._tell_of_change()

    def _tell_of_change(self) -> None:
        for tell in list(self.changes):
            tell()

    # --- whether it still leads --------------------------------------------------------------------------

    def now_s(self) -> float:
        """The time that leases are counted by."""
        return self._now_s()

    def confirm(self, led_s: float) -> None:
        """A quorum has said that this member led at ``led_s``, in the time that leases are counted by."""
        if self.leading and (self._confirmed_s is None or led_s > self._confirmed_s):
            self._confirmed_s = led_s

    @property
    def is_certain(self) -> bool:
        """Whether a renewal by this member holds, whoever leads by now."""
        return self.leading and self._confirmed_s is not None and self._age_s(self._confirmed_s) < self._extension_s

    @property
    def wants_confirmation(self) -> bool:
        """Whether a quorum should be asked again, so that renewals need not wait for it later."""
        return self._confirmed_s is None or self._age_s(self._confirmed_s) >= self._extension_s / 2

    def _age_s(self, moment_s: float) -> float:
        return self._now_s() - moment_s

    # --- what the lessor says; see LeaseListener -------------------------------------------------------

    def granted(self, lease: Lease) -> None:
        """Begin to count the time of a new lease."""
        self._ttls.observe(lease.ttl_s)
        if self.leading:
            self._deadlines.set(lease.id, self._now_s() + lease.ttl_s)

    def revoked(self, lease: Lease) -> None:
        """Forget it and tell who waits."""
        self._deadlines.forget(lease.id)
        for tell in self._waiting.pop(lease.id, ()):
            tell()

    # --- questions while this member leads ---------------------------------------------------------------

    def renew(self, lease_id: int) -> int | None:
        """Give a lease all of its time again.

        Returns:
            The TTL; None if the lease has ended and is about to be revoked, which :meth:`when_over` tells.

        Raises:
            LeaseNotFoundError: there is none, or this member does not lead.
        """
        lease = self._lessor.get(lease_id)
        deadlines = self._deadlines
        if lease_id not in deadlines:
            raise LeaseNotFoundError
        now_s = self._now_s()
        if deadlines.remaining_s(lease_id, now_s) <= 0:
            return None
        if lease.remaining_ttl_s and self._checkpoints:
            # Logged once a checkpoint at most, not once a renewal. Until it is, a new leader gives less, as in etcd.
            self._log_checkpoints([LeaseCheckpoint(ID=lease_id, remaining_TTL=0)])
        deadlines.set(lease_id, now_s + lease.ttl_s)
        self.renewed += 1
        return lease.ttl_s

    def when_over(self, lease_id: int, tell: Callable[[], None]) -> Callable[[], None]:
        """Call ``tell`` once a lease that exists is revoked, or this member leads no more.

        Returns:
            Takes that back.
        """
        self._waiting.setdefault(lease_id, []).append(tell)

        def cancel() -> None:
            waiting = self._waiting.get(lease_id, [])
            if tell in waiting:
                waiting.remove(tell)
            if not waiting:
                self._waiting.pop(lease_id, None)

        return cancel

    def remaining_s(self, lease_id: int) -> float:
        """How long a lease that exists has left; a moment may pass between its end and its revocation."""
        return self._deadlines.remaining_s(lease_id, self._now_s())

    def by_end(self) -> list[int]:
        """The ids of all leases, the first to end first; by their TTL while nobody counts their time here."""
        if self.leading:
            return self._deadlines.by_end()
        return [lease.id for lease in sorted(self._lessor, key=lambda lease: lease.initial_s)]

    # --- at intervals --------------------------------------------------------------------------------

    def _revoke_ended(self) -> None:
        if self._refused:
            _log.warn(
                "{count} leases that have ended could not be revoked and will be again: {error}",
                count=self._refused,
                error=self._refusal,
            )
            self._refused = 0
        for lease_id in self._deadlines.ended(self._now_s(), REVOKED_A_SCAN):
            revocation = self._propose(InternalRaftRequest(lease_revoke=LeaseRevokeRequest(ID=lease_id)))
            revocation.addCallbacks(self._count_expired, self._count_refused)

    def _count_expired(self, _: Any) -> None:
        self.expired += 1

    def _count_refused(self, failure: Failure) -> None:
        if not failure.check(LeaseNotFoundError):  # else somebody revoked it meanwhile
            self._refused += 1
            self._refusal = failure.value

    def _log_remaining(self) -> None:
        now_s = self._now_s()
        remaining = [(each, self._deadlines.remaining_s(each, now_s)) for each in self._deadlines.by_end()]
        due = [
            LeaseCheckpoint(ID=each, remaining_TTL=int(left_s)) for each, left_s in remaining if left_s > CHECKPOINT_S
        ]
        for start in range(0, len(due), CHECKPOINTS_A_REQUEST):
            self._log_checkpoints(due[start : start + CHECKPOINTS_A_REQUEST])

    def _log_checkpoints(self, checkpoints: list[LeaseCheckpoint]) -> None:
        request = InternalRaftRequest(lease_checkpoint=LeaseCheckpointRequest(checkpoints=checkpoints))
        self._propose(request).addErrback(self._not_logged)

    def _not_logged(self, failure: Failure) -> None:
        _log.warn("cannot log how long leases have left: {error}", error=failure.value)
