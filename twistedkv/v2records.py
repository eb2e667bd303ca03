"""The v2 store in the database: which records its nodes and its last events are, and which of them are due.

A node is a record in ``Bucket.DIRECTORY``: its key is the path, or ``#`` and the SHA-256 of a path that is too long for
a database's index. Events are kept as they come to be written, all of one time in one record of
``Bucket.DIRECTORY_EVENTS``, whose key is the index of the first of them in 20 digits; a record goes when its last event
leaves the history. ``directory_index`` in ``Bucket.META`` is the store's index, in decimal. A database without that was
written before there were such records.

Everything is encoded when it is written, not when it is changed: a node that is changed a thousand times between two
batches is one record. Bytes that are no UTF-8 come back as they were.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import islice
from operator import itemgetter
from struct import Struct
from typing import Final

from twistedkv.clusternodes import found
from twistedkv.members import Membership
from twistedkv.storage.backend import Bucket
from twistedkv.storage.directory import CLUSTER, KEYS, Directory, Node
from twistedkv.v2events import Action, Event, NodeView
from twistedkv.v2watch import CAPACITY, History, V2Hub

META_DIRECTORY_INDEX: Final = b"directory_index"

_IN_A_NEW_TREE: Final = ("/", CLUSTER, KEYS)
_MAX_KEY_BYTES: Final = 1000  # PostgreSQL's b-tree takes 2,704
_CHUNK_BYTES: Final = 4 << 20  # of events in one record, but for the last one in it
_SHOWN: Final = 200  # bytes of a key, in an error

# A node: whether it is a directory, created, modified, its end, how long a path follows (0: it is the key); value.
_NODE: Final = Struct(">BQQqI")
# An event: action, flags, lengths of key, value and previous value, modified, created and end of the node, then of what
# it was before; the three texts.
_EVENT: Final = Struct(">BBIIIQQqQQq")
_REFRESH, _DIR, _VALUE, _PREVIOUS, _WAS_DIR, _HAD_VALUE = (1 << bit for bit in range(6))
_ACTIONS: Final = tuple(Action)
_CODES: Final = {action: code for code, action in enumerate(_ACTIONS)}

Record = Callable[[Bucket, bytes, bytes | None], None]


class KeptHistory(History):
    """A history that came out of records.

    Args:
        events: as of a :class:`~twistedkv.v2watch.History`; nobody has to keep them any more.
        chunks: the indexes that are the keys of those records, ascending.
    """

    def __init__(self, events: Iterable[Event], chunks: Iterable[int]) -> None:
        super().__init__(events)
        self.fresh = 0
        self.chunks = deque(chunks)


class DirectoryRecords:
    """What is to be kept of a store. Both arguments may get another content at any time.

    Args:
        directory: the tree.
        hub: has the history.
    """

    def __init__(self, directory: Directory, hub: V2Hub) -> None:
        self._directory = directory
        self._hub = hub
        self._history: History | None = None  # that of which the following is said
        self._chunks: deque[int] = deque()  # the keys of its records, ascending
        self._measured = 0  # the index up to which its events are in _bytes
        self._bytes = 0

    @property
    def pending(self) -> int:
        """How many records there would be, about; 0 if nothing is to be kept."""
        return len(self._directory.changed) + (self._hub.history.fresh > 0)

    @property
    def pending_bytes(self) -> int:
        """About how many bytes they would have, or more; it grows until they are drained."""
        history = self._followed()
        for event in islice(reversed(history.events), min(history.fresh, history.last - self._measured)):
            self._bytes += _size_of(event)
        self._measured = history.last
        return self._bytes

    def drain(self, record: Record) -> None:
        """Have everything recorded that has changed since the last time."""
        if not self.pending:
            return
        directory, history = self._directory, self._followed()
        for path in directory.changed:
            node = directory.node(path)
            record(Bucket.DIRECTORY, _node_key(path), None if node is None else _encode_node(node))
        directory.changed.clear()
        chunks = self._chunks
        for first, chunk in _chunks(islice(history.events, len(history.events) - history.fresh, None)):
            record(Bucket.DIRECTORY_EVENTS, _chunk_key(first), chunk)
            chunks.append(first)
        history.fresh = 0
        while len(chunks) > 1 and chunks[1] <= history.first:  # all of the first one is forgotten
            record(Bucket.DIRECTORY_EVENTS, _chunk_key(chunks.popleft()), None)
        record(Bucket.META, META_DIRECTORY_INDEX, b"%d" % directory.index)
        self._bytes = 0
        self._measured = history.last

    def _followed(self) -> History:
        """The history as it is now, which may be another one than the last time."""
        history = self._hub.history
        if history is not self._history:
            self._history = history
            self._chunks = history.chunks if isinstance(history, KeptHistory) else deque()
            self._measured = self._bytes = 0
        return history


def store_of(
    nodes: Mapping[bytes, bytes],
    events: Mapping[bytes, bytes],
    index: bytes | None,
    membership: Membership,
    cluster_version: str,
) -> tuple[Directory, V2Hub]:
    """The store that a database holds, or one for the cluster of a database that was written before it held one.

    Args:
        nodes: the records of ``Bucket.DIRECTORY``.
        events: those of ``Bucket.DIRECTORY_EVENTS``.
        index: the record ``directory_index`` of ``Bucket.META``; None if there is none.

    Raises:
        ValueError: the records are damaged; in one line.
    """
    if index is not None:
        return load_directory(nodes, events, _decimal(index))
    if nodes or events:
        raise ValueError("the v2 store has nodes and no index")
    hub = V2Hub()
    directory = Directory(hub)
    found(directory, membership, cluster_version)
    return directory, hub


def load_directory(nodes: Mapping[bytes, bytes], events: Mapping[bytes, bytes], index: int) -> tuple[Directory, V2Hub]:
    """The store that was recorded; of it nothing is to be recorded again.

    Raises:
        ValueError: the records are damaged; in one line.
    """
    hub = V2Hub(_load_history(events, index))
    directory = Directory(hub)
    loaded = [_decode_node(key, value) for key, value in nodes.items()]
    loaded.sort(key=itemgetter(0))  # so that a directory, whose path others begin with, comes before what is in it
    load = directory.load
    for path, value, created, modified, expires_ns in loaded:
        if modified > index:
            raise ValueError(f"the node {path[:_SHOWN]!r} was modified at {modified}, and the v2 store is at {index}")
        load(path, value, created, modified, expires_ns)
    directory.index = index
    return directory, hub


def records_of(directory: Directory, history: History) -> Iterator[tuple[Bucket, bytes, bytes]]:
    """All records of a store but its index, for a database that has none yet. It must not change meanwhile."""
    for node in directory.nodes():
        if node.modified or node.path not in _IN_A_NEW_TREE:
            yield Bucket.DIRECTORY, _node_key(node.path), _encode_node(node)
    for first, chunk in _chunks(history.events):
        yield Bucket.DIRECTORY_EVENTS, _chunk_key(first), chunk


# --- nodes -------------------------------------------------------------------------------------------


def _node_key(path: str) -> bytes:
    key = path.encode("utf-8", "surrogateescape")
    return key if len(key) <= _MAX_KEY_BYTES else b"#" + sha256(key).hexdigest().encode()


def _encode_node(node: Node) -> bytes:
    path = node.path.encode("utf-8", "surrogateescape") if len(node.path) > _MAX_KEY_BYTES // 4 else b""
    if len(path) <= _MAX_KEY_BYTES:
        path = b""
    is_dir = node.children is not None
    head = _NODE.pack(is_dir, node.created, node.modified, node.expires_ns, len(path))
    return head + path + node.value.encode("utf-8", "surrogateescape")


def _decode_node(key: bytes, record: bytes) -> tuple[str, str | None, int, int, int]:
    """Path, value (None of a directory), created, modified, end."""
    try:
        is_dir, created, modified, expires_ns, size = _NODE.unpack_from(record)
    except struct.error as error:
        raise _damaged(key, "is too short") from error
    end = _NODE.size + size
    path = (
        record[_NODE.size : end].decode("utf-8", "surrogateescape") if size else key.decode("utf-8", "surrogateescape")
    )
    if is_dir > 1 or len(record) < end or (is_dir and len(record) > end) or (size and _node_key(path) != key):
        raise _damaged(key, "contradicts itself")
    value = None if is_dir else record[end:].decode("utf-8", "surrogateescape")
    return path, value, created, modified, expires_ns


# --- events ------------------------------------------------------------------------------------------


def _chunk_key(first: int) -> bytes:
    return b"%020d" % first


def _chunks(events: Iterable[Event]) -> Iterator[tuple[int, bytes]]:
    """Records of these events, each with the index of its first one."""
    first, parts, size = 0, list[bytes](), 0
    for event in events:
        first = first or event.index
        encoded = _encode_event(event)
        parts.append(encoded)
        size += len(encoded)
        if size >= _CHUNK_BYTES:
            yield first, b"".join(parts)
            first, parts, size = 0, [], 0
    if parts:
        yield first, b"".join(parts)


def _load_history(records: Mapping[bytes, bytes], index: int) -> KeptHistory:
    events: deque[Event] = deque(maxlen=CAPACITY)
    chunks = []
    for key in sorted(records):
        wanted = _decimal(key)
        if events and wanted != events[-1].index + 1:
            raise _damaged(key, f"does not follow the event {events[-1].index}")
        chunks.append(wanted)
        for event in _decode_events(key, records[key]):
            if event.index != wanted:
                raise _damaged(key, f"has the event {event.index} instead of {wanted}")
            events.append(event)
            wanted += 1
    if events and events[-1].index != index:
        raise ValueError(f"the last event of the v2 store is {events[-1].index}, and the store is at {index}")
    return KeptHistory(events, chunks)


def _encode_event(event: Event) -> bytes:
    node, previous = event.node, event.previous
    key = node.key.encode("utf-8", "surrogateescape")
    value = b"" if node.value is None else node.value.encode("utf-8", "surrogateescape")
    flags = (event.refresh and _REFRESH) | (node.is_dir and _DIR) | (0 if node.value is None else _VALUE)
    before, modified, created, expires_ns = b"", 0, 0, 0
    if previous is not None:
        flags |= _PREVIOUS | (previous.is_dir and _WAS_DIR)
        if previous.value is not None:
            flags |= _HAD_VALUE
            before = previous.value.encode("utf-8", "surrogateescape")
        modified, created, expires_ns = previous.modified, previous.created, previous.expires_ns
    head = _EVENT.pack(
        _CODES[event.action],
        flags,
        len(key),
        len(value),
        len(before),
        node.modified,
        node.created,
        node.expires_ns,
        modified,
        created,
        expires_ns,
    )
    return b"".join((head, key, value, before))


def _decode_events(key: bytes, record: bytes) -> Iterator[Event]:
    position = 0
    while position < len(record):
        try:
            code, flags, *numbers = _EVENT.unpack_from(record, position)
        except struct.error as error:
            raise _damaged(key, "ends inside of an event") from error
        texts = []
        position += _EVENT.size
        for size in numbers[:3]:
            texts.append(record[position : position + size].decode("utf-8", "surrogateescape"))
            position += size
        if code >= len(_ACTIONS) or position > len(record):
            raise _damaged(key, "ends inside of an event")
        path, value, before = texts
        modified, created, expires_ns = numbers[3:6]
        node = NodeView(path, value if flags & _VALUE else None, bool(flags & _DIR), expires_ns, (), modified, created)
        previous = None
        if flags & _PREVIOUS:
            modified, created, expires_ns = numbers[6:]
            was = before if flags & _HAD_VALUE else None
            previous = NodeView(path, was, bool(flags & _WAS_DIR), expires_ns, (), modified, created)
        yield Event(_ACTIONS[code], node, previous, node.modified, bool(flags & _REFRESH))


def _size_of(event: Event) -> int:
    """About what an event and the node that it tells of take."""
    node, previous = event.node, event.previous
    size = 2 * (len(node.key) + len(node.value or "")) + _NODE.size + _EVENT.size
    return size if previous is None else size + len(previous.value or "")


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise ValueError(f"{text[:_SHOWN]!r} is no index of the v2 store")
    return int(text)


def _damaged(key: bytes, what: str) -> ValueError:
    return ValueError(f"the record {key[:_SHOWN]!r} of the v2 store {what}")
