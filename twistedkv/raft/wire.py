"""Raft's messages as bytes: raftpb's wire format, which members of etcd speak.

What is written is what etcd 3.5 writes: a scalar is there even if it is zero, and so is an empty snapshot (gogoproto's
``nullable = false``). It is written by hand, because every entry passes here once for each follower. What is read may
leave both out, as etcd 3.6 does, and may carry fields that are not known here; the generated parser reads it, which is
the quicker way in. Source of the format: protobuf's encoding guide; of the fields: ``pb/raft.proto``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError as ProtobufDecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from twistedkv.pb import raft_pb2
from twistedkv.raft.messages import ConfState, Entry, EntryType, Message, MessageType, Snapshot, SnapshotMeta
from twistedkv.wire import varint

_TYPES: Final = {int(each): each for each in MessageType}
_ENTRY_TYPES: Final = {int(each): each for each in EntryType}
_NORMAL: Final = EntryType.NORMAL
_new: Final = tuple.__new__  # makes an entry in half the time that its class needs for it

# snapshot { metadata { conf_state { auto_leave: false } index: 0 term: 0 } }
_NO_SNAPSHOT: Final = bytes.fromhex("4a0a12080a02280010001800")
_LOW: Final = tuple(bytes((n | 0x80,)) for n in range(0x80))  # the low 7 bits of a varint that goes on

_parse_message = raft_pb2.Message.FromString
_parse_entry = raft_pb2.Entry.FromString
_number = lru_cache(8192)(varint)  # ids, terms and lengths come again and again


class DecodeError(ValueError):
    """The bytes are no message of Raft's: their sender's fault."""


class UnknownTypeError(DecodeError):
    """A message, but of a type that members do not say to each other."""


# --- writing -----------------------------------------------------------------------------------------


class EntryEncoder:
    """Encodes entries, and remembers the last batch: a leader sends the same one to every follower."""

    def __init__(self) -> None:
        self._batch: Sequence[Entry] = ()
        self._encoded: list[bytes] = []

    def encode(self, entries: Sequence[Entry]) -> list[bytes]:
        """One raftpb.Entry each. The list is the encoder's own: do not change it."""
        batch = self._batch
        # Entries of a log that begin and end with the same objects are the same ones (Raft §5.3, log matching).
        if len(batch) == len(entries) and entries and batch[0] is entries[0] and batch[-1] is entries[-1]:
            return self._encoded
        self._batch, self._encoded = entries, _encode_entries(entries)
        return self._encoded


def _encode_entries(entries: Sequence[Entry]) -> list[bytes]:
    encoded: list[bytes] = []
    last_term = last_type = last_high = -1
    head = high = b""
    number = _number
    for term, index, data, kind in entries:
        if term != last_term or kind != last_type:
            last_term, last_type = term, kind
            head = b"\x08" + varint(kind) + b"\x10" + varint(term) + b"\x18"
        if index >> 7 != last_high:
            last_high = index >> 7
            high = varint(last_high)
        position = _LOW[index & 0x7F] + high if last_high else varint(index)
        if data:
            encoded.append(b"%b%b\x22%b%b" % (head, position, number(len(data)), data))
        else:
            encoded.append(head + position)
    return encoded


def encode_message(message: Message, encoder: EntryEncoder | None = None) -> bytes:
    """One raftpb.Message.

    Args:
        encoder: remembers entries, for what is sent to several members.
    """
    number = _number
    parts = [
        b"\x08%b\x10%b\x18%b\x20%b\x28%b\x30%b"
        % (
            number(message.type),
            number(message.to),
            number(message.sender),
            number(message.term),
            number(message.log_term),
            varint(message.index),
        )
    ]
    if message.entries:
        entries = message.entries
        for entry in _encode_entries(entries) if encoder is None else encoder.encode(entries):
            parts += (b"\x3a", number(len(entry)), entry)
    parts += (b"\x40", varint(message.commit))
    if message.snapshot is None:
        parts.append(_NO_SNAPSHOT)
    else:
        snapshot = _encode_snapshot(message.snapshot)
        parts += (b"\x4a", varint(len(snapshot)), snapshot)
    parts += (b"\x50\x01\x58" if message.reject else b"\x50\x00\x58", varint(message.reject_hint))
    if message.context:
        parts += (b"\x62", number(len(message.context)), message.context)
    return b"".join(parts)


def _encode_snapshot(snapshot: Snapshot) -> bytes:
    index, term, conf_state = snapshot.meta
    encoded = raft_pb2.Snapshot(
        metadata=raft_pb2.SnapshotMetadata(
            conf_state=raft_pb2.ConfState(
                voters=conf_state.voters,
                learners=conf_state.learners,
                voters_outgoing=conf_state.voters_outgoing,
                learners_next=conf_state.learners_next,
                auto_leave=conf_state.auto_leave,
            ),
            index=index,
            term=term,
        )
    )
    if snapshot.data:
        encoded.data = snapshot.data
    return encoded.SerializeToString(deterministic=True)


# --- reading -----------------------------------------------------------------------------------------


def decode_message(data: bytes) -> Message:
    """Read one raftpb.Message, which is all of ``data``.

    Raises:
        UnknownTypeError: it is whole, but of no type that a member may send.
        DecodeError: it is not whole, or malformed.
    """
    try:
        decoded = _parse_message(data)
    except ProtobufDecodeError as error:
        raise DecodeError(f"no message of Raft's: {error}") from error
    kind = _TYPES.get(decoded.type)
    if kind is None or not decoded.HasField("type"):
        raise UnknownTypeError(f"a message of type {decoded.type}, or of one that is not known")
    return Message(
        kind,
        decoded.to,
        getattr(decoded, "from"),
        decoded.term,
        decoded.logTerm,
        decoded.index,
        [_entry(entry) for entry in decoded.entries] or (),
        decoded.commit,
        _snapshot(decoded.snapshot) if kind is MessageType.SNAPSHOT else None,
        decoded.reject,
        decoded.rejectHint,
        decoded.context,
    )


def decode_entry(data: bytes) -> Entry:
    """Read one raftpb.Entry, which is all of ``data``.

    Raises:
        DecodeError: it is not whole, or malformed.
    """
    try:
        return _entry(_parse_entry(data))
    except ProtobufDecodeError as error:
        raise DecodeError(f"no entry of Raft's: {error}") from error


def _entry(decoded: raft_pb2.Entry) -> Entry:
    kind = decoded.Type
    if kind:
        return Entry(decoded.Term, decoded.Index, decoded.Data, EntryType(kind))
    if not decoded.HasField("Type"):
        # The parser keeps a type that it does not know apart. Applied as an ordinary entry it would do damage.
        unknown = UnknownFieldSet(decoded)
        if any(unknown[each].field_number == raft_pb2.Entry.TYPE_FIELD_NUMBER for each in range(len(unknown))):
            raise DecodeError(f"entry {decoded.Index} is of a type that is not known")
    return _new(Entry, (decoded.Term, decoded.Index, decoded.Data, _NORMAL))


def _snapshot(decoded: raft_pb2.Snapshot) -> Snapshot:
    state = decoded.metadata.conf_state
    groups = (state.voters, state.learners, state.voters_outgoing, state.learners_next)
    voters, learners, voters_outgoing, learners_next = map(tuple, groups)
    conf_state = ConfState(voters, learners, voters_outgoing, learners_next, state.auto_leave)
    return Snapshot(SnapshotMeta(decoded.metadata.index, decoded.metadata.term, conf_state), decoded.data)
