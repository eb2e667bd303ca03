"""One thread for everything that blocks on the database: a callable goes in, a Deferred comes out.

The thread owns the backend: no other thread calls it once the worker has started. One queue, so things happen in the
order in which they were asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

P = ParamSpec("P")
T = TypeVar("T")


class WorkerStoppedError(Exception):
    """The storage worker takes nothing more."""


class StorageWorker:
    """Runs blocking calls one after another on a thread of its own.

    A queue and a thread rather than a pool of one: a call costs one ``put`` there and one ``callFromThread`` back.

    Args:
        reactor: takes the results; its thread is the one that calls :meth:`run`.
    """

    def __init__(self, reactor: IReactorFromThreads) -> None:
        self._reactor = reactor
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        # A daemon, so that a crash of the reactor is not followed by a process that hangs; stop() joins it.
        self._thread = Thread(target=self._work, name="storage", daemon=True)
        self._thread.start()

    def run(self, blocking: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call ``blocking`` on the thread, after everything asked for before; its result or failure comes back.

        Cancelling the Deferred takes the call out if its turn has not come, and otherwise drops its result.
        """
        if self._thread is None:
            return fail(WorkerStoppedError())
        cancelled = False

        def cancel(_: Deferred[T]) -> None:
            nonlocal cancelled
            cancelled = True

        def work() -> None:
            if cancelled:
                return
            try:
                value = blocking(*args, **kwargs)
            except BaseException:
                self._reactor.callFromThread(deliver, deferred.errback, Failure())
            else:
                self._reactor.callFromThread(deliver, deferred.callback, value)

        def deliver(fire: Callable[[T | Failure], None], outcome: T | Failure) -> None:
            if not cancelled:
                fire(outcome)

        deferred: Deferred[T] = Deferred(cancel)
        self._queue.put(work)
        return deferred

    def stop(self) -> Deferred[None]:
        """Take nothing more; fires when all that was asked for is done and the thread has ended."""
        thread, self._thread = self._thread, None
        stopped: Deferred[None] = Deferred()
        if thread is None:
            stopped.callback(None)
            return stopped

        def join() -> None:
            thread.join()  # its last act was to call this, so it ends at once
            stopped.callback(None)

        self._queue.put(lambda: self._reactor.callFromThread(join))
        self._queue.put(None)
        return stopped

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
