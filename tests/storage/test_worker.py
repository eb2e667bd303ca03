"""The storage thread: in order, off the reactor's thread, results back on it."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Event, current_thread, get_ident
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorFromThreads
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from twistedkv.storage.worker import StorageWorker, WorkerStoppedError

WAIT_S = 10


@implementer(IReactorFromThreads)
class SteppedReactor:
    """What comes back from threads waits until the test takes it, one call at a time."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]] = SimpleQueue()

    def callFromThread(self, call: Callable[..., object], *args: Any) -> None:
        """Take a call from a thread."""
        self._calls.put((call, args))

    def turn(self) -> None:
        """Wait for the next call and make it."""
        call, args = self._calls.get(timeout=WAIT_S)
        call(*args)

    @property
    def idle(self) -> bool:
        """Nothing has come back."""
        return self._calls.empty()


class StorageWorkerTests(SynchronousTestCase):
    """One thread, one queue."""

    def setUp(self) -> None:
        """Start a worker."""
        self.reactor = SteppedReactor()
        self.worker = StorageWorker(self.reactor)
        self.worker.start()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        """Stop the worker, and take what it still had to say."""
        stopped = self.worker.stop()
        while not stopped.called:
            self.reactor.turn()
        self.successResultOf(stopped)

    def test_result_comes_back_on_the_reactor(self) -> None:
        """The call runs on the storage thread with its arguments; its Deferred fires on the reactor's."""
        where: list[int] = []
        result = self.worker.run(lambda *args, **kwargs: (get_ident(), args, kwargs), 1, b"two", three=3)
        result.addCallback(lambda found: (where.append(get_ident()), found)[1])
        self.assertNoResult(result)
        self.reactor.turn()
        thread, args, kwargs = self.successResultOf(result)
        self.assertEqual((args, kwargs), ((1, b"two"), {"three": 3}))
        self.assertNotEqual(thread, get_ident())
        self.assertEqual(where, [get_ident()])

    def test_calls_run_in_order(self) -> None:
        """What was asked first is done first, also when it takes longer."""
        done: list[int] = []
        gate = Event()
        self.worker.run(gate.wait, WAIT_S)
        results = [self.worker.run(done.append, number) for number in range(100)]
        self.assertEqual(done, [])
        gate.set()
        for _ in range(101):
            self.reactor.turn()
        self.assertEqual(done, list(range(100)))
        for result in results:
            self.successResultOf(result)

    def test_failure_goes_to_its_own_deferred(self) -> None:
        """An exception fails the call that raised it, and the thread goes on."""
        failed = self.worker.run(int, "no number")
        works = self.worker.run(int, "7")
        self.reactor.turn()
        self.failureResultOf(failed, ValueError)
        self.reactor.turn()
        self.assertEqual(self.successResultOf(works), 7)

    def test_cancelled_call_is_left_out(self) -> None:
        """A call that is cancelled before its turn does not run; one that runs already has its result dropped."""
        gate, entered, done = Event(), Event(), list[str]()

        def hold() -> None:
            entered.set()
            gate.wait(WAIT_S)

        running = self.worker.run(hold)
        waiting = self.worker.run(done.append, "waiting")
        entered.wait(WAIT_S)
        running.cancel()
        waiting.cancel()
        self.failureResultOf(running, CancelledError)
        self.failureResultOf(waiting, CancelledError)
        gate.set()
        last = self.worker.run(done.append, "last")
        while not last.called:
            self.reactor.turn()
        self.assertEqual(done, ["last"])

    def test_stop_finishes_what_is_queued(self) -> None:
        """Stopping waits for everything asked for before; the thread has ended when it says so."""
        threads = [self.worker.run(current_thread) for _ in range(10)]
        stopped = self.worker.stop()
        for _ in range(10):
            self.reactor.turn()
        self.assertNoResult(stopped)
        self.reactor.turn()
        self.successResultOf(stopped)
        for thread in map(self.successResultOf, threads):
            self.assertFalse(thread.is_alive())
        self.assertTrue(self.reactor.idle)

    def test_nothing_runs_after_stop(self) -> None:
        """A call after the stop fails at once; a second stop has nothing to do."""
        self.stop()
        self.failureResultOf(self.worker.run(int), WorkerStoppedError)
        self.successResultOf(self.worker.stop())
        self.assertRaises(Empty, self.reactor._calls.get_nowait)
