"""JSON as Go's ``encoding/json`` reads it: the same bytes accepted, and the same words for the same mistakes.

etcd's gateway is built on Go 1.16, and a client sees the texts of its decoder in the answer to a bad body. This is the
slow and exact reader behind :mod:`twistedkv.protocols.jsonpb`, used only where the fast one gives up. It leaves out
what no gateway message needs: floating point, and matching of names without regard to case.

Sources: Go 1.16 ``encoding/json/scanner.go``, ``decode.go`` and ``stream.go``; ``encoding/base64/base64.go``;
``strconv/quote.go``.
"""

from __future__ import annotations

import binascii
import codecs
import re
from typing import Final, NoReturn, TypeAlias

Node: TypeAlias = "dict[str, Node] | list[Node] | bytes"
"""A parsed value. A scalar stays the token that it came as, a string with its quotes."""

MAX_DEPTH: Final = 10_000  # arrays and objects open at once
UNEXPECTED_EOF: Final = "unexpected EOF"  # a stream ended within a value
UNEXPECTED_END: Final = "unexpected end of JSON input"  # a whole text did

_SPACE: Final = re.compile(rb"[ \t\r\n]*")
# Of a string, so many pieces at a time: the engine remembers each. Possessive, it would not, but up to Python 3.11.4 it
# then takes half an escape for a whole one (https://github.com/python/cpython/issues/106052).
_STRING_PIECES: Final = re.compile(rb'(?:[^"\\\x00-\x1f]+|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})){1,500}')
_INTEGER: Final = re.compile(rb"-?(?:0|[1-9][0-9]*)")
_DIGITS: Final = re.compile(rb"[0-9]+")
_ESCAPE: Final = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_BASE64: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
_LITERALS: Final = {ord("t"): b"true", ord("f"): b"false", ord("n"): b"null"}
_KINDS: Final = {ord('"'): "string", ord("t"): "bool", ord("f"): "bool", ord("n"): "null"}
_SHORT_ESCAPES: Final = {
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
}  # of JSON; the rest stand for themselves
_QUOTED: Final = {
    "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", '"': '\\"', "\\": "\\\\",
}  # fmt: skip

_REPLACE_EACH_BYTE: Final = "twistedkv-replace-each-byte"


def _replace_one_byte(error: UnicodeError) -> tuple[str, int]:
    """Go puts U+FFFD for every single byte that is not UTF-8; Python's ``replace`` puts one for a broken sequence."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd", error.start + 1


codecs.register_error(_REPLACE_EACH_BYTE, _replace_one_byte)


class JSONError(ValueError):
    """The input is not what it should be; the text is Go's."""


def scan(data: bytes, start: int = 0) -> tuple[Node, int] | None:
    """The next value of a stream and where it ends, or ``None`` if only white space is left (Go's ``io.EOF``).

    What follows the value is not looked at, as Go's ``Decoder`` does not.

    Raises:
        JSONError: no JSON value is there.
    """
    position = _skip_space(data, start)
    if position == len(data):
        return None
    return _Scanner(data, UNEXPECTED_EOF).value(position)


def scan_whole(data: bytes) -> Node:
    """The one value that is all of ``data``, as Go's ``json.Unmarshal`` wants it.

    Raises:
        JSONError: ``data`` is something else.
    """
    data += b" "  # so Go's scanner ends a text, and names that blank where a token is cut off
    scanner = _Scanner(data, UNEXPECTED_END)
    node, end = scanner.value(_skip_space(data, 0))
    end = _skip_space(data, end)
    if end < len(data):
        scanner.fail(end, "after top-level value")
    return node


def kind(node: Node) -> str:
    """What Go calls the kind of ``node`` in its type errors."""
    if isinstance(node, dict):
        return "object"
    if isinstance(node, list):
        return "array"
    return _KINDS.get(node[0], "number")


def mismatch(node: Node, go_type: str, *, with_number: bool = False) -> JSONError:
    """The error for ``node`` where ``go_type`` is wanted.

    Args:
        with_number: the number belongs into the text, as it does where a number is wanted but not this one.
    """
    what = kind(node)
    if with_number and what == "number" and isinstance(node, bytes):
        what = f"number {node.decode('ascii')}"
    return JSONError(f"json: cannot unmarshal {what} into Go value of type {go_type}")


def unquote(token: bytes) -> str:
    """The text of a string token. Bytes that are not UTF-8, and surrogates without a partner, become U+FFFD."""
    text = token[1:-1].decode("utf-8", _REPLACE_EACH_BYTE)
    if "\\" not in text:
        return text
    parts: list[str] = []
    position = 0
    while match := _ESCAPE.search(text, position):
        parts.append(text[position : match.start()])
        position = match.end()
        if match[1] is None:
            parts.append(_SHORT_ESCAPES.get(match[2], match[2]))
            continue
        code = int(match[1], 16)
        if 0xD800 <= code < 0xE000:
            low = _ESCAPE.match(text, position)
            low_code = int(low[1], 16) if low and low[1] else 0
            if code < 0xDC00 and low and 0xDC00 <= low_code < 0xE000:
                code = 0x10000 + ((code - 0xD800) << 10) + (low_code - 0xDC00)
                position = low.end()
            else:
                code = 0xFFFD
        parts.append(chr(code))
    parts.append(text[position:])
    return "".join(parts)


def decode_base64(text: str) -> bytes:
    """Standard base64 with its padding; line ends within it are skipped.

    Raises:
        JSONError: with the offset at which Go's decoder stops.
    """
    data = text.encode("utf-8")
    group = 0  # characters of the current four
    position = 0
    while position < len(data):
        byte = data[position]
        position += 1
        if byte in b"\r\n":
            continue
        if byte in _BASE64:
            group = (group + 1) % 4
            continue
        if byte != ord("=") or group < 2:
            raise _corrupt(position - 1)
        if group == 2:  # a second one must follow
            position = _skip_line_ends(data, position)
            if position == len(data):
                raise _corrupt(position)
            if data[position] != ord("="):
                raise _corrupt(position - 1)
            position += 1
        position = _skip_line_ends(data, position)
        if position < len(data):
            raise _corrupt(position)
        group = 0
    if group:
        raise _corrupt(position - group)
    return binascii.a2b_base64(data)


def quote(data: bytes) -> str:
    """``data`` as Go's ``%q`` prints a string."""
    return '"' + "".join(map(_quote_one, data.decode("utf-8", "surrogateescape"))) + '"'


def _quote_one(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if character in _QUOTED:
        return _QUOTED[character]
    if character.isprintable():
        return character
    if code < 0x20:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _quote_in_error(byte: int) -> str:
    """A byte as the scanner's errors name it: taken as a code point, in single quotes."""
    match chr(byte):
        case "'":
            return "'\\''"
        case '"':
            return "'\"'"
        case character:
            return f"'{_quote_one(character)}'"


def _corrupt(offset: int) -> JSONError:
    return JSONError(f"illegal base64 data at input byte {offset}")


def _skip_line_ends(data: bytes, position: int) -> int:
    while position < len(data) and data[position] in b"\r\n":
        position += 1
    return position


def _skip_space(data: bytes, position: int) -> int:
    match = _SPACE.match(data, position)
    return match.end() if match else position


class _Scanner:
    """Reads one value. It does not recurse: the depth of the input is the input's choice.

    Args:
        data: what to read from.
        end_text: the error if ``data`` ends within the value.
    """

    def __init__(self, data: bytes, end_text: str) -> None:
        self._data = data
        self._end_text = end_text

    def fail(self, position: int, context: str) -> NoReturn:
        """Say what is wrong with the byte at ``position``, or that there is none.

        Raises:
            JSONError: always.
        """
        if position >= len(self._data):
            raise JSONError(self._end_text)
        raise JSONError(f"invalid character {_quote_in_error(self._data[position])} {context}")

    def value(self, position: int) -> tuple[Node, int]:
        """The value that begins at ``position``, and its end."""
        data = self._data
        open_: list[dict[str, Node] | list[Node]] = []
        names: list[str] = []  # the name whose value is awaited, of each open object
        node: Node
        while True:
            byte = self._byte(position)
            if byte in b"{[":
                if len(open_) == MAX_DEPTH:
                    self.fail(position, "exceeded max depth")
                closing = ord("}") if byte == ord("{") else ord("]")
                inside = _skip_space(data, position + 1)
                node = {} if byte == ord("{") else []
                if self._byte(inside) != closing:
                    open_.append(node)
                    position = inside
                    if isinstance(node, dict):
                        position = self._name(inside, names)
                    continue
                position = inside + 1
            else:
                end = self._scalar_end(position)
                node, position = data[position:end], end
            while open_:  # a value has ended: file it, and close what it closes
                parent = open_[-1]
                position = _skip_space(data, position)
                byte = self._byte(position)
                if isinstance(parent, dict):
                    parent[names[-1]] = node  # the last of equal names wins
                    if byte == ord(","):
                        names.pop()
                        position = self._name(_skip_space(data, position + 1), names)
                        break
                    if byte != ord("}"):
                        self.fail(position, "after object key:value pair")
                    names.pop()
                else:
                    parent.append(node)
                    if byte == ord(","):
                        position = _skip_space(data, position + 1)
                        break
                    if byte != ord("]"):
                        self.fail(position, "after array element")
                node = open_.pop()
                position += 1
            else:
                return node, position

    def _byte(self, position: int) -> int:
        """The byte at ``position``, of which there must be one."""
        if position >= len(self._data):
            raise JSONError(self._end_text)
        return self._data[position]

    def _name(self, position: int, names: list[str]) -> int:
        """Read a member's name and its colon; where the value begins."""
        if self._byte(position) != ord('"'):
            self.fail(position, "looking for beginning of object key string")
        end = self._string_end(position)
        names.append(unquote(self._data[position:end]))
        end = _skip_space(self._data, end)
        if self._byte(end) != ord(":"):
            self.fail(end, "after object key")
        return _skip_space(self._data, end + 1)

    def _scalar_end(self, position: int) -> int:
        byte = self._data[position]
        if byte == ord('"'):
            return self._string_end(position)
        if byte == ord("-") or ord("0") <= byte <= ord("9"):
            return self._number_end(position)
        literal = _LITERALS.get(byte)
        if literal is None:
            self.fail(position, "looking for beginning of value")
        for offset, expected in enumerate(literal):
            if self._byte(position + offset) != expected:
                self.fail(position + offset, f"in literal {literal.decode()} (expecting '{chr(expected)}')")
        return position + len(literal)

    def _string_end(self, position: int) -> int:
        end = position + 1
        while (pieces := _STRING_PIECES.match(self._data, end)) is not None:
            end = pieces.end()
        byte = self._byte(end)
        if byte == ord('"'):
            return end + 1
        if byte != ord("\\"):
            self.fail(end, "in string literal")
        if self._byte(end + 1) != ord("u"):
            self.fail(end + 1, "in string escape code")
        end += 2
        while chr(self._byte(end)) in "0123456789abcdefABCDEF":
            end += 1
        self.fail(end, "in \\u hexadecimal character escape")

    def _number_end(self, position: int) -> int:
        integer = _INTEGER.match(self._data, position)
        if integer is None:
            self.fail(position + 1, "in numeric literal")
        end = integer.end()
        if self._data[end : end + 1] == b".":
            end = self._digits_end(end + 1, "after decimal point in numeric literal")
        if self._data[end : end + 1] in (b"e", b"E"):
            end += 1
            if self._data[end : end + 1] in (b"+", b"-"):
                end += 1
            end = self._digits_end(end, "in exponent of numeric literal")
        return end

    def _digits_end(self, position: int, context: str) -> int:
        digits = _DIGITS.match(self._data, position)
        if digits is None:
            self.fail(position, context)
        return digits.end()
