"""Watches: every change of a range of keys from some revision on, once each and in order.

A *receiver*, which is a watcher of a client's stream or an observation from inside the member, is in one of two states:

- **synced**: it was given everything up to the newest revision. It sits in a ``Group`` with those who want the
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
from typing import Any, Protocol

from twistedkv.errors import CompactedError
from twistedkv.history import History, Moment, Replay, Replayed
from twistedkv.storage.mvcc import Change, Store
from twistedkv.watchers import RangeIndex
from twistedkv.watchevents import Event, Response, ResponseEncoder
from twistedkv.watchgroups import Group, Interest, Receiver, grouped, hits_of

PROGRESS_INTERVAL_S = 600.0  # etcd server/etcdserver/api/v3rpc/watch.go, plus up to a tenth of it
ROUND_RECEIVERS = 512  # that one round of catching up serves; etcd watchable_store.go, maxWatchersPerSync
RETRY_S = 1.0  # after the database refused to be read


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


class Notifiable(Protocol):
    """Whoever asked for a progress notice."""

    @property
    def may_notify(self) -> bool:
        """Whether a notice of :attr:`WatchHub.told` is true now."""

    def notify(self) -> None:
        """Give it."""


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
        self._owing: dict[Notifiable, None] = {}  # progress that was asked for
        self._stopped = False

    # --- receivers come and go ---------------------------------------------------------------------

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
            hit = hits_of(self._index, moments)
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

    def restored(self) -> None:
        """The store has become a later one, by a snapshot, and nobody was told what happened in between.

        Whoever was told everything up to the state before needs the rest, which only the database has; whoever waits
        for a revision still to come goes on waiting. Call it in the turn in which the store was restored, after the
        database was.
        """
        self.dispatch()
        if not self._receivers or self._stopped:
            return
        last, self.told = self.told, self._store.revision
        self._history.clear(self.told + 1)
        for group in list(self._groups.values()):
            for receiver in list(group.receivers):
                needed = max(receiver.position, last + 1)
                if needed <= self.told:
                    self.fall_behind(receiver, needed)
        if self._round_timer is not None:  # what it waits for may have been this
            self._round_timer.cancel()
            self._round_timer = None
        if self._ready:
            self._schedule_round()
        if self._owing:
            self._answer_progress()

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
        groups = grouped(receivers)
        index: RangeIndex[Group] = RangeIndex()
        for group in groups:
            index.add(group.interest.key, group.interest.range_end, group)
        hits_of(index, moments)
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
        for group in grouped(self._reading):
            index.add(group.interest.key, group.interest.range_end, group)
        first = max(1, min(receiver.position for receiver in self._reading))
        replay = Replay(first, self.told, index, self._store.compacted)
        self._read_history(replay, self._replayed, self._unread)

    def _replayed(self, replayed: Replayed) -> None:
        receivers, self._reading = self._reading, {}
        self.dispatch()
        present: list[Receiver] = []
        ahead = False
        for receiver in receivers:
            if not receiver.behind:
                continue
            if not receiver.ready:
                del self._ready[receiver]
                receiver.park()
            elif receiver.position < self._store.compacted:
                receiver.compacted(self._store.compacted)  # of what it needs, some may be missing in what was read
            elif receiver.position < replayed.compacted:
                ahead = True
            else:
                present.append(receiver)
        self._catch_up(present, replayed.moments, replayed.last)
        if self._ready:
            # The database may be that of a snapshot which is not in the store yet: then there is nothing to do until
            # restored() is called.
            self._schedule_round(RETRY_S if ahead else 0)
        if self._owing:
            self._answer_progress()

    def _unread(self) -> None:
        """The database failed, which the member tells its operator; the receivers wait."""
        self._reading = {}
        if self._ready:
            self._schedule_round(RETRY_S)

    # --- private -----------------------------------------------------------------------------------

    def owe_progress(self, stream: Notifiable) -> None:
        """``stream`` asked for a progress notice: send it as soon as it is true."""
        self._owing[stream] = None
        self.dispatch()
        if self._owing:
            self._answer_progress()

    def disown(self, stream: Notifiable) -> None:
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
