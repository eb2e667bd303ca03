"""Forms as Go reads them: where values come from, what is malformed, and that a large one takes no time."""

from __future__ import annotations

import time
from string import hexdigits
from urllib.parse import quote_from_bytes

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.protocols.goform import (
    FORM_TYPE,
    MAX_BODY_BYTES,
    FormError,
    FormReader,
    is_form,
    parse_bool,
    parse_uint,
    plain_value,
)

NAMES = ("value", "ttl", "dir")
FORM = FormReader(NAMES)


def by_the_book(data: bytes) -> dict[str, str]:
    """Go's ``parseQuery``, one pair after the other."""
    form: dict[str, str] = {}
    for pair in data.replace(b";", b"&").split(b"&"):
        parts = [unescaped(part) for part in pair.split(b"=", 1)]
        if parts[0] in NAMES:
            form.setdefault(parts[0], parts[1] if len(parts) > 1 else "")
    return form


def unescaped(data: bytes) -> str:
    """One name or value."""
    out = bytearray()
    position = 0
    while position < len(data):
        if data[position] == ord("%"):
            digits = data[position + 1 : position + 3].decode("latin-1")
            if len(digits) < 2 or not set(digits) <= set(hexdigits):
                raise ValueError("no escape")
            out.append(int(digits, 16))
            position += 3
        else:
            out.append(ord(" ") if data[position] == ord("+") else data[position])
            position += 1
    return bytes(out).decode("utf-8", "surrogateescape")


class PairsTests(SynchronousTestCase):
    def test_values_are_found_as_go_finds_them(self) -> None:
        """The first of a name counts, a name without "=" is empty, and a semicolon is an ampersand."""
        for data, expected in (
            (b"", {}),
            (b"value=bar", {"value": "bar"}),
            (b"value", {"value": ""}),
            (b"value=1&value=2", {"value": "1"}),
            (b"value&value=2", {"value": ""}),
            (b"value=1;ttl=2&&;dir", {"value": "1", "ttl": "2", "dir": ""}),
            (b"value=a=b", {"value": "a=b"}),
            (b"value=a+b%2Bc", {"value": "a b+c"}),
            (b"VALUE=1&values=2&xvalue=3&value1&=value", {}),
            (b"val%75e=1&%74%74%6C=2&d%69r=%C3%a9", {"value": "1", "ttl": "2", "dir": "\xe9"}),
            (b"val%55e=1&%2574tl=2", {}),
            (b"value=%ff\xfe", {"value": "\udcff\udcfe"}),
            (b"value=%5Cx41\\n\\%0A", {"value": "\\x41\\n\\\n"}),
            (b"value=1?ttl=2", {"value": "1?ttl=2"}),
            (b"value=a\r\nb", {"value": "a\r\nb"}),
        ):
            self.assertEqual(FORM.pairs(data), expected, data)

    def test_malformed_escapes_are_named_as_go_names_them(self) -> None:
        """Three bytes, or what is left of the name or the value; wherever it is, and the first one."""
        for data, shown in (
            (b"value=%zz", '"%zz"'),
            (b"%zz=1", '"%zz"'),
            (b"value=%", '"%"'),
            (b"value=%4", '"%4"'),
            (b"value=%4&ttl=1", '"%4"'),
            (b"value=%4;ttl=1", '"%4"'),
            (b"%=1", '"%"'),
            (b"x%4=1", '"%4"'),
            (b"x=%=1", '"%=1"'),
            (b"x=%4=1", '"%4="'),
            (b"x=%41&y=%yy&z=%zz", '"%yy"'),
            (b'x=%"\xff', '"%\\"\\xff"'),
        ):
            error = self.assertRaises(FormError, FORM.pairs, data)
            self.assertEqual(str(error), f"invalid URL escape {shown}")

    @given(
        st.lists(st.sampled_from((*b"&;=+\\xvalue=%41", b"value=", b"ttl", b"%2", b"&", b"%76", b"\xff")), max_size=30)
    )
    @settings(max_examples=300, deadline=None)
    def test_it_is_go_by_the_book(self, parts: list[int | bytes]) -> None:
        """Whatever comes is read as pair by pair, or refused for an escape that is none."""
        data = b"".join(bytes((part,)) if isinstance(part, int) else part for part in parts)
        try:
            form = FORM.pairs(data)
        except FormError:
            self.assertRaises(ValueError, by_the_book, data)
        else:
            self.assertEqual(form, by_the_book(data))

    @given(st.binary(max_size=60))
    @settings(max_examples=100, deadline=None)
    def test_any_value_comes_through(self, value: bytes) -> None:
        """Escaped by a client, it is the same bytes again."""
        form = FORM.pairs(b"ttl=1&value=" + quote_from_bytes(value, safe="").encode("ascii"))
        self.assertEqual(form["value"].encode("utf-8", "surrogateescape"), value)

    def test_large_forms_are_read_quickly(self) -> None:
        """Two megabytes, within a second by far: the member must not stand still for one client's form."""
        for unit in (b"a&", b"%41", b"%41&", b"a%41", b"value&"):
            data = b"value=" + unit * ((2 << 20) // len(unit))
            began_s = time.process_time()
            FORM.pairs(data)
            self.assertLess(time.process_time() - began_s, 1.0, unit)


class PlainValueTests(SynchronousTestCase):
    """The form of most writes, which is read at a glance."""

    def test_what_is_plain(self) -> None:
        """A value that stands for itself, whatever bytes it has, and the empty one."""
        for value in (b"bar", b"", b"a=b", b"value=", b"\xff\x00\r\n", "\xe9\u20ac".encode(), b" ?#/\\\"'"):
            self.assertEqual(plain_value(b"value=" + value), value)

    def test_what_is_not(self) -> None:
        """Whatever has another name, a second one, or something to be decoded, and what is no form at all."""
        for body in (
            *(b"", b"value", b"Value=1", b"valu=1", b"values=1", b" value=1", b"ttl=5", b"=value=1", b"val%75e=1"),
            *(b"value=1&ttl=5", b"value=1;ttl=5", b"value=1&", b"value=&", b";value=1", b"&value=1", b"ttl=5&value=1"),
            *(b"value=%41", b"value=%", b"value=%zz", b"value=a+b", b"value=+"),
        ):
            self.assertIsNone(plain_value(body), body)

    @given(
        st.sampled_from((b"value=", b"value=", b"value", b"ttl=", b"")),
        st.lists(st.sampled_from((b"&", b"%", b"+", b";", b"=", b"%41", b"value=", b"\xc3\xa9", b"x")) | st.binary()),
    )
    @settings(max_examples=60, deadline=None)
    def test_it_is_what_a_reader_of_forms_finds(self, start: bytes, parts: list[bytes]) -> None:
        """A plain value is the only one in its form."""
        body = start + b"".join(parts)
        value = plain_value(body)
        if value is not None:
            self.assertEqual(FORM.body(body), {"value": value.decode("utf-8", "surrogateescape")})

    def test_a_body_may_have_ten_megabytes(self) -> None:
        """One byte more is left to who refuses it."""
        value = b"x" * (MAX_BODY_BYTES - len(b"value="))
        self.assertEqual(plain_value(b"value=" + value), value)
        self.assertIsNone(plain_value(b"value=x" + value))


class ReadTests(SynchronousTestCase):
    def test_the_body_counts_before_the_query(self) -> None:
        """Name by name."""
        form = FORM.read("PUT", FORM_TYPE, b"value=body&ttl=", b"value=query&ttl=5&dir=true")
        self.assertEqual(form, {"value": "body", "ttl": "", "dir": "true"})

    def test_only_forms_in_bodies_are_read(self) -> None:
        """By POST, PUT and PATCH, of exactly one type; other bodies are passed over."""
        for method, kind, read in (
            ("PUT", FORM_TYPE, True),
            ("POST", FORM_TYPE, True),
            ("PATCH", FORM_TYPE, True),
            ("PUT", "Application/X-WWW-form-urlencoded ; charset=utf-8", True),
            ("PUT", f'{FORM_TYPE};a="x;\\"y";B=z; ', True),
            ("PUT", f"{FORM_TYPE}; ;", False),
            ("GET", FORM_TYPE, False),
            ("DELETE", FORM_TYPE, False),
            ("HEAD", ";;", False),
            ("PUT", "", False),
            ("PUT", "text/plain", False),
            ("PUT", "form", False),
            ("PUT", "multipart/form-data; boundary=B", False),
            ("PUT", "application/json", False),
        ):
            if kind.endswith("; ;"):
                self.assertRaises(FormError, is_form, kind)
                continue
            form = FORM.read(method, kind, b"value=body", b"dir=1")
            self.assertEqual(form.get("value"), "body" if read else None, (method, kind))
            self.assertEqual(form["dir"], "1")

    def test_types_that_are_none_are_refused_in_gos_words(self) -> None:
        """Also without a body."""
        for kind, words in (
            (";;", "no media type"),
            (" ", "no media type"),
            ("a b", "expected slash after first token"),
            ("a/", "expected token after slash"),
            ("a/b/c", "unexpected content after media subtype"),
            (f"{FORM_TYPE}; charset", "invalid media parameter"),
            (f"{FORM_TYPE}; =x", "invalid media parameter"),
            (f'{FORM_TYPE}; a="x', "invalid media parameter"),
            (f"{FORM_TYPE}; a=b c", "invalid media parameter"),
            (f"{FORM_TYPE}; a=b; A=c", "duplicate parameter name"),
        ):
            error = self.assertRaises(FormError, FORM.read, "PUT", kind, b"", b"")
            self.assertEqual(str(error), f"mime: {words}", kind)

    def test_the_bodys_fault_comes_before_the_querys(self) -> None:
        """And the type's before both."""
        for kind, body, shown in (
            (FORM_TYPE, b"value=%yy", 'invalid URL escape "%yy"'),
            (FORM_TYPE, b"value=1", 'invalid URL escape "%zz"'),
            (f"{FORM_TYPE}; x", b"value=%yy", "mime: invalid media parameter"),
        ):
            error = self.assertRaises(FormError, FORM.read, "PUT", kind, body, b"x=%zz")
            self.assertEqual(str(error), shown)

    def test_a_body_may_have_ten_megabytes(self) -> None:
        """And not one byte more."""
        value = b"x" * (MAX_BODY_BYTES - len(b"value="))
        self.assertEqual(len(FORM.read("PUT", FORM_TYPE, b"value=" + value, b"")["value"]), len(value))
        error = self.assertRaises(FormError, FORM.read, "PUT", FORM_TYPE, b"value=" + value + b"x", b"")
        self.assertEqual(str(error), "http: POST too large")
        self.assertEqual(FORM.read("PUT", "text/plain", b"value=" + value + b"x", b""), {})


class NumbersTests(SynchronousTestCase):
    def test_truth_has_twelve_spellings(self) -> None:
        """Go's, and no others."""
        self.assertEqual([parse_bool(text) for text in ("1", "t", "T", "true", "TRUE", "True")], [True] * 6)
        self.assertEqual([parse_bool(text) for text in ("0", "f", "F", "false", "FALSE", "False")], [False] * 6)
        for text in ("", "tRUE", "yes", "2", "+1", " true", "01"):
            self.assertRaises(ValueError, parse_bool, text)

    def test_numbers_have_64_bits_and_digits_only(self) -> None:
        """However many zeros stand before them."""
        for text, value in (("0", 0), ("007", 7), ("18446744073709551615", 2**64 - 1), ("0" * 5000 + "9", 9)):
            self.assertEqual(parse_uint(text), value)
        for text in (
            "",
            "-1",
            "+1",
            " 1",
            "1 ",
            "1_0",
            "0x1",
            "1.5",
            "1e3",
            "\u0661",
            "18446744073709551616",
            "9" * 5000,
        ):
            self.assertRaises(ValueError, parse_uint, text)
