"""What events and errors of the v2 API look like."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.gojson import timestamp
from twistedkv.protocols.v2json import error_json, event_json, json_text, without_value
from twistedkv.v2errors import V2Code, V2Error
from twistedkv.v2events import Action, Event, NodeView

S = 1_000_000_000
NOW_NS = 1_795_634_000 * S  # 2026-11-25T19:13:20Z


# What Go's encoder treats in one way each, and some that it leaves alone.
TEXTS = st.lists(
    st.sampled_from(
        ("a", "/", " ", "\x7f", "\0", "\n", "\x1f", '"', "\\", "<", ">", "&", "\u2028", "\udcff", "\xe9", "\U0001f600")
    )
    | st.characters(exclude_categories=()),
    max_size=4,
).map("".join)
PLAIN = st.sampled_from(("", "bar", "a b/c", "\x7f"))


def file(
    key: str = "/1/foo", value: str | None = "bar", expires_ns: int = 0, modified: int = 5, created: int = 4
) -> NodeView:
    """A file."""
    return NodeView(key, value, False, expires_ns, (), modified, created)


def directory(key: str, *nodes: NodeView, expires_ns: int = 0, index: int = 3) -> NodeView:
    """A directory."""
    return NodeView(key, None, True, expires_ns, nodes, index, index)


class EventTests(SynchronousTestCase):
    def show(self, action: Action, node: NodeView, previous: NodeView | None = None, now_ns: int = NOW_NS) -> str:
        """An event without its line end."""
        shown = event_json(Event(action, node, previous, 9), now_ns).decode()
        self.assertTrue(shown.endswith("}\n"))
        return shown[:-1]

    def test_a_file(self) -> None:
        """Key, value and indexes, in this order."""
        node = '{"key":"/foo","value":"bar","modifiedIndex":5,"createdIndex":4}'
        self.assertEqual(self.show(Action.GET, file()), f'{{"action":"get","node":{node}}}')
        before = '{"key":"/foo","value":"","modifiedIndex":3,"createdIndex":3}'
        self.assertEqual(
            self.show(Action.SET, file(), file(value="", modified=3, created=3)),
            f'{{"action":"set","node":{node},"prevNode":{before}}}',
        )

    def test_a_file_that_is_gone(self) -> None:
        """It has no value."""
        self.assertEqual(
            self.show(Action.DELETE, file(value=None), file()),
            '{"action":"delete","node":{"key":"/foo","modifiedIndex":5,"createdIndex":4},'
            '"prevNode":{"key":"/foo","value":"bar","modifiedIndex":5,"createdIndex":4}}',
        )

    def test_directories(self) -> None:
        """With what is in them, in order; the root has no key, and no indexes while it has none."""
        inner = directory("/1/d/e", file("/1/d/e/x"), directory("/1/d/e/y"), index=7)
        shown = self.show(Action.GET, directory("/1", directory("/1/d", inner, file("/1/d/f")), file(), index=0))
        x, f, foo = (
            f'{{"key":"{key}","value":"bar","modifiedIndex":5,"createdIndex":4}}' for key in ("/d/e/x", "/d/f", "/foo")
        )
        y = '{"key":"/d/e/y","dir":true,"modifiedIndex":3,"createdIndex":3}'
        e = f'{{"key":"/d/e","dir":true,"nodes":[{x},{y}],"modifiedIndex":7,"createdIndex":7}}'
        d = f'{{"key":"/d","dir":true,"nodes":[{e},{f}],"modifiedIndex":3,"createdIndex":3}}'
        self.assertEqual(shown, f'{{"action":"get","node":{{"dir":true,"nodes":[{d},{foo}]}}}}')
        self.assertEqual(self.show(Action.GET, directory("/1", index=0)), '{"action":"get","node":{"dir":true}}')

    def test_times_to_live_are_rounded_up(self) -> None:
        """As Go divides, which leaves out what is 0, and cuts what is below."""
        for left_ns, ttl in (
            (1, ',"ttl":1'),
            (S, ',"ttl":1'),
            (S + 1, ',"ttl":2'),
            (100 * S, ',"ttl":100'),
            (0, ""),
            (-1, ""),
            (1 - S, ""),
            (-S, ',"ttl":-1'),
            (-S - 1, ',"ttl":-1'),
            (-2 * S, ',"ttl":-2'),
        ):
            end_ns = NOW_NS + left_ns
            end = f'"expiration":"{timestamp(end_ns)}"{ttl}'
            self.assertIn(f'"value":"bar",{end},"modifiedIndex"', self.show(Action.GET, file(expires_ns=end_ns)))
            shown = self.show(Action.GET, directory("/1/d", file(), expires_ns=end_ns))
            self.assertIn(f'"dir":true,{end},"nodes":[', shown)

    def test_what_has_expired_had_no_time_left(self) -> None:
        """However long ago that was."""
        shown = self.show(Action.EXPIRE, file(value=None), file(expires_ns=NOW_NS - 60 * S))
        self.assertTrue(
            shown.endswith('"expiration":"2026-11-25T19:12:20Z","modifiedIndex":5,"createdIndex":4}}'), shown
        )
        shown = self.show(Action.EXPIRE, directory("/1/d"), directory("/1/d", expires_ns=NOW_NS - 60 * S))
        self.assertNotIn("ttl", shown)

    def test_moments_have_the_digits_they_need(self) -> None:
        """As Go's RFC3339Nano; also those before 1970."""
        for since_1970_ns, shown in (
            (NOW_NS, "2026-11-25T19:13:20Z"),
            (NOW_NS + 1, "2026-11-25T19:13:20.000000001Z"),
            (NOW_NS + 119_609_060, "2026-11-25T19:13:20.11960906Z"),
            (NOW_NS + 500_000_000, "2026-11-25T19:13:20.5Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
            (-(1 << 63), "1677-09-21T00:12:43.145224192Z"),
            ((1 << 63) - 1, "2262-04-11T23:47:16.854775807Z"),
        ):
            self.assertEqual(timestamp(since_1970_ns), shown)

    def test_a_listing_may_be_deep(self) -> None:
        """Thousands of levels are no matter."""
        view = file("/1/x")
        for _ in range(20_000):
            view = directory("/1/d", view)
        shown = event_json(Event(Action.GET, view, None, 9), NOW_NS)
        self.assertEqual((shown.count(b'"nodes":['), shown.count(b"]")), (20_000, 20_000))

    @given(
        st.sampled_from((Action.SET, Action.UPDATE, Action.COMPARE_AND_SWAP)),
        st.tuples(TEXTS | PLAIN, TEXTS | PLAIN, TEXTS | PLAIN),
        st.tuples(st.sampled_from((0, 0, 0, NOW_NS, NOW_NS + 5 * S)), st.sampled_from((0, 0, 0, NOW_NS + 1))),
        st.tuples(*[st.integers(1, 1 << 64)] * 4),
    )
    @settings(max_examples=150, deadline=None)
    def test_a_file_in_place_of_another_is_shown_as_each_of_them_is(
        self,
        action: Action,
        texts: tuple[str, str, str],
        ends_ns: tuple[int, int],
        indexes: tuple[int, int, int, int],
    ) -> None:
        """Whatever their key and values are, with or without an end."""
        key, value, before = f"/1/{texts[0]}", texts[1], texts[2]
        node = NodeView(key, value, False, ends_ns[0], (), *indexes[:2])
        previous = NodeView(key, before, False, ends_ns[1], (), *indexes[2:])
        start = f'{{"action":"{action}","node":'
        each = [self.show(action, view).removeprefix(start).removesuffix("}") for view in (node, previous)]
        self.assertEqual(self.show(action, node, previous), f'{start}{each[0]},"prevNode":{each[1]}}}')

    def test_a_file_in_place_of_another(self) -> None:
        """With what has to be escaped in its key, its value or the value before, and in none of them."""
        for text, shown in (
            ("", ""),
            ("plain /\x7f", "plain /\x7f"),
            ("\n\x01\x1f", "\\n\\u0001\\u001f"),
            ('"\\', '\\"\\\\'),
            ("<&>", "\\u003c\\u0026\\u003e"),
            ("\u2028\udcff\xe9", "\\u2028\\ufffd\xe9"),
        ):
            for key, value, before in ((text, "v", "b"), ("k", text, "b"), ("k", "v", text)):
                escaped = [shown if each is text else each for each in (key, value, before)]
                node = file(f"/1/{key}", value, modified=8, created=7)
                self.assertEqual(
                    self.show(Action.SET, node, file(f"/1/{key}", before, modified=6, created=5)),
                    f'{{"action":"set","node":{{"key":"/{escaped[0]}","value":"{escaped[1]}","modifiedIndex":8,'
                    f'"createdIndex":7}},"prevNode":{{"key":"/{escaped[0]}","value":"{escaped[2]}","modifiedIndex":6,'
                    '"createdIndex":5}}',
                )

    def test_a_file_in_place_of_another_kind(self) -> None:
        """A directory in place of a file has no value, and its end is shown."""
        self.assertEqual(
            self.show(Action.SET, directory("/1/foo"), file()),
            '{"action":"set","node":{"key":"/foo","dir":true,"modifiedIndex":3,"createdIndex":3},'
            '"prevNode":{"key":"/foo","value":"bar","modifiedIndex":5,"createdIndex":4}}',
        )
        for ends_ns in ((NOW_NS + S, 0), (0, NOW_NS + S)):
            node, previous = (file(expires_ns=end_ns) for end_ns in ends_ns)
            shown = json.loads(self.show(Action.SET, node, previous))
            self.assertEqual(["ttl" in shown[name] for name in ("node", "prevNode")], [end > 0 for end in ends_ns])

    def test_an_action_alone(self) -> None:
        """For those who want no value."""
        self.assertEqual(without_value(Action.COMPARE_AND_SWAP), b'{"action":"compareAndSwap"}\n')


class TextTests(SynchronousTestCase):
    def test_text_is_escaped_as_go_does_it(self) -> None:
        """HTML, control characters, line separators, and bytes that are no UTF-8."""
        for text, shown in (
            ("plain \xe9 \u20ac \U0001f600 \x7f /", "plain \xe9 \u20ac \U0001f600 \x7f /"),
            ("<a&b>", "\\u003ca\\u0026b\\u003e"),
            ('"\\', '\\"\\\\'),
            ("\n\r\t\b\f\0\x1f", "\\n\\r\\t\\u0008\\u000c\\u0000\\u001f"),
            ("\u2028\u2029", "\\u2028\\u2029"),
            ("\udcff\udc80x", "\\ufffd\\ufffdx"),
        ):
            self.assertEqual(json_text(text), f'"{shown}"')

    @given(st.text())
    def test_what_is_written_is_json(self, text: str) -> None:
        """Whatever it is, it is read back as it was."""
        self.assertEqual(json.loads(json_text(text)), text)


class ErrorTests(SynchronousTestCase):
    def test_an_error_has_number_message_cause_and_index(self) -> None:
        """The cause without what the store puts before keys, and left out if that is all."""
        for error, shown in (
            (
                V2Error(V2Code.KEY_NOT_FOUND, "/1/foo", 9),
                '{"errorCode":100,"message":"Key not found","cause":"/foo","index":9}',
            ),
            (V2Error(V2Code.NOT_FILE, "/1", 9), '{"errorCode":102,"message":"Not a file","index":9}'),
            (
                V2Error(V2Code.ROOT_READ_ONLY, "/", 9),
                '{"errorCode":107,"message":"Root is read only","cause":"/","index":9}',
            ),
            (
                V2Error(V2Code.TEST_FAILED, "[/1 != \udcff<]", 9),
                '{"errorCode":101,"message":"Compare failed","cause":"[/1 != \\ufffd\\u003c]","index":9}',
            ),
        ):
            self.assertEqual(error_json(error).decode(), shown + "\n")
