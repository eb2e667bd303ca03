"""Raft's messages as bytes, against protobuf's own reading and writing and against what etcd wrote."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.protocols.peerdata import entries, messages, recorded
from twistedkv.pb import raft_pb2
from twistedkv.raft.messages import Entry, EntryType, Message, MessageType, Snapshot
from twistedkv.raft.wire import (
    DecodeError,
    EntryEncoder,
    UnknownTypeError,
    decode_entry,
    decode_message,
    encode_message,
)


class MessageTests(SynchronousTestCase):
    @given(messages())
    def test_what_is_written_is_read(self, message: Message) -> None:
        """A message comes back as it was, whatever is in it."""
        self.assertEqual(decode_message(encode_message(message)), message)
        self.assertEqual(decode_message(encode_message(message, EntryEncoder())), message)

    @given(messages())
    def test_protobuf_writes_the_same(self, message: Message) -> None:
        """Protobuf finds every field that etcd 3.5 writes, in the order of their numbers."""
        encoded = encode_message(message)
        parsed = raft_pb2.Message.FromString(encoded)
        self.assertEqual(parsed.SerializeToString(deterministic=True), encoded)
        for name in ("type", "to", "from", "term", "logTerm", "index", "commit", "snapshot", "reject", "rejectHint"):
            self.assertTrue(parsed.HasField(name), name)

    @given(messages())
    def test_absent_zeros_are_read(self, message: Message) -> None:
        """A message without what is zero, as other versions write it, is the same message."""
        parsed = raft_pb2.Message.FromString(encode_message(message))
        for field, value in parsed.ListFields():
            if not field.is_repeated and not value:
                parsed.ClearField(field.name)
        if message.snapshot is None:
            parsed.ClearField("snapshot")
        for entry in parsed.entries:
            for field, value in entry.ListFields():
                if not value:
                    entry.ClearField(field.name)
        self.assertEqual(decode_message(parsed.SerializeToString()), message)

    def test_empty_snapshot_is_written(self) -> None:
        """A message without a snapshot carries an empty one, as etcd 3.5's do."""
        parsed = raft_pb2.Message.FromString(encode_message(Message(MessageType.HEARTBEAT, 2, 1)))
        self.assertTrue(parsed.snapshot.metadata.conf_state.HasField("auto_leave"))
        self.assertIsNone(decode_message(encode_message(Message(MessageType.HEARTBEAT, 2, 1))).snapshot)

    def test_snapshot_without_content_is_one(self) -> None:
        """A snapshot message always has a snapshot."""
        parsed = raft_pb2.Message(type=raft_pb2.MsgSnap)
        self.assertIsInstance(decode_message(parsed.SerializeToString()).snapshot, Snapshot)

    def test_packed_ids_are_read(self) -> None:
        """Members of a configuration may be packed into one field."""
        encoded = bytes.fromhex("0807 4a08 1206 0a04 0a02 0102")
        snapshot = decode_message(encoded).snapshot
        self.assertIsNotNone(snapshot)
        self.assertEqual(snapshot and snapshot.meta.conf_state.voters, (1, 2))

    def test_what_etcd_posted(self) -> None:
        """A message of etcd 3.5.1 is read, and written again to the byte."""
        posted = recorded("post")
        self.assertEqual(decode_message(posted).type, MessageType.HEARTBEAT)
        self.assertEqual(encode_message(decode_message(posted)), posted)

    def test_types_that_members_do_not_say(self) -> None:
        """Local, unknown and missing types are told from malformed bytes."""
        for kind in (0, 1, 10, 12, 19, 23, 99):
            self.assertRaises(UnknownTypeError, decode_message, bytes((8, kind)))
        self.assertRaises(UnknownTypeError, decode_message, b"")

    @given(st.binary(max_size=60))
    def test_garbage_is_refused(self, data: bytes) -> None:
        """Whatever bytes come, they are a message or refused."""
        try:
            decode_message(data)
        except DecodeError:
            return

    @given(messages(), st.data())
    def test_a_cut_message_is_no_other_type(self, message: Message, data: st.DataObject) -> None:
        """A message that was cut off is refused, or lacks fields; it never becomes another one's."""
        encoded = encode_message(message)
        part = encoded[: data.draw(st.integers(0, len(encoded) - 1))]
        try:
            self.assertIs(decode_message(part).type, message.type)
        except DecodeError:
            return


class EntryTests(SynchronousTestCase):
    def test_unknown_entry_type_is_refused(self) -> None:
        """An entry of a type that is not known is not taken for an ordinary one."""
        self.assertRaises(DecodeError, decode_entry, bytes.fromhex("0803 1001 1801"))
        self.assertRaises(DecodeError, decode_message, bytes.fromhex("0803 3a06 0803 1001 1801"))
        self.assertEqual(decode_entry(bytes.fromhex("1001 1802")), Entry(1, 2, b"", EntryType.NORMAL))

    @given(st.lists(entries, min_size=1, max_size=5))
    def test_consecutive_and_other_entries_are_written(self, batch: list[Entry]) -> None:
        """What an entry is written as does not depend on the ones before it."""
        self.assertEqual([decode_entry(each) for each in EntryEncoder().encode(batch)], batch)

    def test_indexes_across_the_lengths_of_numbers(self) -> None:
        """Indexes are right where their encoding becomes longer."""
        for start in (0, 120, (1 << 14) - 5, (1 << 21) - 5, (1 << 63) - 5):
            batch = [Entry(1, start + each, b"x") for each in range(10)]
            self.assertEqual([decode_entry(each) for each in EntryEncoder().encode(batch)], batch)

    def test_same_batch_is_encoded_once(self) -> None:
        """The second follower's append costs no encoding, and another batch is not mistaken for the first."""
        encoder = EntryEncoder()
        batch = [Entry(1, index, b"x") for index in range(1, 6)]
        first = encoder.encode(batch)
        self.assertIs(encoder.encode(list(batch)), first)
        self.assertEqual(len(encoder.encode(batch[:3])), 3)
        self.assertEqual(decode_entry(encoder.encode([Entry(2, 1, b"y"), *batch[1:]])[0]), Entry(2, 1, b"y"))
