"""Forms as Go's ``net/http`` reads them from the query and the body of a request, with its words for what is wrong.

Text is UTF-8 whose wrong bytes stand as surrogates (PEP 383). Of several values of one name the first counts, those in
the body before those in the query. Bodies that are no ``application/x-www-form-urlencoded`` are passed over; etcd takes
nothing from multipart forms. A semicolon separates like an ampersand, as it does up to Go 1.16, which made etcd 3.5.1.

A form of ten megabytes may have millions of names. Only those that are asked for are looked for, by expressions and
codecs that run in C.

Left out: RFC 2231 continuations of media type parameters are checked like others, and not put together.

Sources: Go 1.16 ``net/http/request.go`` (ParseForm, parsePostForm), ``net/url/url.go`` (parseQuery, unescape),
``mime/mediatype.go``, ``strconv/{atob,atoi}.go``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from twistedkv.protocols.gojson import quote

FORM_TYPE: Final = "application/x-www-form-urlencoded"
BODY_METHODS: Final = frozenset(("PATCH", "POST", "PUT"))  # whose bodies may be forms
MAX_BODY_BYTES: Final = 10 << 20  # of a form
MAX_UINT: Final = (1 << 64) - 1

_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPED_NAME: Final = re.compile(rb"[&;][^=&;%]*%")
_DIGITS: Final = re.compile(r"0*([0-9]{1,20})", re.ASCII)
_BOOLS: Final = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}

_TOKEN: Final = r"[!#$%&'*+\-.0-9A-Z^_`a-z{|}~]+"
_MEDIA_TYPE: Final = re.compile(rf"({_TOKEN})?(/)?({_TOKEN})?(.*)", re.DOTALL)
_ESCAPABLE: Final = r'[()<>@,;:\\"/\[\]?=]'
_QUOTED: Final = rf'"(?:\\{_ESCAPABLE}|\\(?!{_ESCAPABLE})|[^"\\\r\n])*"'
_PARAMETER: Final = re.compile(rf"\s*;\s*({_TOKEN})\s*=\s*(?:{_TOKEN}|{_QUOTED})")

Form = dict[str, str]
"""The first value of each name."""


class FormError(ValueError):
    """It is no form; the text is Go's."""


class FormReader:
    """Reads the values of some names.

    Args:
        names: of letters.
    """

    def __init__(self, names: Iterable[str]) -> None:
        spelled = sorted(names)
        self._names = {name.encode("ascii"): name for name in spelled}
        self._pair = re.compile(rf"[&;]({'|'.join(spelled)})(?:=([^&;]*))?(?![^&;])".encode("ascii"))
        codes = sorted({ord(letter) for name in spelled for letter in name})
        self._escapes = [(f"%{code:{case}}".encode("ascii"), bytes((code,))) for code in codes for case in "xX"]

    def read(self, method: str, content_type: str, body: bytes, query: bytes) -> Form:
        """The values in a request.

        Raises:
            FormError: for whatever is wrong in all of body and query, not only with these names.
        """
        form = self.body(body) if method in BODY_METHODS and is_form(content_type) else {}
        return self.pairs(query) | form if query else form

    def body(self, body: bytes) -> Form:
        """The values in a body that is a form.

        Raises:
            FormError: it is too long, or there is a malformed escape anywhere in it.
        """
        if len(body) > MAX_BODY_BYTES:
            raise FormError("http: POST too large")
        return self.pairs(body)

    def pairs(self, data: bytes) -> Form:
        """The values in a query string.

        Raises:
            FormError: there is a malformed escape anywhere in it.
        """
        if b"&" not in data and b"%" not in data and b";" not in data:  # one plain pair, as in most requests
            raw, _, value = data.partition(b"=")
            only = self._names.get(raw)
            return {} if only is None else {only: _unescape(value)}
        data = b"&" + data
        if b"%" in data:
            bad = _BAD_ESCAPE.search(data)
            if bad is not None:
                raise FormError(f"invalid URL escape {quote(_cut(data, bad.start()))}")
            if _ESCAPED_NAME.search(data):
                for escape, letter in self._escapes:
                    data = data.replace(escape, letter)
        form: Form = {}
        for pair in self._pair.finditer(data):
            name = self._names[pair[1]]
            if name not in form:
                form[name] = _unescape(pair[2] or b"")
        return form


def plain_value(body: bytes) -> bytes | None:
    """The value in a form that has nothing else and stands for itself, as that of most writes; None of all others."""
    if (
        not body.startswith(b"value=")
        or b"&" in body
        or b"%" in body
        or b"+" in body
        or b";" in body
        or len(body) > MAX_BODY_BYTES
    ):
        return None
    return body[6:]


def is_form(content_type: str) -> bool:
    """Whether a body of this type is a form that is read. Without a type it is not.

    Raises:
        FormError: that is no media type, or its parameters are malformed.
    """
    if content_type == FORM_TYPE:
        return True
    return bool(content_type) and _media_type(content_type) == FORM_TYPE


def _media_type(text: str) -> str:
    head, _, _ = text.partition(";")
    media_type = head.strip().lower()
    parts = _MEDIA_TYPE.fullmatch(media_type)
    kind, slash, subtype, rest = parts.groups() if parts else (None, None, None, "")
    if kind is None:
        raise FormError("mime: no media type")
    if slash is None and rest:
        raise FormError("mime: expected slash after first token")
    if slash is not None and subtype is None:
        raise FormError("mime: expected token after slash")
    if rest:
        raise FormError("mime: unexpected content after media subtype")
    names: set[str] = set()
    position = len(head)
    while text[position:].strip() not in ("", ";"):
        parameter = _PARAMETER.match(text, position)
        if parameter is None:
            raise FormError("mime: invalid media parameter")
        name = parameter[1].lower()
        if name in names:
            raise FormError("mime: duplicate parameter name")
        names.add(name)
        position = parameter.end()
    return media_type


def _cut(data: bytes, start: int) -> bytes:
    """What Go shows of a bad escape: three bytes, or as many as its name or value has left."""
    begin = max(data.rfind(b"&", 0, start), data.rfind(b";", 0, start)) + 1
    shown = data[start : start + 3]
    ends = b"&;" if b"=" in data[begin:start] else b"&;="
    for position, byte in enumerate(shown):
        if byte in ends:
            return shown[:position]
    return shown


def _unescape(data: bytes) -> str:
    """``data``, whose escapes are well formed, as text."""
    if b"+" in data:
        data = data.replace(b"+", b" ")
    if b"%" in data:  # as escapes of Python's, which are undone in C
        data = data.replace(b"\\", rb"\\").replace(b"%", rb"\x").decode("unicode_escape").encode("latin-1")
    return data.decode("utf-8", "surrogateescape")


def parse_bool(text: str) -> bool:
    """``text`` as one of Go's spellings of a truth value.

    Raises:
        ValueError: it is none.
    """
    value = _BOOLS.get(text)
    if value is None:
        raise ValueError("invalid syntax")
    return value


def parse_uint(text: str) -> int:
    """``text`` as a number of 64 bits, which is digits and nothing else.

    Raises:
        ValueError: it is none, or too large.
    """
    digits = _DIGITS.fullmatch(text)
    if digits is None:
        raise ValueError("invalid syntax")
    value = int(digits[1])
    if value > MAX_UINT:
        raise ValueError("value out of range")
    return value
