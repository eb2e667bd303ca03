"""The head of a plain HTTP/1.1 request, read from bytes, and nothing that is not beyond doubt.

A head that two servers could read differently is refused, since that is how requests are smuggled past a proxy: bare
line ends, folded lines, blanks before a colon, more than one length, a length beside a transfer coding (RFC 9112 §2.2,
§5.1, §5.2, §6.3, §11.2). What is legal but not plain is left to twisted.web, by :attr:`RequestHead.plain`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_REMEMBERED_BYTES: Final = 2048  # of what is looked up rather than parsed when it comes again
HEAD_END: Final = b"\r\n\r\n"

_REQUEST_LINE: Final = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~\x80-\xff]+) HTTP/1\.([01])")
_FIELD: Final = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00\r\n]*?)[ \t]*")
_LENGTH: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_NOT_PLAIN: Final = frozenset(("transfer-encoding", "upgrade"))


class Refusal(Exception):
    """The request is answered with an error and the connection closed.

    Args:
        status: the HTTP status.
        text: all of the body, which repeats the status.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class RequestHead(NamedTuple):
    """Request line and header fields."""

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]  # in order, names in lower case
    length: int  # of the body
    close: bool  # the client wants no further answer
    expects: bool  # to be told that the body is wanted before it is sent
    plain: bool  # false: chunked, a protocol switch, HTTP/1.0 ... it is for twisted.web


class HeaderFields(NamedTuple):
    """The fields of a head, and what some of them say."""

    fields: tuple[tuple[str, str], ...]
    hosts: int
    length: int
    close: bool
    expects: bool
    plain: bool


def parse_head(block: bytes) -> RequestHead:
    """The head of which ``block`` is all up to the blank line.

    Raises:
        Refusal: it is malformed or ambiguous.
    """
    line, _, rest = block.partition(b"\r\n")
    request = _REQUEST_LINE.fullmatch(line.decode("latin-1"))
    if request is None:
        raise Refusal(400, "400 Bad Request")
    read = fields_of(rest)
    plain = read.plain and request[3] == "1"
    if read.hosts != 1 and (plain or read.hosts):
        many = "too many Host headers" if read.hosts else "missing required Host header"
        raise Refusal(400, f"400 Bad Request: {many}")
    if request[1] == "HEAD" and read.length:
        raise Refusal(400, "400 Bad Request")
    return RequestHead(request[1], request[2], read.fields, read.length, read.close, read.expects, plain)


def fields_of(block: bytes) -> HeaderFields:
    """The header fields that are all of ``block``, which are looked up if they came before.

    Raises:
        Refusal: they are malformed or ambiguous.
    """
    return _known_fields(block) if len(block) <= MAX_REMEMBERED_BYTES else _parse_fields(block)


def _parse_fields(block: bytes) -> HeaderFields:
    """The header fields that are all of ``block``.

    Raises:
        Refusal: they are malformed or ambiguous.
    """
    fields: list[tuple[str, str]] = []
    lengths: list[str] = []
    codings: list[str] = []
    hosts = 0
    close = expects = False
    plain = True
    for line in block.decode("latin-1").split("\r\n") if block else ():
        field = _FIELD.fullmatch(line)
        if field is None:
            raise Refusal(400, "400 Bad Request: invalid header name" if ":" in line else "400 Bad Request")
        name, value = field[1].lower(), field[2]
        fields.append((name, value))
        if name == "content-length":
            lengths.append(value)
        elif name == "host":
            hosts += 1
        elif name == "connection":
            option = value.lower()
            close = close or option == "close"
            plain = plain and option in ("close", "keep-alive")
        elif name in _NOT_PLAIN:
            plain = False
            if name == "transfer-encoding":
                codings.append(value.lower())
        elif name == "expect":
            expects = True
            if value.lower() != "100-continue":
                raise Refusal(417, "")
    if lengths and (len(lengths) > 1 or codings or not _LENGTH.fullmatch(lengths[0])):
        raise Refusal(400, "400 Bad Request")
    if codings and codings != ["chunked"]:
        raise Refusal(501, "Unsupported transfer encoding")
    return HeaderFields(tuple(fields), hosts, int(lengths[0]) if lengths else 0, close, expects, plain)


_known_fields = lru_cache(maxsize=256)(_parse_fields)  # a client sends the same ones with every request


def refuse_incomplete(data: bytes) -> None:
    """Refuse the beginning of a head that can no longer become a good one.

    Raises:
        Refusal: it is too long, or its lines do not end in CR LF.
    """
    if len(data) > MAX_HEAD_BYTES:
        raise Refusal(431, "431 Request Header Fields Too Large")
    if data.count(b"\n") != data.count(b"\r\n"):
        raise Refusal(400, "400 Bad Request")
