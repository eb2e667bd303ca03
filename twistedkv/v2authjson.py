"""JSON as Go's ``encoding/json`` reads it into structs and writes it, for what the v2 API keeps of users and roles.

Reading is as lenient as Go's: names in any case, fields that nobody knows, ``null`` for nothing, the last of several
values of one name, anything behind the first value, U+FFFD for what is no UTF-8. A value of the wrong kind is refused.
Writing has Go's escapes, those for HTML included.

Left out: numbers, which no field takes, and nesting of more than about a thousand levels, which is refused (Go takes
ten thousand).

Source: Go 1.16 ``encoding/json/{decode,encode}.go``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final, NoReturn, TypeAlias

from twistedkv.gojson import quoted

Texts: TypeAlias = "tuple[str, ...] | None"
"""Go's ``[]string``: None is its ``nil``, which is not the same as none of them."""

Parsed: TypeAlias = "tuple[tuple[str, Parsed], ...] | list[Parsed] | str | int | None"
"""A value; an object is a tuple of names and values, a number or a truth value only some int."""

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_NO_CHARACTER: Final = "\\ufffd"


def go_string(text: str) -> str:
    """``text`` as a JSON string with its quotes. A surrogate, which stands for a byte that is no UTF-8, is U+FFFD."""
    return f'"{_NO_CHARACTER.join(quoted(part)[1:-1] for part in _SURROGATE.split(text))}"'


def go_strings(texts: Texts) -> str:
    """``texts`` as a JSON array, or ``null``."""
    return "null" if texts is None else f"[{','.join(map(go_string, texts))}]"


def parsed(data: bytes) -> Parsed:
    """The first value in ``data``.

    Raises:
        ValueError: there is none.
    """
    text = _sound(data.decode("utf-8", "surrogateescape"))
    space = _SPACE.match(text)
    try:
        value: Parsed = _DECODER.raw_decode(text, space.end() if space else 0)[0]
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error
    return value


def fields(value: Parsed, names: tuple[str, ...]) -> Iterator[tuple[str, Parsed]]:
    """The fields of an object that have one of ``names``, which are lower case, in the order in which they come.

    Raises:
        ValueError: it is no object.
    """
    if value is None:
        return
    if not isinstance(value, tuple):
        raise ValueError(f"{type(value).__name__} in place of an object")
    for key, inner in value:
        folded = key.casefold()
        if len(folded) == len(key) and folded in names:  # Go folds letter by letter
            yield folded, inner


def text(value: Parsed, before: str) -> str:
    """A string; ``before``, what the field had before, if nothing is given.

    Raises:
        ValueError: it is no string.
    """
    if value is None:
        return before
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} in place of a string")
    return _sound(value)


def texts(value: Parsed) -> Texts:
    """An array of strings.

    Raises:
        ValueError: it is none.
    """
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError(f"{type(value).__name__} in place of an array")
    return tuple(text(each, "") for each in value)


def _sound(text: str) -> str:
    return _SURROGATE.sub("\ufffd", text)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _some_number(digits: str) -> int:
    return 0


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=tuple, parse_float=_some_number, parse_int=_some_number, parse_constant=_no_constant
)
