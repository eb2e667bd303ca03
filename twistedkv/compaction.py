"""Compaction behind the scenes: choosing the revision by itself, and deleting the rows that it drops.

Sources: etcd ``server/etcdserver/api/v3compactor/{periodic,revision}.go`` and
``server/storage/mvcc/kvstore_compaction.go``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedkv.config import CompactionMode, Config
from twistedkv.errors import CompactedError
from twistedkv.metrics import Metrics
from twistedkv.storage.backend import Backend, Bucket
from twistedkv.storage.mvcc import META_COMPACTION_DONE, Store

BATCH_ROWS = 5_000  # etcd takes 1,000; a batch of ours has costs of its own, and stays under 0.1 s
PAUSE_S = 0.01  # etcd --compaction-sleep-interval

_REVISION_INTERVAL_S = 300.0
_SAMPLES_PER_PERIOD = 10
_LONGEST_INTERVAL_S = 3600.0

_log = Logger()


class Sweeper:
    """Deletes the rows that compactions dropped, batch by batch, with pauses in which the database does other things.

    Args:
        store: knows the compact revision.
        read_backend: runs ``function(backend, …)`` on the storage thread after what was applied so far.
        clock: for the pauses.
        done: the revision up to which an earlier life had deleted everything.
        metrics: told how long it takes.
    """

    def __init__(
        self,
        store: Store,
        read_backend: Callable[..., Deferred[Any]],
        clock: IReactorTime,
        done: int,
        metrics: Metrics,
    ) -> None:
        self.done = done
        self.rows_deleted = 0
        self.ended_s = 0.0  # when the last compaction was done
        self._metrics = metrics
        self._began_s = 0.0  # when this one began,
        self._batch_began_s = 0.0  # and its last batch
        self._store = store
        self._read_backend = read_backend
        self._clock = clock
        self._target = 0
        self._waiting: list[tuple[int, Deferred[None]]] = []
        self._pause: IDelayedCall | None = None
        self._holders = 0  # who asked for stillness
        self._held_after: int | None = None  # where to go on
        self._stopped = False

    def sweep(self) -> None:
        """Begin to delete up to the store's compact revision, unless that is going on or done."""
        if not self._target and self.done < self._store.compacted and not self._stopped:
            self._target = self._store.compacted
            self._began_s = self._clock.seconds()
            self._next(0)

    def swept(self, revision: int) -> Deferred[None]:
        """Fires when the rows that compaction at ``revision`` drops are deleted."""
        waiter: Deferred[None] = Deferred()
        if self.done >= revision:
            waiter.callback(None)
        else:
            self._waiting.append((revision, waiter))
            self.sweep()
        return waiter

    def hold(self) -> None:
        """Delete nothing of which the storage thread did not hear yet, until as many calls of :meth:`release` came."""
        self._holders += 1

    def release(self) -> None:
        """Go on deleting once nobody holds any more."""
        self._holders -= 1
        after = self._held_after
        if not self._holders and after is not None and not self._stopped:
            self._held_after = None
            self._next(after)

    def restored(self, done: int) -> None:
        """The database is another one now, swept up to ``done``; goes on with that one, and holds no more.

        Whoever held by :meth:`hold` to replace it does not call :meth:`release`.
        """
        self.done, self._target, self._held_after = done, 0, None
        self._holders -= 1
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._answer_swept()
        self.sweep()

    def stop(self) -> None:
        """Delete nothing more; the next start goes on. Whoever waits is not answered by this."""
        self._stopped = True
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _next(self, after: int) -> None:
        self._pause = None
        if self._holders:
            self._held_after = after
            return
        target = self._target
        self._batch_began_s = self._clock.seconds()

        def compact(backend: Backend) -> tuple[int, int]:
            # A watch from the compact revision on may still want all of its changes, deletions among them, which etcd
            # loses (issue 18089): what this revision itself makes superfluous stays until the next compaction.
            return backend.compact(target - 1, after, BATCH_ROWS)

        self._read_backend(compact).addCallbacks(self._looked_at, self._failed)

    def _looked_at(self, result: tuple[int, int]) -> None:
        if self._stopped or not self._target:  # the database was replaced meanwhile
            return
        deleted, last = result
        now_s = self._clock.seconds()
        self.rows_deleted += deleted
        self._metrics.compaction_pause_ms.observe((now_s - self._batch_began_s) * 1000)
        if last:
            self._pause = self._clock.callLater(PAUSE_S, self._next, last)
            return
        self.done, self._target = self._target, 0
        self._metrics.compaction_ms.observe((now_s - self._began_s) * 1000)
        self.ended_s = now_s
        self._store.record(Bucket.META, META_COMPACTION_DONE, b"%d" % self.done)
        _log.info("compacted up to revision {revision}", revision=self.done)
        self._answer_swept()
        self.sweep()

    def _answer_swept(self) -> None:
        waiting, self._waiting = self._waiting, []
        for revision, waiter in waiting:
            if revision <= self.done:
                waiter.callback(None)
            else:
                self._waiting.append((revision, waiter))

    def _failed(self, failure: Failure) -> None:
        if self._stopped:
            return
        _log.error("compaction failed and will be tried again: {error}", error=failure.value)
        self._target = 0
        self._pause = self._clock.callLater(1.0, self._again)

    def _again(self) -> None:
        self._pause = None
        self.sweep()


class Compacts(Protocol):
    """What automatic compaction needs of the member."""

    @property
    def is_leader(self) -> bool: ...

    @property
    def revision(self) -> int: ...

    def compact(self, revision: int) -> Deferred[bytes]: ...


class AutoCompaction:
    """Compacts from time to time, on the leader only. Subclasses choose the revision and the interval.

    Args:
        member: compacts through the log.
        clock: for the interval.
    """

    def __init__(self, member: Compacts, clock: IReactorTime, interval_s: float) -> None:
        self._member = member
        self._interval_s = interval_s
        self._last = 0  # the revision of the last compaction that worked
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock

    def start(self) -> None:
        """Begin; the first look is one interval away."""
        self._loop.start(self._interval_s, now=False).addErrback(self._died)

    def stop(self) -> None:
        """End it."""
        if self._loop.running:
            self._loop.stop()

    def _died(self, failure: Failure) -> None:
        _log.failure("automatic compaction ended", failure=failure)

    def _look(self) -> Deferred[Any] | None:
        raise NotImplementedError

    def _compact(self, revision: int) -> Deferred[bool]:
        """Compact to ``revision``; whether it is compacted now."""

        def compacted(_: bytes) -> bool:
            self._last = revision
            return True

        def failed(failure: Failure) -> bool:
            if failure.check(CompactedError):  # somebody else did it
                self._last = revision
                return True
            _log.warn("automatic compaction failed: {error}", error=failure.value)
            return False

        return self._member.compact(revision).addCallbacks(compacted, failed)


class PeriodicCompaction(AutoCompaction):
    """Keeps the history of the last period: compacts to the revision that was current one period ago.

    The revision is sampled ten times an interval, which is the period or an hour, whichever is shorter; the first
    compaction comes after one period, the next ones each interval, a failed one is tried again with the next sample.

    Args:
        period_s: how much history stays.
    """

    def __init__(self, member: Compacts, clock: IReactorTime, period_s: float) -> None:
        interval_s = min(period_s, _LONGEST_INTERVAL_S)
        super().__init__(member, clock, interval_s / _SAMPLES_PER_PERIOD)
        self._kept = max(1, round(period_s / self._interval_s))
        self._samples: deque[int] = deque(maxlen=self._kept + 1)
        self._until_next = 0  # samples to take before the next compaction

    def start(self) -> None:
        """See :class:`AutoCompaction`; the first sample is taken now."""
        self._samples.append(self._member.revision)
        super().start()

    def _look(self) -> Deferred[Any] | None:
        self._samples.append(self._member.revision)
        self._until_next -= 1
        if len(self._samples) <= self._kept or self._until_next > 0 or not self._member.is_leader:
            return None
        revision = self._samples[0]
        if revision == self._last:
            return None

        def looked(worked: bool) -> None:
            if worked:
                self._until_next = _SAMPLES_PER_PERIOD

        return self._compact(revision).addCallback(looked)


class RevisionCompaction(AutoCompaction):
    """Keeps the last so many revisions; looks every five minutes.

    Args:
        retention: how many revisions stay.
    """

    def __init__(self, member: Compacts, clock: IReactorTime, retention: int) -> None:
        super().__init__(member, clock, _REVISION_INTERVAL_S)
        self._retention = retention

    def _look(self) -> Deferred[Any] | None:
        revision = self._member.revision - self._retention
        if revision <= 0 or revision == self._last or not self._member.is_leader:
            return None
        return self._compact(revision)


def auto_compaction(member: Compacts, config: Config, clock: IReactorTime) -> AutoCompaction | None:
    """What the options ask for; None if nothing is to be compacted by itself."""
    retention = config.auto_compaction_retention
    if not retention:
        return None
    if config.auto_compaction_mode is CompactionMode.REVISION:
        return RevisionCompaction(member, clock, int(retention))
    return PeriodicCompaction(member, clock, retention)
