"""The two streams between members: what etcd sent, whatever cuts, and everything that no member sends."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.peerdata import ETCD, OURS, cut, messages, numbers, recorded
from twistedkv.protocols.msgappv2 import AppendDecoder, AppendEncoder, MessageDecoder, MessageEncoder
from twistedkv.protocols.peerhttp import ProtocolError
from twistedkv.raft.messages import Entry, Message, MessageType
from twistedkv.raft.wire import encode_message

sizes = st.lists(st.integers(0, 40), max_size=30)


def number(value: int) -> bytes:
    return struct.pack(">Q", value)


class RecordedTests(SynchronousTestCase):
    """What etcd 3.5.1 sent."""

    def test_appends_of_etcd(self) -> None:
        """Its append stream is read, and our encoder writes the same stream to the byte."""
        stream = recorded("msgapp")
        got = list(AppendDecoder(OURS, ETCD).feed(stream))
        self.assertEqual(
            {(message.type, message.to, message.sender) for message in got}, {(MessageType.APPEND, OURS, ETCD)}
        )
        self.assertEqual(got[-1].commit, 12)
        indexes = [entry.index for message in got[1:] for entry in message.entries]
        self.assertEqual(indexes, list(range(1, 13)))
        encoder = AppendEncoder()
        self.assertEqual(b"".join(map(encoder.encode, got)), stream)

    def test_messages_of_etcd(self) -> None:
        """So is its other stream."""
        stream = recorded("message")
        got = list(MessageDecoder().feed(stream))
        kinds = {message.type for message in got}
        self.assertLessEqual({MessageType.HEARTBEAT, MessageType.TIMEOUT_NOW, MessageType.READ_INDEX_RESPONSE}, kinds)
        encoder = MessageEncoder()
        self.assertEqual(b"".join(map(encoder.encode, got)), stream)

    def test_any_cut_will_do(self) -> None:
        """Byte by byte, both streams say the same."""
        for decoder, name in ((AppendDecoder(OURS, ETCD), "msgapp"), (MessageDecoder(), "message")):
            stream = recorded(name)
            whole = AppendDecoder(OURS, ETCD) if name == "msgapp" else MessageDecoder()
            got = [message for byte in stream for message in decoder.feed(bytes((byte,)))]
            self.assertEqual(got, list(whole.feed(stream)))


@st.composite
def appends(draw: st.DrawFn) -> list[Message]:
    """Appends, most of which follow the one before."""
    batch: list[Message] = []
    index, term = draw(st.integers(0, 300)), draw(st.integers(1, 200))
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.booleans()) and draw(st.booleans()):
            index, term = draw(numbers), draw(numbers)
        contents = draw(st.lists(st.binary(max_size=50), max_size=3))
        found = [Entry(term, (index + each + 1) % (1 << 64), data) for each, data in enumerate(contents)]
        batch.append(Message(MessageType.APPEND, OURS, ETCD, term, term, index, found or (), draw(numbers)))
        index = found[-1].index if found else index
    return batch


class AppendStreamTests(SynchronousTestCase):
    @given(appends(), sizes)
    def test_what_is_written_is_read(self, batch: list[Message], where: list[int]) -> None:
        """Any appends come back as they were, cut anywhere, with signs of life between them."""
        encoder, decoder = AppendEncoder(), AppendDecoder(OURS, ETCD)
        stream = b"".join(encoder.encode(message) + encoder.alive for message in batch)
        self.assertEqual([message for piece in cut(stream, where) for message in decoder.feed(piece)], batch)

    def test_followers_are_short(self) -> None:
        """The first append of a connection is whole; the next says only what is new, unless the term changed."""
        encoder = AppendEncoder()
        kinds = []
        for term, log_term, index in ((2, 2, 0), (2, 2, 1), (3, 2, 2), (3, 3, 3), (3, 3, 9)):
            entry = Entry(term, index + 1, b"x")
            kinds.append(encoder.encode(Message(MessageType.APPEND, OURS, ETCD, term, log_term, index, [entry]))[0])
        self.assertEqual(kinds, [2, 1, 2, 1, 2])

    def test_other_messages_are_our_own_fault(self) -> None:
        """The stream takes appends only."""
        self.assertRaises(ValueError, AppendEncoder().encode, Message(MessageType.HEARTBEAT, 1))

    def test_garbage_is_refused(self) -> None:
        """Unknown frames, other messages and lengths beyond the bounds end the stream before anything is kept."""
        heartbeat = encode_message(Message(MessageType.HEARTBEAT, OURS, ETCD))
        for stream in (
            b"\x03",
            b"GET / HTTP/1.1",
            b"\x02" + number(1 << 62),
            b"\x02" + number(1001),
            b"\x02" + number(len(heartbeat)) + heartbeat,
            b"\x02" + number(2) + b"\xff\xff",
            b"\x02" + number(2) + b"\x08\x63",
            b"\x01" + number(1 << 40),
            b"\x01" + number(1) + number(1001),
            b"\x01" + number(2) + number(600) + bytes.fromhex("22d504") + b"x" * 597 + number(600),
            b"\x01" + number(1) + number(2) + b"\xff\xff",
            b"\x01" + number(1) + number(2) + b"\x08\x07" + number(0),
        ):
            decoder = AppendDecoder(OURS, ETCD, limit_bytes=1000)
            self.assertRaises(ProtocolError, lambda d=decoder, s=stream: list(d.feed(s)))

    @given(st.binary(max_size=80), sizes)
    def test_any_bytes_are_a_stream_or_refused(self, data: bytes, where: list[int]) -> None:
        """Whatever comes, nothing but a ProtocolError comes of it."""
        decoder = AppendDecoder(OURS, ETCD)
        try:
            for piece in cut(data, where):
                list(decoder.feed(piece))
        except ProtocolError:
            return


class MessageStreamTests(SynchronousTestCase):
    @given(st.lists(messages(), max_size=4), sizes)
    def test_what_is_written_is_read(self, batch: list[Message], where: list[int]) -> None:
        """Any messages come back as they were, cut anywhere, with signs of life between them."""
        encoder, decoder = MessageEncoder(), MessageDecoder()
        batch = [message for message in batch if message.sender or message.to]
        stream = b"".join(encoder.encode(message) + encoder.alive for message in batch)
        self.assertEqual([message for piece in cut(stream, where) for message in decoder.feed(piece)], batch)

    def test_unknown_types_are_passed_over(self) -> None:
        """A message of a type that members do not say, or of a later version, does not end the stream."""
        wanted = Message(MessageType.VOTE, 1, 2)
        stream = number(2) + b"\x08\x0b" + number(2) + b"\x08\x63" + MessageEncoder().encode(wanted)
        self.assertEqual([message.type for message in MessageDecoder().feed(stream)], [MessageType.VOTE])

    def test_garbage_is_refused(self) -> None:
        """Lengths beyond the bounds and bytes that are no message end the stream."""
        for stream in (number(1001), b"GET / HTTP/1.1\r\n", number(2) + b"\xff\xff"):
            self.assertRaises(ProtocolError, lambda s=stream: list(MessageDecoder(1000).feed(s)))

    def test_long_message_in_many_pieces(self) -> None:
        """A message of some MiB costs no more for coming in small pieces."""
        message = Message(MessageType.APPEND, 1, 2, 3, 3, 0, [Entry(3, 1, bytes(4 << 20))])
        stream = MessageEncoder().encode(message)
        decoder = MessageDecoder()
        pieces = [stream[start : start + 4096] for start in range(0, len(stream), 4096)]
        self.assertEqual([found for piece in pieces for found in decoder.feed(piece)], [message])
