"""Protobuf messages to JSON and back, as the JSON gateway of etcd 3.5 does it.

That gateway is grpc-gateway v1 with ``jsonpb`` set to original names: 64-bit integers are strings, bytes are base64,
enums go by name, zero values are left out, names are taken as declared or in lowerCamelCase, and what is unknown is
ignored.

Both directions run on tables that are made once for each message type. Reading goes by orjson and takes only what is
beyond doubt; everything else, right or wrong, is read again by :mod:`twistedkv.protocols.gojson`, which follows Go in
what it accepts and in what it says. So an answer never depends on which of the two read the body.

Left out: maps, floating point, groups and well-known types, none of which etcd's API has; and messages nested deeper
than :data:`MAX_NESTING`, which the protobuf runtime does not carry.

Source: golang/protobuf v1.5.2 ``jsonpb/decode.go`` and ``encode.go``; reference: etcd 3.5.1's answers.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator
from typing import Final, TypeVar, cast

import orjson
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from twistedkv.protocols.gojson import JSONError, Node, decode_base64, kind, mismatch, quote, scan, scan_whole, unquote

__all__ = ["MAX_NESTING", "JSONError", "from_json", "json_string", "stream_from_json", "to_json"]

MAX_NESTING: Final = 100  # upb's own limit when it parses

M = TypeVar("M", bound=Message)

_INTEGER_TYPES: Final = {  # by C++ type: Go's name of the type, lowest, highest
    FieldDescriptor.CPPTYPE_INT32: ("int32", -(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: ("int64", -(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: ("uint32", 0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: ("uint64", 0, (1 << 64) - 1),
    FieldDescriptor.CPPTYPE_ENUM: ("protoreflect.EnumNumber", -(1 << 31), (1 << 31) - 1),
}
_MESSAGE_TYPE: Final = "map[string]json.RawMessage"  # into which jsonpb reads an object first
_LIST_TYPE: Final = "[]json.RawMessage"
_INTEGER: Final = re.compile(rb"-?(?:0|[1-9][0-9]*)")
_UNSIGNED: Final = re.compile(rb"0|[1-9][0-9]*")  # Go's ParseUint takes no sign, not even in -0
_LONGEST: Final = 20  # characters of any 64-bit number

# Go's json.Marshal escapes these so that JSON can stand within HTML and JavaScript.
_NEEDS_ESCAPE: Final = re.compile('[\x00-\x1f"\\\\<>&\u2028\u2029]')
_ESCAPES: Final = {code: f"\\u{code:04x}" for code in (*range(0x20), *map(ord, "<>&\u2028\u2029"))} | {
    ord('"'): '\\"', ord("\\"): "\\\\", ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t",
}  # fmt: skip


def to_json(message: Message) -> bytes:
    """``message`` as compact JSON in UTF-8, fields in the order of their declaration."""
    return _codec(type(message)).write(message).encode("utf-8")


def from_json(data: bytes, message_type: type[M]) -> M:
    """The message that the first JSON value in ``data`` describes; an empty body or ``null`` gives an empty message.

    Raises:
        JSONError: in Go's words, what is wrong.
    """
    # orjson has undone escapes where jsonpb looks at them, as in "\u0035" for a number, and turned -0 into 0.
    if b"\\" not in data and b"-0" not in data:
        plain = _from_plain_json(data, message_type)
        if plain is not None:
            return plain
    for message in stream_from_json(data, message_type):
        return message
    return message_type()


def stream_from_json(data: bytes, message_type: type[M]) -> Iterator[M]:
    """The messages of a body of several JSON values in a row, each read when it is asked for.

    Raises:
        JSONError: in Go's words, what is wrong with the next one; nothing can follow.
    """
    codec = _codec(message_type)
    position = 0
    while found := scan(data, position):
        node, position = found
        message = message_type()
        codec.fill_exactly(message, node, 0)
        yield message


def json_string(text: str) -> str:
    """``text`` as a JSON string, escaped as Go does it."""
    return f'"{_escape(text)}"'


def _from_plain_json(data: bytes, message_type: type[M]) -> M | None:
    """The same by the fast reader; None where the exact one must decide and find the words."""
    try:
        members = orjson.loads(data)
        message = message_type()
        _codec(message_type).fill(message, members, 0)
    except (ValueError, TypeError, RecursionError):
        return None
    return message


class _NotPlainError(ValueError):
    """The fast reader does not judge this."""


class _Field:
    """One field of a message type: its writer and its two readers.

    Args:
        descriptor: of the field.
        codec_of: finds the codec of a nested message; called only once all types are known.
    """

    def __init__(self, descriptor: FieldDescriptor, codec_of: Callable[[Descriptor], _Codec]) -> None:
        self.descriptor = descriptor
        self.name = descriptor.name
        self.json_name = descriptor.json_name
        self.is_list = descriptor.is_repeated
        oneof = descriptor.containing_oneof
        self._oneof = oneof.name if oneof is not None else None
        self._nested = codec_of(descriptor.message_type) if descriptor.message_type is not None else None
        self._read = None if self._nested else _plain_reader(descriptor)
        self._read_exactly = None if self._nested else _exact_reader(descriptor)

    def writer(self) -> Callable[..., str]:
        """A function from a value that is set to ``"name":value``."""
        prefix = f'"{self.name}":'
        if self._nested:
            write, quoting = self._nested.write, False
        else:
            write, quoting = _scalar_writer(self.descriptor)
        if self.is_list:
            if quoting:
                return lambda values: f'{prefix}["' + '","'.join(map(write, values)) + '"]'
            return lambda values: f"{prefix}[" + ",".join(map(write, values)) + "]"
        if quoting:
            return lambda value: f'{prefix}"{write(value)}"'
        return lambda value: prefix + write(value)

    def reader(self) -> Callable[[Message, object, int], None]:
        """The fast reader: sets the field of a message from what orjson made, or raises ValueError or TypeError."""
        name, nested, read, oneof = self.name, self._nested, self._read, self._oneof

        def fill_list(message: Message, values: object, depth: int) -> None:
            if type(values) is not list:
                raise _NotPlainError
            elements = getattr(message, name)
            for value in values:
                if nested:
                    nested.fill(elements.add(), value, depth)
                elif read:
                    elements.append(read(value))

        def fill_nested(message: Message, value: object, depth: int) -> None:
            if oneof is not None and message.WhichOneof(oneof) is not None:
                raise _NotPlainError  # of two members the one declared last wins, not the one written last
            element = getattr(message, name)
            element.SetInParent()
            if nested:
                nested.fill(element, value, depth)

        def set_scalar(message: Message, value: object, depth: int) -> None:
            if oneof is not None and message.WhichOneof(oneof) is not None:
                raise _NotPlainError
            if read:
                setattr(message, name, read(value))

        if self.is_list:
            return fill_list
        return fill_nested if nested else set_scalar

    def set_exactly(self, message: Message, node: Node, depth: int) -> None:
        """Set the field from ``node``, which is not null.

        Raises:
            JSONError: as jsonpb says it.
        """
        name, nested, read = self.name, self._nested, self._read_exactly
        if self.is_list:
            if not isinstance(node, list):
                raise mismatch(node, _LIST_TYPE)
            elements = getattr(message, name)
            for element in node:
                if nested:
                    nested.fill_exactly(elements.add(), element, depth)
                elif read:
                    elements.append(read(element))
        elif nested:
            element = getattr(message, name)
            element.SetInParent()
            nested.fill_exactly(element, node, depth)
        elif read:
            setattr(message, name, read(node))


class _Codec:
    """The tables of one message type. It is made empty and completed later, because types refer to each other."""

    def __init__(self) -> None:
        self._fields: list[_Field] = []
        self._aliases: dict[str, str] = {}  # lowerCamelCase to declared name, where they differ
        self._writers: dict[FieldDescriptor, Callable[..., str]] = {}
        self._readers: dict[str, Callable[[Message, object, int], None]] = {}
        self._order: dict[FieldDescriptor, int] | None = None  # None: numbers rise as declared

    def complete(self, descriptor: Descriptor, codec_of: Callable[[Descriptor], _Codec]) -> None:
        """Make the tables from the fields of ``descriptor``."""
        for field_descriptor in descriptor.fields:
            field = _Field(field_descriptor, codec_of)
            self._fields.append(field)
            if field.json_name != field.name:
                self._aliases[field.json_name] = field.name
            self._writers[field_descriptor] = field.writer()
            self._readers[field.name] = field.reader()
        numbers = [field.number for field in descriptor.fields]
        if numbers != sorted(numbers):
            self._order = {field: index for index, field in enumerate(descriptor.fields)}

    def write(self, message: Message) -> str:
        """``message`` as JSON."""
        writers = self._writers
        present = message.ListFields()  # by number
        order = self._order
        if order is not None:
            present = sorted(present, key=lambda item: order[item[0]])
        return "{" + ",".join([writers[field](value) for field, value in present]) + "}"

    def fill(self, message: Message, members: object, depth: int) -> None:
        """Set the fields of an empty ``message``.

        Args:
            members: the object as orjson made it.
            depth: how many messages ``message`` is in.

        Raises:
            ValueError, TypeError: this is for :meth:`fill_exactly`; ``message`` is then of no use.
        """
        if type(members) is not dict or depth > MAX_NESTING:
            raise _NotPlainError
        readers = self._readers
        for name, value in members.items():
            reader = readers.get(name)
            if reader is None:
                declared = self._aliases.get(name)
                if declared is None:
                    continue
                if declared in members:
                    raise _NotPlainError  # both spellings; which one wins is a matter of details
                reader = readers[declared]
            if value is not None:
                reader(message, value, depth + 1)

    def fill_exactly(self, message: Message, node: Node, depth: int) -> None:
        """Set the fields of an empty ``message`` as jsonpb does it: in the order of declaration, first error first.

        Raises:
            JSONError: in Go's words.
        """
        if node == b"null":
            return
        if not isinstance(node, dict):
            raise mismatch(node, _MESSAGE_TYPE)
        if depth > MAX_NESTING:
            raise JSONError("exceeded max depth")
        for field in self._fields:
            value = node.get(field.name)
            if field.json_name in node:
                value = node[field.json_name]
            if value is not None and value != b"null":
                field.set_exactly(message, value, depth + 1)


_codecs: dict[Descriptor, _Codec] = {}
_codecs_by_class: dict[type[Message], _Codec] = {}


def _codec(message_type: type[Message]) -> _Codec:
    """The codec of a generated class."""
    codec = _codecs_by_class.get(message_type)
    if codec is None:
        codec = _codecs_by_class[message_type] = _codec_of(cast(Descriptor, message_type.DESCRIPTOR))
    return codec


def _codec_of(descriptor: Descriptor) -> _Codec:
    codec = _codecs.get(descriptor)
    if codec is None:
        codec = _codecs[descriptor] = _Codec()  # known before its fields ask for it
        codec.complete(descriptor, _codec_of)
    return codec


def _escape(text: str) -> str:
    return text.translate(_ESCAPES) if _NEEDS_ESCAPE.search(text) else text


def _scalar_writer(descriptor: FieldDescriptor) -> tuple[Callable[..., str], bool]:
    """A function from a value to its text, and whether that goes between quotes."""
    match descriptor.cpp_type:
        case FieldDescriptor.CPPTYPE_INT64 | FieldDescriptor.CPPTYPE_UINT64:
            return str, True
        case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_UINT32:
            return str, False
        case FieldDescriptor.CPPTYPE_BOOL:
            return lambda value: "true" if value else "false", False
        case FieldDescriptor.CPPTYPE_ENUM:
            names = {value.number: f'"{value.name}"' for value in _enum(descriptor).values}
            return lambda value: names.get(value) or str(value), False
        case FieldDescriptor.CPPTYPE_STRING if descriptor.type == FieldDescriptor.TYPE_BYTES:
            return lambda value: binascii.b2a_base64(value, newline=False).decode("ascii"), True
        case FieldDescriptor.CPPTYPE_STRING:
            return _escape, True
    raise ValueError(f"{descriptor.full_name}: no JSON for this type")


def _enum(descriptor: FieldDescriptor) -> EnumDescriptor:
    enum = descriptor.enum_type
    if enum is None:
        raise ValueError(f"{descriptor.full_name} is not an enum")
    return enum


def _plain_reader(descriptor: FieldDescriptor) -> Callable[[object], object]:
    """A function from what orjson made to the field's value; it refuses whatever it is not sure of."""

    def boolean(value: object) -> object:
        if type(value) is bool:
            return value
        raise _NotPlainError

    def integer(value: object) -> object:
        if type(value) is int:
            return value  # protobuf checks the range
        if type(value) is str:
            number = int(value)
            if str(number) == value:  # int() takes more than JSON: " 5", "+5", "5_0", other digits
                return number
        raise _NotPlainError

    def text(value: object) -> object:
        if type(value) is str:
            return value
        raise _NotPlainError

    def base64(value: object) -> object:
        if type(value) is str and not len(value) & 3 and not value.endswith("==="):  # binascii takes any number of "="
            return binascii.a2b_base64(value, strict_mode=True)
        raise _NotPlainError

    match descriptor.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return boolean
        case FieldDescriptor.CPPTYPE_STRING:
            return base64 if descriptor.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_ENUM:
            numbers = dict(_enum(descriptor).values_by_name.items())

            def enumeration(value: object) -> object:
                if type(value) is str and value in numbers:
                    return numbers[value].number
                if type(value) is int:
                    return value
                raise _NotPlainError

            return enumeration
    return integer


def _exact_reader(descriptor: FieldDescriptor) -> Callable[[Node], object]:
    """A function from a node to the field's value, which raises JSONError in Go's words."""
    match descriptor.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return _boolean
        case FieldDescriptor.CPPTYPE_STRING:
            return _bytes if descriptor.type == FieldDescriptor.TYPE_BYTES else _text
        case FieldDescriptor.CPPTYPE_ENUM:
            enum = _enum(descriptor)

            def enumeration(node: Node) -> int:
                if isinstance(node, bytes) and kind(node) == "string":
                    value = enum.values_by_name.get(node[1:-1].decode("utf-8", "replace"))
                    if value is None:
                        raise JSONError(f"unknown value {quote(node)} for enum {enum.full_name}")
                    return value.number
                return _integer(node, *_INTEGER_TYPES[FieldDescriptor.CPPTYPE_ENUM])

            return enumeration
        case cpp_type if cpp_type in _INTEGER_TYPES:
            go_type, lowest, highest = _INTEGER_TYPES[cpp_type]

            def integer(node: Node) -> int:
                if isinstance(node, bytes) and kind(node) == "string":
                    node = scan_whole(node[1:-1])  # jsonpb takes the quotes off and reads what is left as JSON
                return _integer(node, go_type, lowest, highest)

            return integer
    raise ValueError(f"{descriptor.full_name}: no JSON for this type")


def _integer(node: Node, go_type: str, lowest: int, highest: int) -> int:
    if node == b"null":
        return 0
    signed = lowest < 0
    if isinstance(node, bytes) and (_INTEGER if signed else _UNSIGNED).fullmatch(node) and len(node) <= _LONGEST:
        number = int(node)
        if lowest <= number <= highest:
            return number
    raise mismatch(node, go_type, with_number=True)


def _boolean(node: Node) -> bool:
    if node == b"null":
        return False
    if isinstance(node, bytes) and kind(node) == "bool":
        return node == b"true"
    raise mismatch(node, "bool")


def _text(node: Node) -> str:
    if node == b"null":
        return ""
    if isinstance(node, bytes) and kind(node) == "string":
        return unquote(node)
    raise mismatch(node, "string")


def _bytes(node: Node) -> bytes:
    """Base64, or as Go has it an array of numbers."""
    if node == b"null":
        return b""
    if isinstance(node, list):
        return bytes(_integer(element, "uint8", 0, 0xFF) for element in node)
    if isinstance(node, bytes) and kind(node) == "string":
        return decode_base64(unquote(node))
    raise mismatch(node, "[]uint8")
