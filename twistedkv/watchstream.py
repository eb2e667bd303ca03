"""One client's stream of watches: their ids, how they are made and ended, and what is said about progress.

Source: etcd ``server/etcdserver/api/v3rpc/watch.go``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from twistedkv.pb.rpc_pb2 import WatchCreateRequest
from twistedkv.storage.keyindex import FROM_KEY
from twistedkv.watch import Timer, WatchHub
from twistedkv.watchevents import Event, Response
from twistedkv.watchgroups import Interest, Receiver

_NO_ID = -1  # of an answer that belongs to no watch
_EMPTY_RANGE = "mvcc: watcher range is empty"
_DUPLICATE_ID = "mvcc: duplicate watch ID provided on the WatchStream"


class Sink(Protocol):
    """Where a stream's messages go; a :class:`~twistedkv.protocols.rpc.Call` is one."""

    @property
    def writable(self) -> bool:
        """False while what was sent waits for the client."""

    def send(self, message: bytes) -> None:
        """Send one message, or queue it."""


def open_stream(hub: WatchHub, sink: Sink) -> WatchStream:
    """A new stream, which counts until it is closed."""
    hub.streams += 1
    return WatchStream(hub, sink)


class Watcher(Receiver):
    """One watch of a client."""

    __slots__ = ("id", "progress", "quiet", "stream")

    def __init__(self, stream: WatchStream, watch_id: int, interest: Interest, position: int, progress: bool) -> None:
        super().__init__(interest, position)
        self.stream = stream
        self.id = watch_id
        self.progress = progress  # it asked for notices
        self.quiet = True  # no event since the last one

    @property
    def ready(self) -> bool:
        return self.stream.sink.writable

    def park(self) -> None:
        self.stream.parked[self] = None

    def deliver(self, responses: Sequence[Response], events: Sequence[Event]) -> int:
        stream = self.stream
        sink = stream.sink
        for response in responses:
            if not sink.writable:
                return response.first
            for message in response.messages(self.id):
                sink.send(message)
            stream.hub.events += response.count
            self.quiet = False
        return 0

    def compacted(self, revision: int) -> None:
        self.stream.cut_off(self, revision)


class WatchStream:
    """The watches of one client's stream, and the rules of their ids.

    Args:
        hub: that serves them.
        sink: takes the messages.
    """

    def __init__(self, hub: WatchHub, sink: Sink) -> None:
        self.sink = sink
        self.parked: dict[Watcher, None] = {}  # behind, until the sink has room
        self.hub = hub
        self._watchers: dict[int, Watcher] = {}  # by id; one cut off by a compaction keeps its id, as in etcd
        self._next_id = 0
        self._owed = 0  # progress notices that were asked for
        self._timer: Timer | None = None
        self._closed = False

    def create(self, request: WatchCreateRequest) -> None:
        """Open a watch and say so, or say why not."""
        key = request.key or b"\0"
        range_end = request.range_end
        hub = self.hub
        hub.dispatch()  # so that the watch joins the others, to whom all that comes now is new
        revision = hub.revision
        watch_id = request.watch_id
        if range_end not in (b"", FROM_KEY) and range_end <= key:
            self.sink.send(hub.encoder.created(_NO_ID, revision, hub.term(), _EMPTY_RANGE))
            return
        if watch_id == 0:
            while self._next_id in self._watchers:
                self._next_id += 1
            watch_id = self._next_id
            self._next_id += 1
        elif watch_id in self._watchers:
            self.sink.send(hub.encoder.created(_NO_ID, revision, hub.term(), _DUPLICATE_ID))
            return
        filters = request.filters
        interest = Interest(
            key,
            range_end,
            WatchCreateRequest.NOPUT not in filters,
            WatchCreateRequest.NODELETE not in filters,
            request.prev_kv,
            request.fragment,
        )
        watcher = Watcher(self, watch_id, interest, request.start_revision or revision + 1, request.progress_notify)
        self._watchers[watch_id] = watcher
        self.sink.send(hub.encoder.created(watch_id, revision, hub.term()))
        hub.watchers += 1
        hub.add(watcher)
        if request.progress_notify and self._timer is None:
            self._wait_for_progress()

    def cancel(self, watch_id: int) -> None:
        """End a watch and say so; an unknown id is passed over in silence, as in etcd."""
        watcher = self._watchers.pop(watch_id, None)
        if watcher is not None:
            self._drop(watcher)
            hub = self.hub
            self.sink.send(hub.encoder.canceled(watch_id, hub.revision, hub.term()))
            if self._owed:
                hub.owe_progress(self)

    def progress(self) -> None:
        """Say up to which revision everything was sent: at once, or once the stream has caught up."""
        self._owed += 1
        self.hub.owe_progress(self)

    def room(self) -> None:
        """The sink has room again."""
        if self.parked and not self._closed:
            parked, self.parked = self.parked, {}
            self.hub.unpark(parked)

    def close(self) -> None:
        """The client is gone."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for watcher in self._watchers.values():
            self._drop(watcher)
        self._watchers.clear()
        self.hub.disown(self)

    @property
    def may_notify(self) -> bool:
        """Whether a notice of the hub's revision is true of every watch.

        A watch that starts later must not hear of an earlier revision: its client would resume from there, and see
        events from before its start (etcd issue 20221).
        """
        told = self.hub.told
        return all(
            watcher.closed or (not watcher.behind and watcher.position <= told + 1)
            for watcher in self._watchers.values()
        )

    def notify(self) -> None:
        """Answer the progress requests."""
        hub = self.hub
        owed, self._owed = self._owed, 0
        for _ in range(owed):
            self.sink.send(hub.encoder.progress(_NO_ID, hub.told, hub.term()))

    def cut_off(self, watcher: Watcher, compact_revision: int) -> None:
        """End a watch whose next revision is compacted."""
        self._drop(watcher)
        self.sink.send(self.hub.encoder.compacted(watcher.id, compact_revision, self.hub.term()))

    def _drop(self, watcher: Watcher) -> None:
        if not watcher.closed:
            self.hub.watchers -= 1
            self.parked.pop(watcher, None)
            self.hub.remove(watcher)

    def _wait_for_progress(self) -> None:
        hub = self.hub
        delay_s = hub.progress_interval_s * (1 + hub.random.random() / 10)
        self._timer = hub.call_later(delay_s, self._on_progress_due)

    def _on_progress_due(self) -> None:
        self._timer = None
        hub = self.hub
        hub.dispatch()
        asked = [watcher for watcher in self._watchers.values() if watcher.progress and not watcher.closed]
        for watcher in asked:
            synced = not watcher.behind and watcher.position <= hub.told + 1
            if watcher.quiet and synced and self.sink.writable:
                self.sink.send(hub.encoder.progress(watcher.id, hub.told, hub.term()))
            watcher.quiet = True
        if asked:
            self._wait_for_progress()
