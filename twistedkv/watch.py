"""Watches: every change of a range of keys from some revision on, once each and in order.

A *receiver*, which is a watcher of a client's stream or an observation from inside the member, is in one of two states:

- **synced**: it was given everything up to the newest revision. It sits in a :class:`Group` with those who want the
  same, found by key, and costs nothing until a key of its range changes.
- **behind**: it needs everything from its ``position`` on, because it started in the past, or because its stream had
  no room. It holds nothing but that number. Rounds of catching up serve many such receivers at once, from the recent
  history in memory or from the database.

Whoever finds its stream full falls behind, so a slow client costs no memory and delays nobody. A stream that is not
read has no rounds either; it comes back when there is room.

All of it belongs to one thread. Time, dice and the database are passed in. Source of the rules: etcd
``server/storage/mvcc/watchable_store.go``, ``watcher.go`` and ``server/etcdserver/api/v3rpc/watch.go``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, islice
from random import Random
from typing import Any, NamedTuple, Protocol

from twistedkv.errors import CompactedError
from twistedkv.history import History, Moment, Replay, Replayed
from twistedkv.pb.rpc_pb2 import WatchCreateRequest
from twistedkv.storage.keyindex import FROM_KEY
from twistedkv.storage.mvcc import Change, Store
from twistedkv.watchers import RangeIndex
from twistedkv.watchevents import Event, Response, ResponseEncoder

PROGRESS_INTERVAL_S = 600.0  # etcd server/etcdserver/api/v3rpc/watch.go, plus up to a tenth of it
ROUND_RECEIVERS = 512  # that one round of catching up serves; etcd watchable_store.go, maxWatchersPerSync
RETRY_S = 1.0  # after the database refused to be read

_NO_ID = -1  # of an answer that belongs to no watch
_EMPTY_RANGE = "mvcc: watcher range is empty"
_DUPLICATE_ID = "mvcc: duplicate watch ID provided on the WatchStream"


class Interest(NamedTuple):
    """What a receiver wants to see; those with equal interest share their responses."""

    key: bytes
    range_end: bytes
    puts: bool = True
    deletes: bool = True
    prev_kv: bool = False
    fragment: bool = False


class Sink(Protocol):
    """Where a stream's messages go; a :class:`~twistedkv.protocols.rpc.Call` is one."""

    @property
    def writable(self) -> bool:
        """False while what was sent waits for the client."""

    def send(self, message: bytes) -> None:
        """Send one message, or queue it."""


class Timer(Protocol):
    """A call to come."""

    def cancel(self) -> None:
        """It does not come."""


class CallLater(Protocol):
    """The reactor's ``callLater``."""

    def __call__(self, delay: float, function: Callable[[], None], /) -> Timer: ...


class ReadHistory(Protocol):
    """Runs a replay on the storage thread behind all that was applied; tells what it brought, or that it failed."""

    def __call__(self, replay: Replay, replayed: Callable[[Replayed], None], failed: Callable[[], None], /) -> None: ...


class Receiver:
    """Whoever is told of changes; see the module's text for its states."""

    __slots__ = ("behind", "closed", "group", "interest", "position")

    def __init__(self, interest: Interest, position: int) -> None:
        self.interest = interest
        self.position = position  # the revision from which on it needs changes; of a synced one, when that began
        self.group: Group | None = None  # while it is synced
        self.behind = False
        self.closed = False

    @property
    def ready(self) -> bool:
        """Whether it can take more now."""
        raise NotImplementedError

    def park(self) -> None:
        """It fell behind without being ready: :meth:`WatchHub.unpark` is called once it is."""
        raise NotImplementedError

    def deliver(self, responses: Sequence[Response], events: Sequence[Event]) -> int:
        """Take changes of one batch; the revision from which on it could not, 0 if it took all."""
        raise NotImplementedError

    def compacted(self, revision: int) -> None:
        """What it needs next is gone, for everything before ``revision`` is."""
        raise NotImplementedError


class Group:
    """Receivers that want the same from the same revision on."""

    __slots__ = ("hits", "interest", "minimum", "receivers", "wants_previous")

    def __init__(self, interest: Interest, minimum: int) -> None:
        self.interest = interest
        self.minimum = minimum  # no revision before it; 0 if all that come are after it anyway
        self.wants_previous = interest.prev_kv
        self.receivers: dict[Receiver, None] = {}  # a set in the order of arrival
        self.hits: list[Event] = []  # of the batch that is being looked at


class WatchHub:
    """All receivers of a member.

    Args:
        store: is listened to while there is a receiver.
        encoder: makes responses.
        term: the current Raft term, for headers.
        read_history: reads from the database.
        call_later: for rounds of catching up and for progress notices.
        random: spreads the progress notices.
        history: the recent past; nothing is in it yet.
        progress_interval_s: of notices to watchers who asked for them.
    """

    def __init__(
        self,
        store: Store,
        encoder: ResponseEncoder,
        term: Callable[[], int],
        read_history: ReadHistory,
        call_later: CallLater,
        random: Random,
        history: History | None = None,
        progress_interval_s: float = PROGRESS_INTERVAL_S,
    ) -> None:
        self.encoder = encoder
        self.term = term
        self.call_later = call_later
        self.progress_interval_s = progress_interval_s
        self.random = random
        self.fresh: list[Moment] = []  # revisions that synced receivers were not told of yet
        self.told = store.revision  # what they were told up to
        self.events = 0  # sent, of all receivers
        self.watchers = 0
        self.streams = 0
        self.behind = 0  # receivers that are
        self._store = store
        self._read_history = read_history
        self._history = History(store.revision + 1) if history is None else history
        self._receivers = 0
        self._groups: dict[tuple[Interest, int], Group] = {}
        self._index: RangeIndex[Group] = RangeIndex()
        self._ready: dict[Receiver, None] = {}  # behind, and not parked
        self._reading: dict[Receiver, None] = {}  # of those, for whom the database is read
        self._round_timer: Timer | None = None
        self._owing: dict[WatchStream, None] = {}  # progress that was asked for
        self._stopped = False

    # --- receivers come and go ---------------------------------------------------------------------

    def open(self, sink: Sink) -> WatchStream:
        """A new stream of a client."""
        self.streams += 1
        return WatchStream(self, sink)

    def observe(
        self, key: bytes, range_end: bytes, start_revision: int, tell: Callable[[int, list[Change]], None]
    ) -> Observation:
        """Have ``tell`` called with every revision from ``start_revision`` on (0: the next one) that changes the range.

        It gets the revision and the changes inside the range, right after they were applied. A call with no changes at
        all means that a compaction up to that revision overtook: look at the state again. ``tell`` must not raise.

        Raises:
            CompactedError: ``start_revision`` is compacted already.
        """
        if 0 < start_revision < self._store.compacted:
            raise CompactedError
        observation = Observation(self, Interest(key, range_end), start_revision or self.revision + 1, tell)
        self.add(observation)
        return observation

    def add(self, receiver: Receiver) -> None:
        """Begin to serve ``receiver`` from its position on."""
        if not self._receivers:
            self._listen()
        self._receivers += 1
        if receiver.position > self.told:
            self._sync(receiver)
        else:
            self.fall_behind(receiver, receiver.position)

    def remove(self, receiver: Receiver) -> None:
        """Forget ``receiver``."""
        if receiver.closed:
            return
        receiver.closed = True
        self._leave_group(receiver)
        if receiver.behind:
            self._no_longer_behind(receiver)
        self._receivers -= 1
        if not self._receivers:
            self._store.listener = None

    def stop(self) -> None:
        """Do nothing more of its own accord."""
        self._stopped = True
        self._store.listener = None
        self.fresh.clear()
        if self._round_timer is not None:
            self._round_timer.cancel()
            self._round_timer = None

    @property
    def revision(self) -> int:
        """The store's revision."""
        return self._store.revision

    # --- live --------------------------------------------------------------------------------------

    def _listen(self) -> None:
        self.told = self._store.revision
        self.fresh.clear()
        self._history.clear(self.told + 1)
        self._store.listener = self._on_revision

    def _on_revision(self, revision: int, changes: list[Change]) -> None:
        moment = Moment(revision, changes)
        self.fresh.append(moment)
        self._history.append(moment)

    def dispatch(self) -> None:
        """Tell synced receivers of the revisions since the last call. Call it after each batch that was applied."""
        while self.fresh:
            moments, self.fresh = self.fresh, []
            hit = _hits(self._index, moments)
            revision = self.told = moments[-1].revision
            for group in hit:
                events, group.hits = group.hits, []
                # Copied: who is told may come, go, or fall behind.
                self._deliver(group, events, list(group.receivers), revision)
        if self._store.listener is None:
            self.told = self._store.revision  # nobody is there to be told
        if self._owing:
            self._answer_progress()

    def _deliver(self, group: Group, events: list[Event], receivers: Iterable[Receiver], revision: int) -> None:
        """Give live events to the receivers of a group."""
        if group.wants_previous and any(event.lacks_previous for event in events):
            for receiver in receivers:
                if receiver.group is group:
                    self.fall_behind(receiver, events[0].revision)
            return
        interest = group.interest
        responses = self.encoder.with_events(events, interest.prev_kv, interest.fragment, revision, self.term())
        for receiver in receivers:
            if receiver.group is group:
                stopped_at = receiver.deliver(responses, events)
                if stopped_at:
                    self.fall_behind(receiver, stopped_at)

    # --- behind ------------------------------------------------------------------------------------

    def fall_behind(self, receiver: Receiver, revision: int) -> None:
        """``receiver`` needs everything from ``revision`` on, some time."""
        self._leave_group(receiver)
        receiver.position = revision
        receiver.behind = True
        self.behind += 1
        if receiver.ready:
            self._ready[receiver] = None
            self._schedule_round()
        else:
            receiver.park()

    def unpark(self, receivers: Iterable[Receiver]) -> None:
        """These parked receivers are ready again."""
        ready: dict[Receiver, None] = dict.fromkeys(receivers)
        self._ready.update(ready)
        self._schedule_round()

    def _schedule_round(self, delay_s: float = 0) -> None:
        if self._round_timer is None and not self._stopped:
            self._round_timer = self.call_later(delay_s, self._round)

    def _round(self) -> None:
        """Give one batch to up to so many receivers that are behind: from memory now, from the database later."""
        self._round_timer = None
        self.dispatch()
        served: list[Receiver] = []
        old: dict[Receiver, None] = {}
        for receiver in list(self._ready):
            if receiver in self._reading:
                continue
            if not receiver.ready:
                del self._ready[receiver]
                receiver.park()
            elif receiver.position < self._store.compacted:
                receiver.compacted(self._store.compacted)
            elif receiver.position < self._history.first:
                old[receiver] = None
            elif len(served) < ROUND_RECEIVERS:
                served.append(receiver)
        if served:
            moments = self._history.since(min(receiver.position for receiver in served))
            last = moments[-1].revision if moments else self.told
            old.update(dict.fromkeys(self._catch_up(served, moments, last)))
        if old and not self._reading:
            self._read(list(islice(old, ROUND_RECEIVERS)))
        # The next round comes with the answer of the database, unless it has something to do before.
        if any(receiver not in self._reading and not (self._reading and receiver in old) for receiver in self._ready):
            self._schedule_round()
        if self._owing:
            self._answer_progress()

    def _catch_up(self, receivers: Iterable[Receiver], moments: Sequence[Moment], last: int) -> list[Receiver]:
        """Give ``moments``, which is all up to revision ``last``; returns who needs pairs that have to be fetched."""
        groups = _grouped(receivers)
        index: RangeIndex[Group] = RangeIndex()
        for group in groups:
            index.add(group.interest.key, group.interest.range_end, group)
        _hits(index, moments)
        unserved: list[Receiver] = []
        for group in groups:
            events, interest = group.hits, group.interest
            responses: list[Response] = []
            if events:
                if group.wants_previous and any(event.lacks_previous for event in events):
                    unserved += group.receivers
                    continue
                events = [self._without_compacted(event) for event in events] if group.wants_previous else events
                responses = self.encoder.with_events(
                    events, interest.prev_kv, interest.fragment, self.told, self.term()
                )
            for receiver in group.receivers:
                if receiver.closed:
                    continue
                stopped_at = receiver.deliver(responses, events) if responses else 0
                if stopped_at:
                    receiver.position = stopped_at
                    continue
                receiver.position = max(receiver.position, last + 1)
                if receiver.position > self.told:
                    self._no_longer_behind(receiver)
                    self._sync(receiver)
                else:  # behind those who wait for their first turn
                    del self._ready[receiver]
                    self._ready[receiver] = None
        return unserved

    def _without_compacted(self, event: Event) -> Event:
        """The pair before a change is that of the revision before, unless that one is compacted."""
        if event.revision > self._store.compacted or event.change.previous is None:
            return event
        return Event(event.revision, event.change._replace(previous=None))

    # --- long behind -------------------------------------------------------------------------------

    def _read(self, receivers: Iterable[Receiver]) -> None:
        self._reading = dict.fromkeys(receivers)
        index: RangeIndex[Any] = RangeIndex()
        for group in _grouped(self._reading):
            index.add(group.interest.key, group.interest.range_end, group)
        first = max(1, min(receiver.position for receiver in self._reading))
        replay = Replay(first, self.told, index, self._store.compacted)
        self._read_history(replay, self._replayed, self._unread)

    def _replayed(self, replayed: Replayed) -> None:
        receivers, self._reading = self._reading, {}
        self.dispatch()
        present: list[Receiver] = []
        for receiver in receivers:
            if not receiver.behind:
                continue
            if not receiver.ready:
                del self._ready[receiver]
                receiver.park()
            elif receiver.position < self._store.compacted:
                receiver.compacted(self._store.compacted)  # of what it needs, some may be missing in what was read
            else:
                present.append(receiver)
        self._catch_up(present, replayed.moments, replayed.last)
        if self._ready:
            self._schedule_round()
        if self._owing:
            self._answer_progress()

    def _unread(self) -> None:
        """The database failed, which the member tells its operator; the receivers wait."""
        self._reading = {}
        if self._ready:
            self._schedule_round(RETRY_S)

    # --- private -----------------------------------------------------------------------------------

    def owe_progress(self, stream: WatchStream) -> None:
        """``stream`` asked for a progress notice: send it as soon as it is true."""
        self._owing[stream] = None
        self.dispatch()
        if self._owing:
            self._answer_progress()

    def disown(self, stream: WatchStream) -> None:
        """``stream`` is gone."""
        self.streams -= 1
        self._owing.pop(stream, None)

    def _answer_progress(self) -> None:
        for stream in [stream for stream in self._owing if stream.may_notify]:
            del self._owing[stream]
            stream.notify()

    def _sync(self, receiver: Receiver) -> None:
        interest = receiver.interest
        minimum = receiver.position if receiver.position > self.told + 1 else 0
        group = self._groups.get((interest, minimum))
        if group is None:
            group = self._groups[interest, minimum] = Group(interest, minimum)
            self._index.add(interest.key, interest.range_end, group)
        group.receivers[receiver] = None
        receiver.group = group

    def _leave_group(self, receiver: Receiver) -> None:
        group = receiver.group
        if group is not None:
            receiver.group = None
            del group.receivers[receiver]
            if not group.receivers:
                del self._groups[group.interest, group.minimum]
                self._index.discard(group.interest.key, group.interest.range_end, group)

    def _no_longer_behind(self, receiver: Receiver) -> None:
        receiver.behind = False
        self.behind -= 1
        self._ready.pop(receiver, None)


class Observation(Receiver):
    """A receiver inside the member; always ready."""

    __slots__ = ("_hub", "_tell")

    def __init__(
        self, hub: WatchHub, interest: Interest, position: int, tell: Callable[[int, list[Change]], None]
    ) -> None:
        super().__init__(interest, position)
        self._hub = hub
        self._tell = tell

    def cancel(self) -> None:
        """Tell nothing more, from now on."""
        self._hub.remove(self)

    @property
    def ready(self) -> bool:
        return True

    def deliver(self, responses: Sequence[Response], events: Sequence[Event]) -> int:
        for revision, of_revision in groupby(events, key=lambda event: event.revision):
            if not self.closed:
                self._tell(revision, [event.change for event in of_revision])
        return 0

    def compacted(self, revision: int) -> None:
        self.position = revision
        self._tell(revision, [])


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


def _hits(index: RangeIndex[Group], moments: Iterable[Moment]) -> list[Group]:
    """Put the events of ``moments`` into the ``hits`` of the groups that want them; those groups, in order."""
    hit: list[Group] = []
    for revision, changes in moments:
        for change in changes:
            groups = index.matching(change.key)
            if groups:
                event = Event(revision, change)
                for group in groups:
                    interest = group.interest
                    if revision >= group.minimum and (interest.deletes if change.deleted else interest.puts):
                        if not group.hits:
                            hit.append(group)
                        group.hits.append(event)
    return hit


def _grouped(receivers: Iterable[Receiver]) -> list[Group]:
    """Groups of those that want the same from the same position on."""
    groups: dict[tuple[Interest, int], Group] = {}
    for receiver in receivers:
        key = (receiver.interest, receiver.position)
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(*key)
        group.receivers[receiver] = None
    return list(groups.values())
