"""Protobuf to JSON and back."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterator

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.pb import auth_pb2, kv_pb2, lease_pb2, membership_pb2, rpc_pb2, v3election_pb2, v3lock_pb2
from twistedkv.protocols import gojson
from twistedkv.protocols.jsonpb import MAX_NESTING, JSONError, from_json, stream_from_json, to_json

MODULES = (rpc_pb2, kv_pb2, auth_pb2, lease_pb2, membership_pb2, v3lock_pb2, v3election_pb2)
CLASSES: list[type[Message]] = [
    message_factory.GetMessageClass(descriptor)
    for module in MODULES
    for descriptor in module.DESCRIPTOR.message_types_by_name.values()
]
TEXT = string.ascii_letters + '<>&"\\/\n\t\x01\x7fé\u2028😀'
RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}


def scalar(field: FieldDescriptor, dice: random.Random) -> object:
    """A value for ``field``; zero now and then."""
    if field.cpp_type in RANGES:
        low, high = RANGES[field.cpp_type]
        return dice.choice((0, 1, low, high, dice.randint(low, high)))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return dice.random() < 0.5
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return dice.choice((*(value.number for value in field.enum_type.values), 99))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return dice.randbytes(dice.randrange(8))
    return "".join(dice.choice(TEXT) for _ in range(dice.randrange(6)))


def filled(message: Message, dice: random.Random, depth: int = 0) -> Message:
    """``message`` with some of its fields set."""
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.4:
            continue
        if field.message_type is not None:
            if depth < 4:
                part = getattr(message, field.name)
                for _ in range(dice.randrange(3) if field.is_repeated else 1):
                    element = part.add() if field.is_repeated else part
                    element.SetInParent()
                    filled(element, dice, depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(scalar(field, dice) for _ in range(dice.randrange(3)))
        else:
            setattr(message, field.name, scalar(field, dice))
    return message


def messages(seed: int, rounds: int = 1) -> Iterator[Message]:
    """Random messages of every type."""
    dice = random.Random(seed)
    for _ in range(rounds):
        for cls in CLASSES:
            yield filled(cls(), dice)


def names(node: object) -> object:
    """The names of an object in their order, and those within."""
    if isinstance(node, dict):
        return [(name, names(value)) for name, value in node.items()]
    return [names(value) for value in node] if isinstance(node, list) else None


def nested(levels: int) -> bytes:
    """A transaction in a transaction, so many times."""
    return b'{"success":[{"request_txn":' * levels + b"{}" + b"}]}" * levels


class WritingTests(SynchronousTestCase):
    """Messages to JSON."""

    @given(st.integers(0, 1 << 32))
    @settings(max_examples=20, deadline=None)
    def test_values_are_those_of_protobufs_own_mapping(self, seed: int) -> None:
        """JSON of any message says the same as protobuf's canonical mapping with original names."""
        for message in messages(seed):
            ours = json.loads(to_json(message))
            self.assertEqual(ours, json_format.MessageToDict(message, preserving_proto_field_name=True))

    def test_fields_come_in_the_order_of_their_declaration(self) -> None:
        """The order of the names is that of the .proto file, as jsonpb gives it."""
        for message in messages(7):
            declared = [field.name for field in message.DESCRIPTOR.fields]
            written = list(json.loads(to_json(message)))
            self.assertEqual(written, sorted(written, key=declared.index))

    def test_declaration_counts_even_where_numbers_do_not_rise(self) -> None:
        """An Entry of the Raft log declares Term and Index before Type."""
        from twistedkv.pb import raft_pb2

        entry = raft_pb2.Entry(Type=1, Term=2, Index=3)
        self.assertEqual(to_json(entry), b'{"Term":"2","Index":"3","Type":"EntryConfChange"}')

    def test_kinds_of_values(self) -> None:
        """64-bit integers are strings, 32-bit ones are not, bytes are base64, zeros are absent, empty messages stay."""
        self.assertEqual(
            to_json(rpc_pb2.HashKVResponse(header={}, hash=4294967295, compact_revision=-1)),
            b'{"header":{},"hash":4294967295,"compact_revision":"-1"}',
        )
        self.assertEqual(to_json(kv_pb2.KeyValue(key=b"\xff\xfe\xfd", value=b"a")), b'{"key":"//79","value":"YQ=="}')
        self.assertEqual(to_json(kv_pb2.Event(type=1, kv={})), b'{"type":"DELETE","kv":{}}')
        self.assertEqual(to_json(rpc_pb2.RangeRequest(sort_order=99)), b'{"sort_order":99}')
        self.assertEqual(to_json(rpc_pb2.Compare(version=0)), b'{"version":"0"}')

    def test_strings_are_escaped_as_go_does_it(self) -> None:
        """Characters that mean something to HTML or JavaScript are escaped, others stay UTF-8."""
        message = rpc_pb2.AuthUserListResponse(users=["<a>&", '"\\/', "\b\f\n\r\t\x01\x7f", "é😀\u2028"])
        self.assertEqual(
            to_json(message).decode(),
            r'{"users":["\u003ca\u003e\u0026","\"\\/","\u0008\u000c\n\r\t\u0001' + '\x7f","é😀' + r'\u2028"]}',
        )


class ReadingTests(SynchronousTestCase):
    """JSON to messages."""

    @given(st.integers(0, 1 << 32))
    @settings(max_examples=20, deadline=None)
    def test_what_was_written_is_read_again(self, seed: int) -> None:
        """Every message survives the way to JSON and back, by the fast reader and by the exact one."""
        for message in messages(seed):
            body = to_json(message)
            self.assertEqual(from_json(body, type(message)), message)
            self.assertEqual(from_json(body + b" trailing", type(message)), message)  # orjson refuses this

    @given(st.integers(0, 1 << 32))
    @settings(max_examples=20, deadline=None)
    def test_lower_camel_case_is_read_too(self, seed: int) -> None:
        """The canonical mapping with its own names gives the same message."""
        for message in messages(seed):
            body = json_format.MessageToJson(message).encode()
            self.assertEqual(from_json(body, type(message)), message)

    @given(st.data())
    @settings(max_examples=300, deadline=None)
    def test_both_readers_agree_on_anything(self, data: st.DataObject) -> None:
        """Whatever stands for a field: if the fast reader takes it, the exact one reads the same."""
        fields = ("key", "limit", "sort_order", "sortOrder", "serializable", "range_end", "other")
        plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        texts = st.sampled_from(
            ("5", "-0", "05", "+5", " 5", "5_0", "\u0665", "ASCEND", "Zg==", "Zg====", "Zm9v=", "")
        ) | st.text(max_size=4)
        value = st.recursive(
            plain | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2)
        )
        members = data.draw(st.dictionaries(st.sampled_from(fields), value, max_size=3))
        body = json.dumps(members, ensure_ascii=False).encode("utf-8", "replace")
        self.assertEqual(_outcome(body), _outcome(body + b" x"))

    def test_the_first_value_counts(self) -> None:
        """An empty body is an empty message, and what follows the first value is not looked at."""
        for body in (b"", b" \n", b"null", b"nullx", b"{}", b"{}{", b'{} {"key":5}'):
            self.assertEqual(from_json(body, rpc_pb2.RangeRequest), rpc_pb2.RangeRequest(), body)

    def test_spellings_and_members_of_a_oneof_win_as_in_jsonpb(self) -> None:
        """Of equal names the last wins, of two spellings lowerCamelCase, of a oneof's members the one declared last."""
        read = from_json(b'{"key":"x","key":"Zm9v","rangeEnd":"YQ==","range_end":"Yg=="}', rpc_pb2.RangeRequest)
        self.assertEqual((read.key, read.range_end), (b"foo", b"a"))
        for body in (b'{"value":"YQ==","version":"5"}', b'{"version":"5","value":"YQ=="}'):
            self.assertEqual(from_json(body, rpc_pb2.Compare).WhichOneof("target_union"), "value")

    def test_go_reads_arrays_of_numbers_as_bytes(self) -> None:
        """Go takes [102,111] for bytes, and null for a zero."""
        self.assertEqual(from_json(b'{"key":[102,111,null]}', rpc_pb2.RangeRequest).key, b"fo\0")

    def test_errors_are_in_gos_words(self) -> None:
        """A few of the texts that a client sees; the functional test compares all with etcd's."""
        for body, text in (
            (b"nox", "invalid character 'o' in literal null (expecting 'u')"),
            (b'{"key":"Zm9v"', "unexpected EOF"),
            (b'{"key":"Zm9"}', "illegal base64 data at input byte 0"),
            (b'{"limit":1.5}', "json: cannot unmarshal number 1.5 into Go value of type int64"),
            (b'{"limit":""}', "unexpected end of JSON input"),
            (b'{"sort_order":"X"}', r'unknown value "\"X\"" for enum etcdserverpb.RangeRequest.SortOrder'),
            (b"[]", "json: cannot unmarshal array into Go value of type map[string]json.RawMessage"),
            (b"\xef\xbb\xbf{}", "invalid character 'ï' looking for beginning of value"),
            (b'{"key":"\n"}', "invalid character '\\n' in string literal"),
        ):
            self.assertEqual(_outcome(body), text, body)

    def test_nesting_has_a_limit(self) -> None:
        """As deep as protobuf carries is read and can be sent on; deeper is refused, not crashed on."""
        levels = MAX_NESTING // 2
        message = from_json(nested(levels), rpc_pb2.TxnRequest)
        self.assertEqual(rpc_pb2.TxnRequest.FromString(message.SerializeToString()), message)
        self.assertEqual(from_json(nested(levels) + b" x", rpc_pb2.TxnRequest), message)
        for deeper in (levels + 1, 300, 3000):
            self.assertRaises(JSONError, from_json, nested(deeper), rpc_pb2.TxnRequest)

    def test_deep_unknown_values_are_skipped(self) -> None:
        """A field that nobody knows may be nested ten thousand deep."""
        body = b'{"a":' + b"[" * 9_999 + b"]" * 9_999 + b',"limit":"5"}'
        self.assertEqual(from_json(body, rpc_pb2.RangeRequest).limit, 5)

    def test_streams_are_read_one_by_one(self) -> None:
        """Values in a row are messages in a row; a bad one ends it after the good ones."""
        stream = stream_from_json(b'{"ID":1}{"ID":"2"}\n null x', rpc_pb2.LeaseKeepAliveRequest)
        self.assertEqual([next(stream).ID, next(stream).ID, next(stream).ID], [1, 2, 0])
        self.assertRaises(JSONError, next, stream)
        self.assertEqual(list(stream), [])


class GoTextTests(SynchronousTestCase):
    """The parts of Go's library that JSON needs."""

    @given(st.binary(max_size=20))
    @settings(max_examples=200, deadline=None)
    def test_base64_of_anything_is_decoded(self, data: bytes) -> None:
        """Base64 by its definition comes back, with line ends anywhere in it too."""
        import base64

        text = base64.b64encode(data).decode()
        self.assertEqual(gojson.decode_base64(text), data)
        self.assertEqual(gojson.decode_base64("\r\n".join(text) + "\n"), data)

    @given(st.text(max_size=8))
    @settings(max_examples=200, deadline=None)
    def test_strings_are_unquoted_as_json_says(self, text: str) -> None:
        """A string that Python's json writes is read as it was, escaped or not."""
        try:
            text.encode()
        except UnicodeEncodeError:
            return
        for ascii_only in (True, False):
            self.assertEqual(gojson.unquote(json.dumps(text, ensure_ascii=ascii_only).encode()), text)

    def test_broken_unicode_is_replaced_byte_by_byte(self) -> None:
        """Each byte that is not UTF-8, and each lone surrogate, becomes one U+FFFD."""
        self.assertEqual(gojson.unquote(b'"a\xe2\x82z\xff"'), "a\ufffd\ufffdz\ufffd")
        self.assertEqual(gojson.unquote(b'"\\ud83d\\ude00\\ude00\\ud83dx\\ud83d\\u0041"'), "😀\ufffd\ufffdx\ufffdA")

    @given(st.binary(max_size=24))
    @settings(max_examples=300, deadline=None)
    def test_the_scanner_takes_json_and_nothing_else(self, data: bytes) -> None:
        """On any bytes the scanner raises its own error or agrees with Python's parser that this is JSON."""
        try:
            gojson.scan_whole(data)
        except JSONError:
            return
        json.loads(data.decode("utf-8", "replace"), parse_constant=self.fail)

    def test_half_an_escape_is_none(self) -> None:
        """However many whole ones there are before it, which some versions of Python's patterns get wrong."""
        for before in (b"", b"a", b"\\n", b"x\\u1234y", b"\\n" * 1200):
            for rest, words in (
                (b'\\u12"', "invalid character '\"' in \\u hexadecimal character escape"),
                (b'\\uzz12"', "invalid character 'z' in \\u hexadecimal character escape"),
                (b"\\u12", "unexpected EOF"),
                (b'\\x"', "invalid character 'x' in string escape code"),
                (b'\x01"', "invalid character '\\x01' in string literal"),
            ):
                error = self.assertRaises(JSONError, gojson.scan, b'"' + before + rest)
                self.assertEqual(str(error), words)
            found = gojson.scan_whole(b'"' + before + b'"')
            self.assertEqual(gojson.kind(found), "string")

    def test_errors_name_the_byte(self) -> None:
        """Unprintable bytes are named as Go 1.16 names them."""
        for data, named in ((b"\x00", r"'\x00'"), (b"\x7f", r"'\u007f'"), (b"'", r"'\''"), (b"\xa0", r"'\u00a0'")):
            error = self.assertRaises(JSONError, gojson.scan, data)
            self.assertEqual(str(error), f"invalid character {named} looking for beginning of value")


def _outcome(body: bytes) -> Message | str:
    try:
        return from_json(body, rpc_pb2.RangeRequest)
    except JSONError as error:
        return str(error)
