"""What runs on the two streams between members: frames in, messages out, and the other way round.

The message stream carries any message behind its length. The append stream (``msgappv2``) carries appends only, and
says of one that follows the one before it no more than its entries and commit index; so both ends keep term and index,
beginning at zero with the connection. Source: etcd ``server/etcdserver/api/rafthttp/{message,msgappv2_codec}.go``.

All numbers are 8 bytes, big-endian.

======================  ===========================================================================================
message stream          length, raftpb.Message; with type MsgHeartbeat, from and to 0: the link is alive
append stream, ``00``   the link is alive
append stream, ``01``   count, then count times length and raftpb.Entry; commit index
append stream, ``02``   length, raftpb.Message of type MsgApp
======================  ===========================================================================================
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum
from typing import Final, Protocol

from twistedkv.protocols.peerhttp import ProtocolError
from twistedkv.raft.messages import Entry, Message, MessageType
from twistedkv.raft.wire import (
    DecodeError,
    EntryEncoder,
    UnknownTypeError,
    decode_entry,
    decode_message,
    encode_message,
)

MAX_FRAME_BYTES: Final = 512 * 1024 * 1024  # etcd rafthttp/message.go, readBytesLimit

_NUMBER = struct.Struct(">Q")
_pack = _NUMBER.pack
_unpack_from = _NUMBER.unpack_from

_ALIVE, _ENTRIES, _MESSAGE = 0, 1, 2
_COUNT_BYTES: Final = 1 + 8  # type and count before the entries
_MIN_ENTRY_BYTES: Final = 8  # its length


class StreamKind(Enum):
    """The streams, by the last part but one of their paths."""

    APPENDS = "msgapp"
    MESSAGES = "message"


class Encoder(Protocol):
    """Makes the frames of one stream, in order."""

    alive: bytes  # the frame that says no more than that the link is alive

    def encode(self, message: Message) -> bytes:
        """The next frame."""


class Decoder(Protocol):
    """Reads the frames of one stream."""

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole with ``data``, cut anywhere. Take them all before feeding on.

        Raises:
            ProtocolError: this is no such stream. Nothing may be fed any more.
        """


class _Pieces:
    """Received bytes of which no frame could be made yet. Joins them only when there are enough."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self.needed = 0  # bytes before it is worth looking again

    def add(self, data: bytes) -> bytes:
        """All bytes, or none as long as they are too few."""
        if not self._parts and len(data) >= self.needed:
            return data
        self._parts.append(data)
        self._size += len(data)
        if self._size < self.needed:
            return b""
        joined = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return joined

    def keep(self, data: bytes, needed: int) -> None:
        """Put back what is left, of which ``needed`` bytes make something whole."""
        self.needed = needed
        if data:
            self._parts.append(data)
            self._size = len(data)


class MessageEncoder:
    """The message stream, going out.

    Args:
        entries: shared by the streams of all peers.
    """

    alive = _pack(len(encode_message(Message(MessageType.HEARTBEAT, 0)))) + encode_message(
        Message(MessageType.HEARTBEAT, 0)
    )

    def __init__(self, entries: EntryEncoder | None = None) -> None:
        self._entries = entries

    def encode(self, message: Message) -> bytes:
        encoded = encode_message(message, self._entries)
        return _pack(len(encoded)) + encoded


class MessageDecoder:
    """The message stream, coming in. A message of a type that is not known is passed over, as etcd's Raft does."""

    def __init__(self, limit_bytes: int = MAX_FRAME_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._pieces = _Pieces()

    def feed(self, data: bytes) -> Iterator[Message]:
        data = self._pieces.add(data)
        position, end = 0, len(data)
        needed = 8
        while end - position >= 8:
            (length,) = _unpack_from(data, position)
            if length > self._limit_bytes:
                raise ProtocolError(f"a message of {length} bytes")
            needed = 8 + length
            if end - position < needed:
                break
            message = _read_message(data[position + 8 : position + needed])
            position += needed
            needed = 8
            if message is not None and not _says_alive(message):
                yield message
        if end:
            self._pieces.keep(data[position:], needed)


class AppendEncoder:
    """The append stream, going out. It takes messages of type APPEND only.

    Args:
        entries: shared by the streams of all peers.
    """

    alive = b"\x00"

    def __init__(self, entries: EntryEncoder | None = None) -> None:
        self._entries = EntryEncoder() if entries is None else entries
        self._term = self._index = 0

    def encode(self, message: Message) -> bytes:
        """The next frame.

        Raises:
            ValueError: it is no append.
        """
        if message.type is not MessageType.APPEND:
            raise ValueError(f"{message.type.name} on the append stream")
        entries = message.entries
        if message.index == self._index and message.log_term == self._term == message.term:
            self._index += len(entries)
            parts = [b"\x01", _pack(len(entries))]
            for entry in self._entries.encode(entries) if entries else ():
                parts += (_pack(len(entry)), entry)
            parts.append(_pack(message.commit))
            return b"".join(parts)
        self._term = message.term
        self._index = entries[-1].index if entries else message.index
        encoded = encode_message(message, self._entries)
        return b"\x02" + _pack(len(encoded)) + encoded


class AppendDecoder:
    """The append stream, coming in.

    Args:
        local: who reads.
        remote: who writes; frames of type 1 do not say it.
    """

    def __init__(self, local: int, remote: int, limit_bytes: int = MAX_FRAME_BYTES) -> None:
        self._local = local
        self._remote = remote
        self._limit_bytes = limit_bytes
        self._pieces = _Pieces()
        self._term = self._index = 0
        self._missing = 0  # entries of the frame in progress
        self._entries: list[Entry] | None = None  # those that are here; None between frames
        self._entries_bytes = 0

    def feed(self, data: bytes) -> Iterator[Message]:
        data = self._pieces.add(data)
        position, end = 0, len(data)
        needed = 1
        while position < end:
            if self._entries is None:
                needed, message = self._begin(data, position, end)
            else:
                needed, message = self._go_on(data, position, end)
            if needed > end - position:
                break
            position += needed
            needed = 1
            if message is not None:
                yield message
        if end:
            self._pieces.keep(data[position:], needed)

    def _begin(self, data: bytes, position: int, end: int) -> tuple[int, Message | None]:
        """Read a frame, or the beginning of one with entries; how many bytes that takes, or would take."""
        kind = data[position]
        if kind == _ALIVE:
            return 1, None
        if kind not in (_ENTRIES, _MESSAGE):
            raise ProtocolError(f"a frame of type {kind} on the append stream")
        if end - position < _COUNT_BYTES:
            return _COUNT_BYTES, None
        (number,) = _unpack_from(data, position + 1)
        if kind == _ENTRIES:
            if number > self._limit_bytes // _MIN_ENTRY_BYTES:
                raise ProtocolError(f"an append of {number} entries")
            self._entries, self._entries_bytes, self._missing = [], 0, number
            return _COUNT_BYTES, None
        if number > self._limit_bytes:
            raise ProtocolError(f"a message of {number} bytes")
        needed = _COUNT_BYTES + number
        if end - position < needed:
            return needed, None
        message = _read_message(data[position + _COUNT_BYTES : position + needed])
        if message is None or message.type is not MessageType.APPEND:
            raise ProtocolError("no append on the append stream")
        self._term = message.term
        self._index = message.entries[-1].index if message.entries else message.index
        return needed, message

    def _go_on(self, data: bytes, position: int, end: int) -> tuple[int, Message | None]:
        """Read entries as far as they are here, and at last the commit index."""
        entries = self._entries
        if entries is None:
            raise ValueError("no frame in progress")
        start = position
        try:
            while self._missing:
                if end - position < 8:
                    return (position - start) or 8, None
                (length,) = _unpack_from(data, position)
                self._check_entry(length)
                if end - position < 8 + length:
                    return (position - start) or 8 + length, None
                entries.append(decode_entry(data[position + 8 : position + 8 + length]))
                position += 8 + length
                self._entries_bytes += length
                self._missing -= 1
        except DecodeError as error:
            raise ProtocolError(str(error)) from error
        if end - position < 8:
            return (position - start) or 8, None
        (commit,) = _unpack_from(data, position)
        term, index = self._term, self._index
        self._index += len(entries)
        self._entries = None
        message = Message(MessageType.APPEND, self._local, self._remote, term, term, index, entries or (), commit)
        return position + 8 - start, message

    def _check_entry(self, length: int) -> None:
        if length > self._limit_bytes - self._entries_bytes:
            raise ProtocolError(f"an append of more than {self._limit_bytes} bytes")


def encoder_of(kind: StreamKind, entries: EntryEncoder) -> Encoder:
    """What writes a new stream."""
    return AppendEncoder(entries) if kind is StreamKind.APPENDS else MessageEncoder(entries)


def decoder_of(kind: StreamKind, local: int, remote: int) -> Decoder:
    """What reads a new stream from ``remote``."""
    return AppendDecoder(local, remote) if kind is StreamKind.APPENDS else MessageDecoder()


def _read_message(data: bytes) -> Message | None:
    """The message; ``None`` if members do not say that to each other."""
    try:
        return decode_message(data)
    except UnknownTypeError:
        return None
    except DecodeError as error:
        raise ProtocolError(str(error)) from error


def _says_alive(message: Message) -> bool:
    return message.type is MessageType.HEARTBEAT and message.sender == message.to == 0
