"""gRPC's message framing, timeouts and status texts."""

from __future__ import annotations

import gzip

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.errors import Code, RPCError
from twistedkv.protocols.grpcframes import (
    MessageReader,
    decode_status_text,
    encode_status_text,
    format_timeout,
    frame_message,
    parse_timeout,
)


class MessageReaderTests(SynchronousTestCase):
    """Messages out of bytes."""

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.binary(max_size=50), max_size=8), st.lists(st.integers(1, 20), min_size=1, max_size=8))
    def test_any_cut(self, messages: list[bytes], sizes: list[int]) -> None:
        """However the bytes are cut, the messages come out whole, in order, and nothing is left."""
        data, reader, got, turn = b"".join(map(frame_message, messages)), MessageReader(50), [], 0
        while data:
            size = sizes[turn % len(sizes)]
            reader.feed(data[:size])
            data, turn = data[size:], turn + 1
            while (message := reader.next()) is not None:
                got.append(message)
        self.assertEqual(got, messages)
        self.assertEqual(len(reader), 0)

    def test_limit(self) -> None:
        """A message of the limit passes; one more byte is refused by its length alone."""
        reader = MessageReader(10)
        reader.feed(frame_message(bytes(10)))
        self.assertEqual(reader.next(), bytes(10))
        reader.feed(frame_message(bytes(11))[:5])
        with self.assertRaises(RPCError) as caught:
            reader.next()
        self.assertEqual(caught.exception.code, Code.RESOURCE_EXHAUSTED)
        self.assertEqual(caught.exception.text, "grpc: received message larger than max (11 vs. 10)")

    def test_gzip(self) -> None:
        """A packed message is unpacked; one that is broken, cut or unpacks beyond the limit is refused."""

        def read(packed: bytes) -> bytes | None:
            reader = MessageReader(1000, gzip=True)
            reader.feed(b"\1" + len(packed).to_bytes(4, "big") + packed)
            return reader.next()

        self.assertEqual(read(gzip.compress(b"x" * 1000)), b"x" * 1000)
        refusals = {
            gzip.compress(b"x" * 10_000_000)[:900]: Code.RESOURCE_EXHAUSTED,
            gzip.compress(b"x" * 1000)[:-4]: Code.INTERNAL,
            b"no gzip": Code.INTERNAL,
        }
        for packed, code in refusals.items():
            with self.assertRaises(RPCError) as caught:
                read(packed)
            self.assertEqual(caught.exception.code, code)


class TimeoutTests(SynchronousTestCase):
    """grpc-timeout. Source: grpc/grpc doc/PROTOCOL-HTTP2.md."""

    def test_units(self) -> None:
        """Each unit is understood."""
        values = {
            b"2H": 7200.0,
            b"3M": 180.0,
            b"4S": 4.0,
            b"5m": 0.005,
            b"6u": 6e-6,
            b"7n": 7e-9,
            b"99999999S": 99999999.0,
        }
        for text, seconds in values.items():
            self.assertAlmostEqual(parse_timeout(text), seconds)

    def test_malformed(self) -> None:
        """What is no number of at most 8 digits with a unit is refused."""
        for text in (b"", b"S", b"5", b"5X", b"-5S", b"+5S", b" 5S", b"5 S", b"123456789S", b"\xff5S", b"5\xc2\xb5"):
            with self.assertRaises(RPCError) as caught:
                parse_timeout(text)
            self.assertEqual(caught.exception.code, Code.INTERNAL)

    @settings(max_examples=200, deadline=None)
    @given(st.floats(1e-9, 99999999 * 3600.0))
    def test_formatted_timeouts_come_back(self, seconds: float) -> None:
        """A timeout is sent within one part in a hundred thousand, in 8 digits at most."""
        text = format_timeout(seconds)
        self.assertLessEqual(len(text), 9)
        self.assertLessEqual(abs(parse_timeout(text) - seconds), max(seconds * 1e-5, 1e-9))

    def test_extremes(self) -> None:
        """A deadline in the past is zero; one beyond all bounds is the longest there is."""
        self.assertEqual(format_timeout(-1.0), b"0n")
        self.assertEqual(format_timeout(1e30), b"99999999H")


class StatusTextTests(SynchronousTestCase):
    """grpc-message."""

    @settings(max_examples=100, deadline=None)
    @given(st.text(max_size=50))
    def test_texts_come_back(self, text: str) -> None:
        """Any text survives, as printable ASCII."""
        coded = encode_status_text(text.encode("utf-8", "ignore").decode())
        self.assertTrue(all(0x20 <= byte <= 0x7E for byte in coded))
        self.assertEqual(decode_status_text(coded), text.encode("utf-8", "ignore").decode())

    def test_plain_texts_stay(self) -> None:
        """etcd's texts go as they are; a percent sign and a newline do not."""
        self.assertEqual(encode_status_text("etcdserver: key not found"), b"etcdserver: key not found")
        self.assertEqual(encode_status_text("100%\n"), b"100%25%0A")
        self.assertEqual(decode_status_text(b"100%zz%4"), "100%zz%4")
