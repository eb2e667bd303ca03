"""JSON as Go's ``encoding/json`` writes it, and JSON of any depth read without recursion.

Go escapes ``<``, ``>`` and ``&`` as well as what has to be escaped, knows no ``\\b`` and ``\\f``, and writes everything
else as it is. Text here may hold surrogates, which stand for bytes that are no UTF-8 (PEP 383): those are escaped, so
that whoever knows of them reads the same bytes again, and Go reads U+FFFD, which it would have written for them itself.

Source: Go 1.16 ``encoding/json/encode.go``, ``time/format.go`` (RFC3339Nano); RFC 8259 §7.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

_NS: Final = 1_000_000_000  # in a second
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_SPECIAL: Final = re.compile('[\x00-\x1f"\\\\<>&\u2028\u2029\ud800-\udfff]')
_SHORT: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_SCAN: Final = json.JSONDecoder().raw_decode  # one value; nothing recurses for a string, a number or a word


def quoted(text: str) -> str:
    """``text`` as a JSON string."""
    return f'"{text}"' if is_plain(text) else f'"{_SPECIAL.sub(_escaped, text)}"'


def is_plain(text: str) -> bool:
    """Whether nothing in ``text`` has to be escaped.

    ASCII, as most of it is, is judged without a pattern, by whether what else has to escape it makes it longer.
    """
    if text.isascii():
        return len(orjson.dumps(text)) == len(text) + 2 and not ("<" in text or ">" in text or "&" in text)
    return not _SPECIAL.search(text)


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return _SHORT.get(character) or f"\\u{ord(character):04x}"


def timestamp(since_1970_ns: int) -> str:
    """A moment as RFC 3339 has it, in UTC, with as many digits of its nanoseconds as are needed."""
    seconds, ns = divmod(since_1970_ns, _NS)
    moment = (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]
    return f"{moment}.{ns:09d}".rstrip("0") + "Z" if ns else moment + "Z"


def loads(text: str) -> Any:
    """As :func:`json.loads`, for values of any depth.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        return _deep(text)


def _deep(text: str) -> Any:
    """The same with a stack of our own, some ten times slower."""
    skip = _SPACE.match
    containers: list[Any] = []  # those that are open, the innermost last
    names: list[str | None] = []  # under which each of them takes its next value; None for a list
    position = _after(skip(text, 0))
    while True:
        opening = text[position : position + 1]
        value: Any
        if opening in ("{", "["):
            value = {} if opening == "{" else []
            position = _after(skip(text, position + 1))
            if text[position : position + 1] != ("}" if opening == "{" else "]"):
                containers.append(value)
                names.append(None)
                if opening == "{":
                    names[-1], position = _name(text, position)
                continue
            position += 1
        else:
            value, position = _SCAN(text, position)
        while containers:  # the value is complete: it goes into what is open, which it may complete
            container, name = containers[-1], names[-1]
            if name is None:
                container.append(value)
            else:
                container[name] = value
            position = _after(skip(text, position))
            following = text[position : position + 1]
            if following == ",":
                position = _after(skip(text, position + 1))
                if name is not None:
                    names[-1], position = _name(text, position)
                break
            if following != ("]" if name is None else "}"):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
            value = containers.pop()
            names.pop()
            position += 1
        else:
            position = _after(skip(text, position))
            if position != len(text):
                raise json.JSONDecodeError("Extra data", text, position)
            return value


def _name(text: str, position: int) -> tuple[str, int]:
    """The name of a member at ``position``, and where its value begins."""
    if text[position : position + 1] != '"':
        raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, position)
    name, position = _SCAN(text, position)
    position = _after(_SPACE.match(text, position))
    if text[position : position + 1] != ":":
        raise json.JSONDecodeError("Expecting ':' delimiter", text, position)
    return name, _after(_SPACE.match(text, position + 1))


def _after(match: re.Match[str] | None) -> int:
    assert match is not None  # it matches nothing at all, too
    return match.end()
