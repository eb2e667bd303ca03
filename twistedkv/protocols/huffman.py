"""The Huffman code of HPACK: strings out of it. RFC 7541 §5.2, Appendix B.

The code is canonical: the lengths alone determine it. Decoding walks the code tree a byte at a time: for every inner
node there is a row of 256 steps, each giving the symbols that the byte completes and the node where it ends. Rows are
made when first needed. We never encode: our blocks are constant, and plain text is cheaper for both ends to read.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from twistedkv.protocols.frames import ErrorCode, ProtocolError

# Code length of symbols 0..255 and EOS (256), one letter each: "a" is 5 bits, "z" is 30. Source: RFC 7541 Appendix B.
_LENGTHS: Final = (
    "isxxxxxxxtzxxzxxxxxxxxzxxxxxxxxxbffhibdgffdgdbbbaaabbbbbbbcdkbhfibccccccccccccccccccccccdcdioijb"
    "kabababbbaccbbbabcbaabccccckgjixprpprrrsrssssststtrstssssqrsrsstrqprrssqsrrtqrssqqrqsrssprrrsrrs"
    "vvporsruvvvwwvtuoqvwwvwtqqvvxwwwptpqrqqsrruuttvsvwvvwwwwwxwwwwwvz"
)
_EOS: Final = 256
_LEAF: Final = 1 << 16  # a child at or above this is the symbol child - _LEAF
_MEMO_STRINGS: Final = 1024
_MEMO_BYTES: Final = 64  # longer strings are decoded anew, so that the memo stays small

_Step = tuple[int, bytes] | None  # the node after a byte and the symbols it completed; None where it meets EOS


def _tree() -> list[list[int]]:
    """The code tree as nodes of two children, the root first."""
    lengths = [ord(letter) - ord("a") + 5 for letter in _LENGTHS]
    nodes = [[0, 0]]
    code, length = 0, 0
    for symbol in sorted(range(_EOS + 1), key=lambda symbol: (lengths[symbol], symbol)):
        code <<= lengths[symbol] - length
        length = lengths[symbol]
        at = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[at][bit]:
                nodes[at][bit] = len(nodes)
                nodes.append([0, 0])
            at = nodes[at][bit]
        nodes[at][code & 1] = _LEAF + symbol
        code += 1
    return nodes


_NODES: Final = _tree()


def _padding_nodes() -> frozenset[int]:
    """Where a string may end: at the root, or up to 7 ones below it. RFC 7541 §5.2: padding is the start of EOS."""
    at, found = 0, {0}
    for _ in range(7):
        at = _NODES[at][1]
        found.add(at)
    return frozenset(found)


_ENDS: Final = _padding_nodes()


class _Rows(dict[int, tuple[_Step, ...]]):
    """What each of the 256 bytes does at a node, by node."""

    def __missing__(self, node: int) -> tuple[_Step, ...]:
        row = self[node] = tuple(_step(node, byte) for byte in range(256))
        return row


def _step(node: int, byte: int) -> _Step:
    symbols = bytearray()
    for shift in range(7, -1, -1):
        node = _NODES[node][byte >> shift & 1]
        if node >= _LEAF:
            if node - _LEAF == _EOS:
                return None
            symbols.append(node - _LEAF)
            node = 0
    return node, bytes(symbols)


_ROWS: Final = _Rows()


def _decode(coded: bytes) -> bytes:
    at = 0
    parts = []
    for byte in coded:
        step = _ROWS[at][byte]
        if step is None:
            raise ProtocolError(ErrorCode.COMPRESSION_ERROR, "EOS inside a Huffman string")
        at, symbols = step
        parts.append(symbols)
    if at not in _ENDS:
        raise ProtocolError(ErrorCode.COMPRESSION_ERROR, "Huffman padding is not the start of EOS")
    return b"".join(parts)


_decode_memoised = lru_cache(_MEMO_STRINGS)(_decode)


def decode_huffman(coded: bytes) -> bytes:
    """The string that ``coded`` stands for; at most 8/5 of its length.

    Raises:
        ProtocolError: it holds EOS or is not padded as RFC 7541 §5.2 demands.
    """
    return _decode_memoised(coded) if len(coded) <= _MEMO_BYTES else _decode(coded)
