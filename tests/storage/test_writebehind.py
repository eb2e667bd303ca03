"""Writing behind: soon, in order, once, and never lost."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.storage.test_worker import SteppedReactor
from twistedkv.errors import InvariantError
from twistedkv.storage.backend import BackendError, Batch, Bucket
from twistedkv.storage.contract import EVERYTHING, put
from twistedkv.storage.memory import MemoryBackend
from twistedkv.storage.worker import StorageWorker
from twistedkv.storage.writebehind import DELAY_S, FULL_ROWS, RETRY_FIRST_S, RETRY_LONGEST_S, WriteBehind

ROUNDING_S = 1e-6  # a clock that was advanced in parts is a little late or early


class RefusingBackend(MemoryBackend):
    """A reference backend that refuses on demand, and remembers what it was asked to write."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.tried: list[Batch] = []

    def write(self, batch: Batch) -> None:
        """Write, or raise ``error``."""
        self.tried.append(batch)
        if self.error is not None:
            raise self.error
        super().write(batch)


class WriteBehindTests(SynchronousTestCase):
    """A store's buffer on one side, a backend on the other."""

    def setUp(self) -> None:
        """Start a worker; the buffer is empty."""
        self.reactor = SteppedReactor()
        self.worker = StorageWorker(self.reactor)
        self.worker.start()
        self.clock = Clock()
        self.backend = RefusingBackend()
        self.buffer = Batch()
        self.taken = 0
        self.halted: list[Failure] = []
        self.behind = WriteBehind(self.backend, self.worker, self.take, self.clock, self.halted.append)
        self.revision = 0
        self.addCleanup(self.stop)

    def stop(self) -> None:
        """Stop all; no timer is left."""
        self.behind.stop()
        stopped = self.worker.stop()
        while not stopped.called:
            self.reactor.turn()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def take(self) -> Batch:
        """Swap the buffer."""
        self.taken += 1
        batch, self.buffer = self.buffer, Batch()
        return batch

    def change(self, rows: int = 1) -> None:
        """What the store does in one turn: some rows, and one call."""
        for _ in range(rows):
            self.revision += 1
            self.buffer.rows.append(put(self.revision, b"key"))
        self.behind.dirty(rows, rows * 100)

    def written(self) -> list[int]:
        """The main revisions in the database."""
        return [row.create_revision for row in self.backend.scan(0, EVERYTHING, 100_000)]

    # --- when ---------------------------------------------------------------------------------------

    def test_first_change_starts_the_delay(self) -> None:
        """A change is written 100 ms after the first one that was not written yet, however many follow."""
        self.change()
        for _ in range(9):
            self.clock.advance(DELAY_S / 10)
            self.change()
        self.assertEqual(self.taken, 0)
        self.clock.advance(DELAY_S / 10 + ROUNDING_S)
        self.reactor.turn()
        self.assertEqual(self.written(), list(range(1, 11)))
        self.assertEqual(len(self.backend.tried), 1)

    def test_full_buffer_is_written_at_once(self) -> None:
        """10,000 rows do not wait for the delay."""
        self.change(FULL_ROWS - 1)
        self.assertEqual(self.taken, 0)
        self.change(1)
        self.reactor.turn()
        self.assertEqual(len(self.written()), FULL_ROWS)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nothing_happens_without_a_change(self) -> None:
        """Without a change nothing is taken, written or waited for."""
        self.clock.advance(3600)
        self.assertEqual(self.taken, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_records_alone_are_written(self) -> None:
        """A change without rows is written as well."""
        self.buffer.records[Bucket.META, b"applied"] = b"1"
        self.behind.dirty(0, 0)
        self.clock.advance(DELAY_S)
        self.reactor.turn()
        self.assertEqual(self.backend.records(Bucket.META), {b"applied": b"1"})

    def test_one_write_at_a_time(self) -> None:
        """While a batch is on its way no other one is taken; what is due meanwhile follows at once."""
        self.change()
        self.clock.advance(DELAY_S)
        self.change()
        self.clock.advance(DELAY_S * 5)
        self.assertEqual(self.taken, 1)
        self.reactor.turn()
        self.assertEqual(self.taken, 2)
        self.reactor.turn()
        self.assertEqual(self.written(), [1, 2])
        self.assertEqual(self.taken, 2)

    def test_change_during_a_write_waits_its_own_delay(self) -> None:
        """A change that comes during a write is written at most 100 ms later, not earlier than that."""
        self.change()
        self.clock.advance(DELAY_S)
        self.change()
        self.clock.advance(DELAY_S / 2)
        self.reactor.turn()
        self.assertEqual(self.taken, 1)
        self.clock.advance(DELAY_S / 2)
        self.reactor.turn()
        self.assertEqual(self.written(), [1, 2])

    def test_backlog_counts_what_is_not_written(self) -> None:
        """Rows and bytes count until the database has them."""
        self.change(3)
        self.assertEqual((self.behind.backlog_rows, self.behind.backlog_bytes), (3, 300))
        self.clock.advance(DELAY_S)
        self.change(2)
        self.assertEqual((self.behind.backlog_rows, self.behind.backlog_bytes), (5, 500))
        self.reactor.turn()
        self.assertEqual((self.behind.backlog_rows, self.behind.backlog_bytes), (2, 200))
        self.clock.advance(DELAY_S)
        self.reactor.turn()
        self.assertEqual((self.behind.backlog_rows, self.behind.backlog_bytes), (0, 0))

    # --- flush and read -----------------------------------------------------------------------------

    def test_flush_writes_at_once(self) -> None:
        """A flush does not wait for the delay, and fires when the rows are in the database."""
        self.change()
        flushed = self.behind.flush()
        self.assertNoResult(flushed)
        self.reactor.turn()
        self.successResultOf(flushed)
        self.assertEqual(self.written(), [1])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_flush_of_nothing(self) -> None:
        """A flush with nothing to write fires at once."""
        self.successResultOf(self.behind.flush())
        self.assertEqual(self.backend.tried, [])

    def test_flush_during_a_write(self) -> None:
        """A flush waits for the batch on its way and for the buffer, each flush for what was there when it came."""
        self.change()
        first = self.behind.flush()
        self.change()
        second = self.behind.flush()
        third = self.behind.flush()
        self.reactor.turn()
        self.successResultOf(first)
        self.assertNoResult(second)
        self.reactor.turn()
        self.successResultOf(second)
        self.successResultOf(third)
        self.assertEqual(self.written(), [1, 2])

    def test_flush_without_a_change_waits_for_the_write(self) -> None:
        """A flush during a write fires after it, although the buffer is empty."""
        self.change()
        self.clock.advance(DELAY_S)
        flushed = self.behind.flush()
        self.assertNoResult(flushed)
        self.reactor.turn()
        self.successResultOf(flushed)

    def test_cancelled_flush(self) -> None:
        """Cancelling a flush stops the waiting, not the writing."""
        self.change()
        first, second = self.behind.flush(), self.behind.flush()
        first.cancel()
        second.cancel()
        self.failureResultOf(first, CancelledError)
        self.failureResultOf(second, CancelledError)
        self.reactor.turn()
        self.assertEqual(self.written(), [1])

    def test_read_sees_what_was_handed_in(self) -> None:
        """A read runs after the changes before it are written, and gives the answer of the database."""
        self.change(3)
        found = self.behind.read(self.backend.scan, 0, EVERYTHING, limit=2)
        self.reactor.turn()
        self.assertNoResult(found)
        self.reactor.turn()
        self.assertEqual([row.create_revision for row in self.successResultOf(found)], [1, 2])

    def test_reads_are_answered_in_order(self) -> None:
        """Reads come back in the order in which they were asked."""
        order: list[int] = []
        reads: list[Deferred[int]] = []
        for number in range(6):
            if number % 2:
                self.change()
            reads.append(self.behind.read(int, number).addCallback(order.append))
        while not all(read.called and not read.paused for read in reads):
            self.reactor.turn()
        self.assertEqual(order, list(range(6)))

    # --- refusals -----------------------------------------------------------------------------------

    def test_refused_batch_is_tried_again_first(self) -> None:
        """The very batch that was refused is tried again with longer and longer pauses, before any later change."""
        self.backend.error = BackendError("database or disk is full")
        self.change(2)
        flushed = self.behind.flush()
        self.reactor.turn()
        pause_s = RETRY_FIRST_S
        for _ in range(8):
            self.change()
            self.clock.advance(pause_s - 0.01)
            tries = len(self.backend.tried)
            self.clock.advance(0.01 + ROUNDING_S)
            self.reactor.turn()
            self.assertEqual(len(self.backend.tried), tries + 1)
            pause_s = min(pause_s * 2, RETRY_LONGEST_S)
        self.assertEqual(self.taken, 1)
        self.assertTrue(all(batch is self.backend.tried[0] for batch in self.backend.tried))
        self.assertNoResult(flushed)
        self.assertEqual(self.behind.backlog_rows, 10)
        self.backend.error = None
        self.clock.advance(RETRY_LONGEST_S)
        self.reactor.turn()
        self.successResultOf(flushed)
        self.assertEqual(self.written(), [1, 2])
        self.reactor.turn()
        self.assertEqual(self.written(), list(range(1, 11)))

    def test_refusals_are_reported_on_change(self) -> None:
        """``failing`` says why; the log has a line when a reason comes, changes and goes, not one a try."""
        lines: list[str] = []
        observer = lambda event: lines.append((event["log_level"].name, event.get("reason")))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.assertIsNone(self.behind.failing)
        self.change()
        self.clock.advance(DELAY_S)
        for reason in ("full", "full", "broken", "broken", None):
            self.backend.error = BackendError(reason) if reason else None
            if self.behind.failing:
                self.clock.advance(RETRY_LONGEST_S)
            self.reactor.turn()
            self.assertEqual(self.behind.failing, reason)
        self.assertEqual(lines, [("error", "full"), ("error", "broken"), ("info", None)])

    def test_pauses_begin_anew_after_a_success(self) -> None:
        """After a successful write the next refusal is tried again soon."""
        for _ in range(2):
            self.backend.error = BackendError("full")
            self.change()
            self.behind.flush().addErrback(lambda _: None)
            self.reactor.turn()
            (retry,) = self.clock.getDelayedCalls()
            self.assertAlmostEqual(retry.getTime() - self.clock.seconds(), RETRY_FIRST_S)
            self.backend.error = None
            self.clock.advance(RETRY_FIRST_S)
            self.reactor.turn()

    def test_our_own_fault_halts(self) -> None:
        """A write that fails for another reason than the database's is not tried again: the member is told."""
        self.backend.error = InvariantError("impossible")
        self.change()
        flushed = self.behind.flush()
        self.reactor.turn()
        self.failureResultOf(flushed, BackendError)
        self.assertEqual([failure.type for failure in self.halted], [InvariantError])
        self.change()
        self.clock.advance(3600)
        self.assertEqual(len(self.backend.tried), 1)

    # --- the end ------------------------------------------------------------------------------------

    def test_stop_ends_the_waiting(self) -> None:
        """Stopping while the database refuses fails the flush with the reason, and leaves no timer."""
        self.backend.error = BackendError("full")
        self.change()
        flushed = self.behind.flush()
        self.reactor.turn()
        later = self.behind.read(int)
        self.behind.stop()
        self.assertEqual(str(self.failureResultOf(flushed, BackendError).value), "full")
        self.failureResultOf(later, BackendError)
        self.failureResultOf(self.behind.flush(), BackendError)
        self.change()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_during_a_write(self) -> None:
        """A write on its way when the stop comes is finished, and nothing follows it."""
        self.change()
        self.clock.advance(DELAY_S)
        self.change()
        self.behind.stop()
        self.reactor.turn()
        self.assertEqual(self.written(), [1])
        self.assertEqual(self.taken, 1)
