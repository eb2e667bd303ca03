"""Events and the responses that carry them, as bytes: each is made once, however many watchers get it.

Source: etcd ``api/etcdserverpb/rpc.proto`` (WatchResponse), ``server/etcdserver/api/v3rpc/watch.go`` (fragments).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from twistedkv.pb.rpc_pb2 import WatchResponse
from twistedkv.storage.keyindex import Evicted
from twistedkv.storage.mvcc import Change
from twistedkv.wire import HeaderEncoder, varint

# Bytes of events after which the next revision gets a response of its own. etcd has no such limit, and a response over
# 4 MiB ends the stream of a client whose gRPC library was not told to take it.
RESPONSE_BYTES = 1 << 20

_WATCH_ID, _FRAGMENT, _EVENTS = b"\x10", b"\x38\x01", b"\x5a"  # fields of WatchResponse
_DELETED, _PAIR, _PREVIOUS = b"\x08\x01", b"\x12", b"\x1a"  # fields of mvccpb.Event


class Event:
    """One change, at the revision that it belongs to."""

    __slots__ = ("_full", "_plain", "change", "revision")

    def __init__(self, revision: int, change: Change) -> None:
        self.revision = revision
        self.change = change
        self._plain: bytes | None = None
        self._full: bytes | None = None

    def plain(self) -> bytes:
        """It as field ``events`` of a response."""
        if self._plain is None:
            self._plain = _field(self.change, None)
        return self._plain

    def full(self) -> bytes:
        """It with the pair before the change, which is not :class:`Evicted`."""
        if self._full is None:
            previous = self.change.previous
            if isinstance(previous, Evicted):
                raise ValueError("the pair before has to be fetched first")
            self._full = self.plain() if previous is None else _field(self.change, previous)
        return self._full

    @property
    def lacks_previous(self) -> bool:
        """Whether the pair before the change has to be fetched."""
        return type(self.change.previous) is Evicted


class Response:
    """Events that go out together; the message differs only by watch id.

    Args:
        header: of the response, as field.
        first: the first revision in it.
        events: fields, at least one.
        fragment_bytes: messages of this size are split between events, if there is more than one; 0 never does so.
    """

    __slots__ = ("_events", "_fragment_bytes", "_header", "_messages", "count", "first")

    def __init__(self, header: bytes, first: int, events: list[bytes], fragment_bytes: int = 0) -> None:
        self.first = first
        self.count = len(events)
        self._header = header
        self._events = events
        self._fragment_bytes = fragment_bytes
        self._messages: dict[int, tuple[bytes, ...]] = {}

    def messages(self, watch_id: int) -> tuple[bytes, ...]:
        """What a watcher of that id gets, nearly always one message."""
        messages = self._messages.get(watch_id)
        if messages is None:
            head = self._header + _WATCH_ID + varint(watch_id) if watch_id else self._header
            messages = self._messages[watch_id] = tuple(_split(head, self._events, self._fragment_bytes))
        return messages


class ResponseEncoder:
    """Makes responses with this member's header.

    Args:
        header: of this member.
        fragment_bytes: what a message may have before it is split, where the watcher asked for fragments.
    """

    def __init__(self, header: HeaderEncoder, fragment_bytes: int) -> None:
        self._header = header
        self._fragment_bytes = fragment_bytes

    def with_events(
        self, events: Sequence[Event], with_previous: bool, fragment: bool, revision: int, term: int
    ) -> list[Response]:
        """The responses that carry ``events``: whole revisions each, unless the watcher takes fragments.

        Args:
            revision: for the header.
        """
        header = self._header.field(revision, term)
        encode = Event.full if with_previous else Event.plain
        if fragment:
            return [Response(header, events[0].revision, [encode(event) for event in events], self._fragment_bytes)]
        responses: list[Response] = []
        fields: list[bytes] = []
        first = current = events[0].revision
        size = 0
        for event in events:
            if event.revision != current:
                current = event.revision
                if size >= RESPONSE_BYTES:
                    responses.append(Response(header, first, fields))
                    fields, first, size = [], current, 0
            field = encode(event)
            fields.append(field)
            size += len(field)
        responses.append(Response(header, first, fields))
        return responses

    def created(self, watch_id: int, revision: int, term: int, refusal: str = "") -> bytes:
        """The answer to a create request; with the reason if it was refused."""
        response = WatchResponse(watch_id=watch_id, created=True, canceled=bool(refusal), cancel_reason=refusal)
        return self._header.field(revision, term) + response.SerializeToString()

    def canceled(self, watch_id: int, revision: int, term: int) -> bytes:
        """The answer to a cancel request."""
        return self._header.field(revision, term) + WatchResponse(watch_id=watch_id, canceled=True).SerializeToString()

    def compacted(self, watch_id: int, compact_revision: int, term: int) -> bytes:
        """The end of a watch whose revisions were compacted; etcd leaves the header's revision at zero."""
        response = WatchResponse(watch_id=watch_id, canceled=True, compact_revision=compact_revision)
        return self._header.field(0, term) + response.SerializeToString()

    def progress(self, watch_id: int, revision: int, term: int) -> bytes:
        """Everything up to ``revision`` was sent."""
        return self._header.field(revision, term) + WatchResponse(watch_id=watch_id).SerializeToString()


def _field(change: Change, previous: bytes | None) -> bytes:
    pair = change.pair
    event = _PAIR + varint(len(pair)) + pair
    if change.deleted:
        event = _DELETED + event
    if previous is not None:
        event += _PREVIOUS + varint(len(previous)) + previous
    return _EVENTS + varint(len(event)) + event


def _split(head: bytes, events: list[bytes], most_bytes: int) -> Iterator[bytes]:
    """One message, or fragments as etcd cuts them: each below ``most_bytes`` if it can be, all but the last marked."""
    size = len(head) + sum(map(len, events))
    if not most_bytes or size < most_bytes or len(events) < 2:
        yield b"".join((head, *events))
        return
    part: list[bytes] = []
    size = len(head) + len(_FRAGMENT)
    for event in events:
        size += len(event)
        if part and size >= most_bytes:
            yield b"".join((head, _FRAGMENT, *part))
            part, size = [], len(head) + len(_FRAGMENT) + len(event)
        part.append(event)
    yield b"".join((head, *part))
