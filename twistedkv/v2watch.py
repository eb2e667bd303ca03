"""Who waits for changes of the v2 store, and the last thousand changes for those who come a little late.

A watcher waits at a path for changes of the node there, or with ``recursive`` also of those below it. What is below a
segment that begins with ``_`` is hidden from watchers above that segment. Removing a directory is told to watchers of
everything in it. A watcher without ``stream`` is told once, and is gone by then.

Everybody is told at once, while the change is carried out, and must not change the store meanwhile.

Source: etcd ``server/etcdserver/api/v2store/{watcher,watcher_hub,event_history}.go``, whose streams are told twice of
the removal of the very node that they watch: once as a removed node, and once as a changed one. So are ours. Different
from etcd: a stream that begins in the past gets everything since then, where etcd sends it one event and then nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

from twistedkv.v2errors import V2Code, V2Error
from twistedkv.v2events import Action, Event

CAPACITY: Final = 1000  # events that are kept; etcd v2store/store.go, newWatchHub


class Watching(Protocol):
    """Who is told."""

    def happened(self, event: Event) -> None:
        """One event. A watcher without ``stream`` hears nothing more."""

    def lost(self) -> None:
        """Events were missed that nobody has any more; it hears nothing more."""


class Watcher:
    """One that waits.

    Args:
        path: of the node.
        recursive: whether for those below it, too.
        stream: whether for more than one event.
        since: the lowest index that it wants.
        watching: is told.
    """

    __slots__ = ("path", "recursive", "since", "stream", "watching")

    def __init__(self, path: str, recursive: bool, stream: bool, since: int, watching: Watching) -> None:
        self.path = path
        self.recursive = recursive
        self.stream = stream
        self.since = since
        self.watching = watching


class History:
    """The last events, their indexes ascending without a gap.

    Args:
        events: to begin with.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.events: deque[Event] = deque(events, CAPACITY)
        self.fresh = len(self.events)  # how many of them nobody has kept yet; for whoever keeps them

    @property
    def first(self) -> int:
        """The index of the first event; 0 if there is none."""
        return self.events[0].index if self.events else 0

    @property
    def last(self) -> int:
        """The index of the last event; 0 if there is none."""
        return self.events[-1].index if self.events else 0

    def add(self, event: Event) -> None:
        """Keep one more, and forget the first if there are too many."""
        self.events.append(event)
        if self.fresh < CAPACITY:
            self.fresh += 1

    def scan(self, path: str, recursive: bool, since: int) -> Event | None:
        """The first event from index ``since`` on that a watcher at ``path`` wants; None if there is none yet.

        As in etcd this is more than a watcher is told while it waits: hidden nodes count, too, and the removal of a
        directory counts for all paths that begin with its own, of ``/foobar`` for that of ``/foo``.

        Raises:
            V2Error: events since then are forgotten; without the index of the store.
        """
        events = self.events
        if since < self.first:
            raise V2Error(V2Code.EVENT_INDEX_CLEARED, f"the requested history has been cleared [{self.first}/{since}]")
        if since > self.last:
            return None
        below = path if path.endswith("/") else path + "/"
        for position in range(since - self.first, len(events)):
            event = events[position]
            key = event.node.key
            if event.refresh:
                continue
            if key == path or (recursive and key.startswith(below)):
                return event
            if (
                (event.action is Action.DELETE or event.action is Action.EXPIRE)
                and event.previous is not None
                and event.previous.is_dir
                and path.startswith(key)
            ):
                return event
        return None


class V2Hub:
    """The watchers of one member. It is the sink of its :class:`~twistedkv.storage.directory.Directory`.

    Args:
        history: the last events so far.
    """

    def __init__(self, history: History | None = None) -> None:
        self.history = history or History()
        self.count = 0  # watchers that wait
        self.requests = 0  # to watch, so far
        self._watchers: dict[str, dict[Watcher, None]] = {}  # by path, in the order in which they came

    def watch(
        self, path: str, recursive: bool, stream: bool, since: int, index: int, watching: Watching
    ) -> Watcher | None:
        """Have ``watching`` told of the first event from ``since`` on, and with ``stream`` of all that follow.

        What is in the history is told before this returns.

        Args:
            path: absolute, without a trailing slash.
            since: 0 for the next event.
            index: of the store.

        Returns:
            What is to be given to :meth:`remove` when the interest is lost; None if nothing more will come.

        Raises:
            V2Error: events since then are forgotten.
        """
        self.requests += 1
        since = since or index + 1
        try:
            event = self.history.scan(path, recursive, since)
        except V2Error as error:
            error.index = index
            raise
        if event is not None and not stream:
            watching.happened(event)
            return None
        watcher = Watcher(path, recursive, stream, since, watching)
        self._watchers.setdefault(path, {})[watcher] = None
        self.count += 1
        if event is not None:
            self._catch_up(watcher, since)
        return watcher

    def remove(self, watcher: Watcher) -> None:
        """Tell it nothing more. One that is gone is no error."""
        at_path = self._watchers.get(watcher.path)
        if at_path is not None and watcher in at_path:
            del at_path[watcher]
            self.count -= 1
            if not at_path:
                del self._watchers[watcher.path]

    def restored(self, history: History) -> None:
        """The store is another one, later in the same history: tell what was skipped, as far as it is known."""
        untold = self.history.last + 1
        self.history = history
        for at_path in list(self._watchers.values()):
            for watcher in list(at_path):
                self._catch_up(watcher, max(watcher.since, untold))

    # --- what the store says; see EventSink ----------------------------------------------------------

    def add(self, event: Event) -> None:
        """Something was changed of which no watcher is to hear."""
        self.history.add(event)

    def notify(self, event: Event) -> None:
        """Something was changed."""
        self.history.add(event)
        if not self.count:
            return
        key = event.node.key
        self._notify_at("/", event, removed=False)
        end = key.find("/", 1)
        while end > 0:
            self._notify_at(key[:end], event, removed=False)
            end = key.find("/", end + 1)
        self._notify_at(key, event, removed=False)

    def removed(self, event: Event, path: str) -> None:
        """``event`` takes the node at ``path`` away."""
        if self.count:
            self._notify_at(path, event, removed=True)

    def _notify_at(self, path: str, event: Event, *, removed: bool) -> None:
        at_path = self._watchers.get(path)
        if at_path is None:
            return
        key = event.node.key
        exact = key == path
        if not exact and _is_hidden(path, key):
            return
        for watcher in list(at_path):  # of whom one that is told may remove another
            if (watcher.recursive or exact or removed) and event.index >= watcher.since and watcher in at_path:
                if not watcher.stream:
                    self.remove(watcher)
                watcher.watching.happened(event)

    def _catch_up(self, watcher: Watcher, since: int) -> None:
        at_path = self._watchers.get(watcher.path, {})
        while watcher in at_path:  # one that is told may remove itself, or another
            try:
                event = self.history.scan(watcher.path, watcher.recursive, since)
            except V2Error:
                self.remove(watcher)
                watcher.watching.lost()
                return
            if event is None:
                return
            if not watcher.stream:
                self.remove(watcher)
            watcher.watching.happened(event)
            since = event.index + 1


def _is_hidden(path: str, key: str) -> bool:
    """Whether a watcher at ``path`` is not to see ``key`` below it; what is above it is not hidden by anything."""
    if len(path) > len(key):
        return False
    rest = key[len(path) :]
    return rest.startswith("_") or "/_" in rest
