"""Receivers of changes and the groups they form: who wants the same, from the same revision on, shares the work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from twistedkv.history import Moment
from twistedkv.watchers import RangeIndex
from twistedkv.watchevents import Event, Response


class Interest(NamedTuple):
    """What a receiver wants to see; those with equal interest share their responses."""

    key: bytes
    range_end: bytes
    puts: bool = True
    deletes: bool = True
    prev_kv: bool = False
    fragment: bool = False


class Receiver:
    """Whoever is told of changes; synced or behind, see ``watch.py``."""

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


def hits_of(index: RangeIndex[Group], moments: Iterable[Moment]) -> list[Group]:
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


def grouped(receivers: Iterable[Receiver]) -> list[Group]:
    """Groups of those that want the same from the same position on."""
    groups: dict[tuple[Interest, int], Group] = {}
    for receiver in receivers:
        key = (receiver.interest, receiver.position)
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(*key)
        group.receivers[receiver] = None
    return list(groups.values())
