"""JSON in Go's words, and JSON that is too deep for the standard library."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv import gojson
from twistedkv.gojson import is_plain, loads, quoted

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


class QuotedTests(SynchronousTestCase):
    """What is written."""

    def test_as_go_writes_it(self) -> None:
        """Each character as Go 1.16 has it."""
        self.assertEqual(quoted("ä\U0001f600 /'\x7f"), '"ä\U0001f600 /\'\x7f"')
        self.assertEqual(quoted('"\\\n\r\t\x00\x08\x0c<>&\u2028\u2029'), _ESCAPED)

    def test_bytes_that_are_no_text(self) -> None:
        """They are what they stand for when they are read by us, and do not keep the whole from being UTF-8."""
        self.assertEqual(quoted("a\udcff"), '"a\\udcff"')
        self.assertEqual(json.loads(quoted("\udcff\udc80").encode()), "\udcff\udc80")

    def test_what_is_plain(self) -> None:
        """Each character that Go does not escape, alone and among others, and nothing at all."""
        escaped = {*range(0x20), *map(ord, '"\\<>&\u2028\u2029'), *range(0xD800, 0xE000)}
        self.assertTrue(is_plain(""))
        for code in (*range(0x180), *range(0x2020, 0x2030), 0xD7FF, 0xD800, 0xDBFF, 0xDC80, 0xDFFF, 0xE000, 0x1F600):
            for text in (chr(code), f"a{chr(code)}b", f"\xe9{chr(code)}"):
                self.assertIs(is_plain(text), code not in escaped, ascii(text))

    @given(st.lists(st.sampled_from('a/ \x7f\xe9\u20ac\U0001f600"\\<>&\n\0\x1f\u2028\udcff')).map("".join))
    @settings(max_examples=60, deadline=None)
    def test_what_is_plain_is_written_as_it_is(self, text: str) -> None:
        """All other text is written otherwise, by character."""
        escaped = "".join(quoted(character)[1:-1] for character in text)
        self.assertEqual((is_plain(text), quoted(text)), (escaped == text, f'"{escaped}"'))

    @given(st.text())
    def test_read_back(self, text: str) -> None:
        """Any text is the same again."""
        self.assertEqual(json.loads(quoted(text)), text)


_ESCAPED = r'"\"\\\n\r\t\u0000\u0008\u000c\u003c\u003e\u0026\u2028\u2029"'


class LoadsTests(SynchronousTestCase):
    """What is read."""

    def test_any_depth(self) -> None:
        """A hundred thousand levels are read."""
        depth = 100_000
        found = loads('{"a":[' * depth + "7" + "]}" * depth)
        for _ in range(depth):
            (found,) = found["a"]
        self.assertEqual(found, 7)

    @given(values, st.sampled_from((None, 2)))
    @settings(max_examples=60, deadline=None)
    def test_as_the_standard_library_reads_it(self, value: object, indent: int | None) -> None:
        """Without recursion the same comes out as with it."""
        text = json.dumps(value, indent=indent)
        self.assertEqual(gojson._deep(f" {text}\n"), value)

    @given(st.text(alphabet='{}[]",:1a\\ -.e', max_size=12))
    @settings(max_examples=200, deadline=None)
    def test_what_is_no_json(self, text: str) -> None:
        """Neither of them takes what the other does not."""
        try:
            wanted = json.loads(text)
        except ValueError:
            self.assertRaises(ValueError, gojson._deep, text)
        else:
            self.assertEqual(gojson._deep(text), wanted)

    def test_each_mistake(self) -> None:
        """Whatever is missing or too much is an error."""
        for text in ("", "{", "[", "[1", "[1,", "[1 2]", "{1:2}", '{"a"}', '{"a" 1}', '{"a":1,}', "[]]", "1 1", "tru"):
            self.assertRaises(ValueError, gojson._deep, text)
        self.assertRaises(ValueError, loads, "[" * 100_000)
