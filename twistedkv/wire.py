"""The few protobuf encodings that are written by hand, because they are made for every request.

Everything else goes through the generated messages. Source of the format: protobuf's encoding guide (base-128
varints, ``field << 3 | wire type`` tags).
"""

from __future__ import annotations

from functools import lru_cache

_U64 = (1 << 64) - 1
_SHORT_BYTES = 1024  # fields up to this length have their beginnings made beforehand: most key-value pairs


def varint(number: int) -> bytes:
    """``number`` as a varint; a negative one as 64-bit two's complement, ten bytes long."""
    if 0 <= number < _SHORT_BYTES:
        return _SHORT[number]
    return _encode(number & _U64)


def _encode(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def varint_of_id(number: int) -> bytes:
    """As :func:`varint`, for unsigned numbers that come one after the other: all but the last seven bits are known."""
    return _LOW[number & 0x7F] + _high(number >> 7) if number > 0x7F else varint(number)


_high = lru_cache(maxsize=64)(_encode)
_LOW = tuple(bytes((number | 0x80,)) for number in range(0x80))
_SHORT = tuple(map(_encode, range(_SHORT_BYTES)))
_PAIR_HEADS = tuple(b"\x12" + length for length in _SHORT)  # field 2 of a RangeResponse, by the pair's length


def prefixed(tag: bytes, body: bytes) -> bytes:
    """A length-delimited field: ``tag``, the length of ``body``, ``body``."""
    return tag + varint(len(body)) + body


class HeaderEncoder:
    """Makes ``etcdserverpb.ResponseHeader`` as field 1 of a response, where nearly every response carries it.

    Args:
        cluster_id: of this cluster.
        member_id: of the answering member.
    """

    def __init__(self, cluster_id: int, member_id: int) -> None:
        self.cluster_id = cluster_id
        self.member_id = member_id
        ids = ((b"\x08", cluster_id), (b"\x10", member_id))
        self._ids = b"".join(tag + varint(number) for tag, number in ids if number)
        self._last: tuple[int, int, bytes] = (-1, -1, b"")

    def field(self, revision: int, term: int) -> bytes:
        """The whole field: tag 0x0a, length, header. What is zero is left out, as proto3 does."""
        last_revision, last_term, encoded = self._last
        if revision == last_revision and term == last_term:
            return encoded
        body = self._ids
        if revision:
            body += b"\x18" + varint(revision)
        if term:
            body += b"\x20" + varint(term)
        encoded = b"\n" + varint(len(body)) + body
        self._last = (revision, term, encoded)
        return encoded


def revision_header(revision: int) -> bytes:
    """The response header inside a transaction's answers, which carries the revision alone, as field 1."""
    body = b"\x18" + varint(revision) if revision else b""
    return b"\n" + varint(len(body)) + body


def range_body(pairs: list[bytes], count: int, more: bool) -> bytes:
    """``etcdserverpb.RangeResponse`` without its header: fields 2, 3 and 4."""
    if not pairs:
        return b"\x20" + varint(count) if count else b""
    parts: list[bytes] = []
    for pair in pairs:
        size = len(pair)
        parts += (_PAIR_HEADS[size] if size < _SHORT_BYTES else b"\x12" + varint(size), pair)
    if more:
        parts.append(b"\x18\x01")
    parts += (b"\x20", varint(count))
    return b"".join(parts)


def put_body(previous: bytes | None) -> bytes:
    """``etcdserverpb.PutResponse`` without its header: field 2."""
    return b"" if previous is None else prefixed(b"\x12", previous)


def delete_body(deleted: int, previous: list[bytes]) -> bytes:
    """``etcdserverpb.DeleteRangeResponse`` without its header: fields 2 and 3."""
    if not deleted:
        return b""
    return b"".join((b"\x10", varint(deleted), *(prefixed(b"\x1a", pair) for pair in previous)))


def txn_body(succeeded: bool, responses: list[bytes]) -> bytes:
    """``etcdserverpb.TxnResponse`` without its header: fields 2 and 3.

    Args:
        responses: encoded ``ResponseOp`` messages.
    """
    parts = [b"\x10\x01"] if succeeded else []
    parts += (prefixed(b"\x1a", response) for response in responses)
    return b"".join(parts)
