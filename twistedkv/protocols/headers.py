"""HPACK: header blocks to fields and back. RFC 7541.

Decoding keeps the dynamic table that the peer's encoder fills. Encoding has none: our blocks are made of static indices
and plain literals only, so that equal headers are equal bytes on every connection and can be kept as constants.
Nothing here knows what a header means; limits bound what a block may unfold into.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from twistedkv.protocols.frames import DEFAULT_TABLE_BYTES, ErrorCode, ProtocolError
from twistedkv.protocols.huffman import decode_huffman

Field = tuple[bytes, bytes]  # name, value
Fields = tuple[Field, ...]

NO_TABLE: Final = b"\x20"  # a size update to 0: opens the first block after a peer has shrunk its table (RFC 7541 §4.2)

_FIELD_OVERHEAD_BYTES: Final = 32  # RFC 7541 §4.1
_MAX_INTEGER_SHIFT: Final = 21  # four continuation bytes at most: nothing on our wire is longer than 2^28

_NAMES_WITH_VALUES: Final = (
    ":authority= :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200 :status=204"
    " :status=206 :status=304 :status=400 :status=404 :status=500 accept-charset= accept-encoding=gzip,_deflate"
    " accept-language= accept-ranges= accept= access-control-allow-origin= age= allow= authorization= cache-control="
    " content-disposition= content-encoding= content-language= content-length= content-location= content-range="
    " content-type= cookie= date= etag= expect= expires= from= host= if-match= if-modified-since= if-none-match="
    " if-range= if-unmodified-since= last-modified= link= location= max-forwards= proxy-authenticate="
    " proxy-authorization= range= referer= refresh= retry-after= server= set-cookie= strict-transport-security="
    " transfer-encoding= user-agent= vary= via= www-authenticate="
)


def _static_fields() -> list[Field]:
    """RFC 7541 Appendix A: entry i of the table is element i - 1 here."""
    pairs = (text.partition("=") for text in _NAMES_WITH_VALUES.split())
    return [(name.encode(), value.replace("_", " ").encode()) for name, _, value in pairs]


def _size(field: Field) -> int:
    return len(field[0]) + len(field[1]) + _FIELD_OVERHEAD_BYTES


_STATIC_FIELDS: Final = _static_fields()
# Each entry with its size, which counts against the header list. There is no entry 0; the filler is never read.
_STATIC: Final = (((b"", b""), 0), *((field, _size(field)) for field in _STATIC_FIELDS))
_FIRST_DYNAMIC: Final = len(_STATIC)
_INDEX_OF_FIELD: Final = {field: index for index, field in enumerate(_STATIC_FIELDS, 1)}
_INDEX_OF_NAME: Final = {field[0]: index for index, field in reversed(list(enumerate(_STATIC_FIELDS, 1)))}
_SECRET: Final = frozenset({b"authorization", b"token"})  # sent never-indexed: RFC 7541 §7.1.3


def _broken(text: str) -> ProtocolError:
    return ProtocolError(ErrorCode.COMPRESSION_ERROR, text)


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """The integer whose prefix bits were all set, and where it ends. RFC 7541 §5.1."""
    value, shift = prefix, 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > _MAX_INTEGER_SHIFT:
            raise _broken("integer out of range")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """The string literal at ``at`` and where it ends. RFC 7541 §5.2."""
    length = block[at]
    coded = length & 0x80
    length &= 0x7F
    at += 1
    if length == 0x7F:
        length, at = _integer(block, at, 0x7F)
    end = at + length
    text = block[at:end]
    if len(text) != length:
        raise _broken("string longer than its block")
    return (decode_huffman(text) if coded else text), end


class HeaderDecoder:
    """The decoding half of HPACK on one connection.

    Args:
        max_list_bytes: the most that the fields of one block may add up to, by RFC 9113 §6.5.2.
        max_table_bytes: the SETTINGS_HEADER_TABLE_SIZE that we announced.
    """

    def __init__(self, max_list_bytes: int, max_table_bytes: int = DEFAULT_TABLE_BYTES) -> None:
        self.changes = 0  # grows with every change of the dynamic table: what was memoised before is void then
        self._max_list_bytes = max_list_bytes
        self._max_table_bytes = max_table_bytes
        self._limit_bytes = max_table_bytes  # what the peer's encoder last chose, never above max_table_bytes
        self._table: deque[tuple[Field, int]] = deque()  # newest first: index 62 is element 0
        self._table_bytes = 0

    def decode(self, block: bytes) -> Fields:
        """The fields of one whole header block.

        Raises:
            ProtocolError: COMPRESSION_ERROR where the block is no HPACK, ENHANCE_YOUR_CALM where its fields exceed
                the list limit. The table is of no further use then: the connection must end.
        """
        fields: list[Field] = []
        room = self._max_list_bytes
        table = self._table
        at, end, resizes = 0, len(block), 0
        try:
            while at < end:
                byte = block[at]
                at += 1
                if byte & 0x80:  # §6.1: an indexed field
                    index = byte & 0x7F
                    if index == 0x7F:
                        index, at = _integer(block, at, 0x7F)
                    elif not index:
                        raise _broken("index 0")
                    field, size = _STATIC[index] if index < _FIRST_DYNAMIC else table[index - _FIRST_DYNAMIC]
                elif byte & 0x60 == 0x20:  # §6.3: a table size update
                    size, at = (byte & 0x1F, at) if byte & 0x1F < 0x1F else _integer(block, at, 0x1F)
                    resizes += 1
                    if fields or resizes > 2:  # §4.2: at the beginning of a block, the least and the last size
                        raise _broken("misplaced table size update")
                    self._resize(size)
                    continue
                else:  # §6.2: a literal
                    mask = 0x3F if byte & 0x40 else 0x0F
                    index = byte & mask
                    if index == mask:
                        index, at = _integer(block, at, mask)
                    if index:
                        name = (_STATIC[index] if index < _FIRST_DYNAMIC else table[index - _FIRST_DYNAMIC])[0][0]
                    else:
                        name, at = _string(block, at)
                    value, at = _string(block, at)
                    field = (name, value)
                    size = len(name) + len(value) + _FIELD_OVERHEAD_BYTES
                    if byte & 0x40:
                        self._insert(field, size)
                room -= size
                if room < 0:
                    raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "header list too large")
                fields.append(field)
        except IndexError:
            raise _broken("block cut short, or index beyond the table") from None
        return tuple(fields)

    def _insert(self, field: Field, size: int) -> None:
        """Put a field in front of the table. RFC 7541 §4.4: one that is larger than the table only empties it."""
        self.changes += 1
        self._table_bytes += size
        self._table.appendleft((field, size))
        self._evict()

    def _resize(self, size: int) -> None:
        if size > self._max_table_bytes:
            raise _broken("table size above the one announced")
        self.changes += 1
        self._limit_bytes = size
        self._evict()

    def _evict(self) -> None:
        while self._table_bytes > self._limit_bytes:
            self._table_bytes -= self._table.pop()[1]


def _encoded_integer(value: int, prefix: int, first: int) -> bytes:
    """RFC 7541 §5.1; ``first`` holds the bits above the prefix."""
    if value < prefix:
        return bytes((first | value,))
    out = bytearray((first | prefix,))
    value -= prefix
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_block(fields: Iterable[Field]) -> bytes:
    """The header block of ``fields``: the same bytes for the same fields, whatever was sent before."""
    out = bytearray()
    for field in fields:
        index = _INDEX_OF_FIELD.get(field)
        if index is not None:
            out += _encoded_integer(index, 0x7F, 0x80)
            continue
        name, value = field
        index = _INDEX_OF_NAME.get(name, 0)
        out += _encoded_integer(index, 0x0F, 0x10 if name in _SECRET else 0x00)
        if not index:
            out += _encoded_integer(len(name), 0x7F, 0x00) + name
        out += _encoded_integer(len(value), 0x7F, 0x00) + value
    return bytes(out)
