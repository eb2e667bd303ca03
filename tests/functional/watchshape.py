"""What a watch should have, and whether its responses have the shape that a client may rely on.

Source: etcd's ``server/etcdserver/api/v3rpc/watch.go`` and ``server/storage/mvcc/watchable_store.go``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf import text_format
from google.protobuf.message import Message

from tests.functional.differential import masked
from twistedkv.pb import kv_pb2

NEVER = 2**63  # a revision that no store reaches


@dataclass(slots=True)
class Watch:
    """One watch as the reference made it, and what is still to come on it."""

    key: bytes
    range_end: bytes
    start: int  # the first revision it covers
    compacted: int  # when it was made
    unwanted: frozenset[int]  # event types that are filtered out
    live_after: int  # an event of a higher revision is sent as it happens
    doomed: bool  # starts at what is compacted
    at: int = 0  # how much of the history was looked at
    expected: int = 0  # events since the last rest

    def look(self, history: Sequence[kv_pb2.Event]) -> None:
        """Count what is new."""
        for event in history[self.at :]:
            if not self.doomed and self._wants(event):
                self.expected += 1
        self.at = len(history)

    def _wants(self, event: kv_pb2.Event) -> bool:
        revision, key = event.kv.mod_revision, event.kv.key
        if revision < self.start or event.type in self.unwanted:
            return False
        if event.type == kv_pb2.Event.DELETE and revision <= self.compacted:
            return False  # 3.5.1 drops a tombstone exactly at the compacted revision
        if not self.range_end:
            return key == self.key
        return key >= self.key and (self.range_end == b"\0" or key < self.range_end)


def answers(kind: str | None, response: Message, watch_id: int) -> bool:
    """Whether a response answers a request of this kind (``request_union``); ``watch_id`` is a cancelled one's."""
    match kind:
        case "create_request" | "barrier":
            return bool(response.created)
        case "cancel_request":
            return bool(response.canceled) and response.watch_id == watch_id
    return response.watch_id == -1 and not response.created and not response.events


def complete(messages: Sequence[Message], watches: dict[int, Watch]) -> bool:
    """Whether every watch has its events, and those that start too early are cancelled."""
    counts = dict.fromkeys(watches, 0)
    for message in messages:
        if message.watch_id in counts:
            counts[message.watch_id] += len(message.events)
    cancelled = {message.watch_id for message in messages if message.canceled}
    return all(
        counts[watch_id] >= watch.expected and (not watch.doomed or watch_id in cancelled)
        for watch_id, watch in watches.items()
    )


def by_watch(messages: Sequence[Message]) -> dict[int, list[Message]]:
    """The responses of each watch, in their order."""
    found: dict[int, list[Message]] = {}
    for message in messages:
        found.setdefault(message.watch_id, []).append(message)
    return found


def canonical(messages: Sequence[Message], compacted: int) -> list[str]:
    """What came on one watch, however it was cut into responses.

    A watch may start at the compacted revision itself. If that is a tombstone, 3.5.1 has lost it, patch releases since
    3.5.16 show it, and so do we as long as it is in memory: it is left out.
    """
    items = []
    for message in messages:
        for event in message.events:
            if event.type != kv_pb2.Event.DELETE or event.kv.mod_revision > compacted:
                items.append(text_format.MessageToString(event, as_one_line=True))
        if not message.events:
            items.append(text_format.MessageToString(masked(message), as_one_line=True))
    return items


def first_difference(expected: Sequence[str], found: Sequence[str]) -> str:
    """Where two lists part, in words."""
    at = next(
        (n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found))
    )
    ahead = f"after {expected[at - 1]}" if at else "first"
    return f"{ahead}\n  expected {expected[at : at + 2]}\n  found    {found[at : at + 2]}"


def misshapen(messages: Sequence[Message], watch: Watch | None, current: int) -> str:
    """What is wrong with the responses that carry one watch's events, each by itself and in their order."""
    last, torn = 0, False
    for message in messages:
        if not message.events:
            continue
        revisions = [event.kv.mod_revision for event in message.events]
        if message.created or message.canceled or message.compact_revision:
            return f"events in a response that is about the watch itself: {as_text([message])}"
        if sorted(revisions) != revisions or revisions[0] < last or (revisions[0] == last and not torn):
            return f"revision {revisions[0]} after {last}"
        last, torn = revisions[-1], message.fragment
        header = message.header.revision
        live = watch is not None and revisions[0] > watch.live_after
        if header < last or header > max(current, last) or (live and header != last):
            return f"header of revision {header} over {'live ' if live else ''}events up to {last}, store at {current}"
        if not (message.header.cluster_id and message.header.member_id and message.header.raft_term):
            return f"incomplete header: {as_text([message])}"
    return "a fragment is the last response" if torn else ""


def as_text(messages: Sequence[Message]) -> str:
    """Messages in one line, ids masked."""
    return " | ".join(text_format.MessageToString(masked(each), as_one_line=True) for each in messages)
