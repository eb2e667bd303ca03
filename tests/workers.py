"""Stand-ins for :class:`twistedkv.storage.worker.StorageWorker` without a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed


class InlineWorker:
    """Runs what it is given at once, on the caller's stack."""

    def start(self) -> None:
        """Nothing has to be started."""

    def run(self, blocking: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        return maybeDeferred(blocking, *args, **kwargs)

    def stop(self) -> Deferred[None]:
        return succeed(None)


class SteppedWorker(InlineWorker):
    """Runs what it is given when the test says so: a thread that is as slow as it likes."""

    def __init__(self) -> None:
        self.queue: deque[tuple[Callable[[], Any], Deferred[Any]]] = deque()

    def run(self, blocking: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.queue.append((lambda: blocking(*args, **kwargs), done))
        return done

    def step(self) -> None:
        """Run the oldest thing that waits, and give its result back."""
        blocking, done = self.queue.popleft()
        maybeDeferred(blocking).chainDeferred(done)

    def drain(self) -> None:
        """Run everything, also what is added meanwhile."""
        while self.queue:
            self.step()
