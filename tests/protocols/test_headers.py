"""HPACK: what the ``hpack`` library encodes we decode, and the other way; what is no HPACK is refused."""

from __future__ import annotations

from hpack import Decoder, Encoder
from hpack.hpack import HeaderTuple, NeverIndexedHeaderTuple
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.protocols.frames import ErrorCode, ProtocolError
from twistedkv.protocols.headers import NO_TABLE, HeaderDecoder, encode_block
from twistedkv.protocols.huffman import decode_huffman

NAMES = st.one_of(
    st.sampled_from([b":path", b":method", b"content-type", b"grpc-timeout", b"token", b"authorization", b"te"]),
    st.binary(min_size=1, max_size=20),
)
VALUES = st.one_of(st.sampled_from([b"", b"POST", b"/etcdserverpb.KV/Put"]), st.binary(max_size=200))
FIELDS = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=12)
BLOCKS = st.lists(st.tuples(FIELDS, st.booleans(), st.none() | st.integers(0, 4096)), max_size=8)


class DecodingTests(SynchronousTestCase):
    """RFC 7541 §3 to §6, reading."""

    @settings(max_examples=150, deadline=None)
    @given(BLOCKS)
    def test_blocks_of_another_encoder_decode_equally(
        self, blocks: list[tuple[list[tuple[bytes, bytes, bool]], bool, int | None]]
    ) -> None:
        """Blocks of the hpack library decode to its fields: evictions, resizes, Huffman, never-indexed fields."""
        encoder, decoder = Encoder(), HeaderDecoder(1 << 20)
        for fields, huffman, size in blocks:
            if size is not None:
                encoder.header_table_size = size
            headers = [
                (NeverIndexedHeaderTuple if secret else HeaderTuple)(name, value) for name, value, secret in fields
            ]
            block = encoder.encode(headers, huffman=huffman)
            self.assertEqual(decoder.decode(block), tuple((name, value) for name, value, _ in fields))

    def test_a_long_run_of_changing_fields_evicts_as_the_encoder_does(self) -> None:
        """A deadline that changes with every request, as Go clients send it, decodes right thousands of times."""
        encoder, decoder = Encoder(), HeaderDecoder(1 << 16)
        for number in range(2000):
            fields = [
                (b":method", b"POST"),
                (b":path", b"/etcdserverpb.KV/Put"),
                (b":authority", b"127.0.0.1:2379"),
                (b"grpc-timeout", b"%du" % (4999000 + number)),
            ]
            self.assertEqual(decoder.decode(encoder.encode(fields)), tuple(fields))

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=300))
    def test_garbage_is_a_protocol_error(self, block: bytes) -> None:
        """Whatever bytes come as a block, they give fields within the limit or a ProtocolError."""
        decoder = HeaderDecoder(1000)
        try:
            fields = decoder.decode(block)
        except ProtocolError as error:
            self.assertIn(error.code, (ErrorCode.COMPRESSION_ERROR, ErrorCode.ENHANCE_YOUR_CALM))
        else:
            self.assertLessEqual(sum(len(name) + len(value) + 32 for name, value in fields), 1000)

    def test_a_small_block_cannot_unfold_into_a_large_list(self) -> None:
        """A block that repeats one large field by index is refused at the list limit (an HPACK bomb)."""
        decoder = HeaderDecoder(65536)
        large = b"\x40\x01a\x7f\x81\x1e" + b"v" * (0x7F + 0x81 - 0x80 + (0x1E << 7))
        self.assertEqual(len(decoder.decode(large)), 1)
        with self.assertRaises(ProtocolError) as caught:
            decoder.decode(b"\xbe" * 10_000)
        self.assertEqual(caught.exception.code, ErrorCode.ENHANCE_YOUR_CALM)

    def test_malformed_blocks(self) -> None:
        """Each way to break a block that RFC 7541 names is a COMPRESSION_ERROR."""
        broken = {
            "index 0 (§6.1)": b"\x80",
            "index beyond the tables (§2.3.3)": b"\xbe",
            "name index beyond the tables": b"\x7f\x10\x00",
            "integer that never ends (§5.1)": b"\xff" + b"\x80" * 20 + b"\x01",
            "integer cut short": b"\xff\x80",
            "string cut short (§5.2)": b"\x40\x05ab",
            "string without length": b"\x40",
            "value missing": b"\x40\x01a",
            "resize above what was announced (§4.2)": b"\x3f\xe2\x1f",
            "resize after a field (§4.2)": b"\x82\x20",
            "third resize (§4.2)": b"\x20\x20\x20",
            "EOS in a string (§5.2)": b"\x40\x84\xff\xff\xff\xff\x00",
            "padding of eight ones (§5.2)": b"\x40\x82\x1f\xff\x00",
            "padding of zeros (§5.2)": b"\x40\x81\x18\x00",
        }
        for what, block in broken.items():
            with self.assertRaises(ProtocolError, msg=what) as caught:
                HeaderDecoder(65536).decode(block)
            self.assertEqual(caught.exception.code, ErrorCode.COMPRESSION_ERROR, what)

    def test_changes_counts_only_changes_of_the_table(self) -> None:
        """A block of indices and unindexed literals leaves ``changes`` alone; inserting and resizing move it."""
        decoder = HeaderDecoder(65536)
        decoder.decode(b"\x83\x00\x01a\x01b\x10\x01a\x01b")
        self.assertEqual(decoder.changes, 0)
        decoder.decode(b"\x40\x01a\x01b")
        self.assertEqual(decoder.changes, 1)
        decoder.decode(NO_TABLE)
        self.assertEqual(decoder.changes, 2)
        with self.assertRaises(ProtocolError):
            decoder.decode(b"\xbe")  # the entry went with the resize


class HuffmanTests(SynchronousTestCase):
    """RFC 7541 §5.2 and Appendix B."""

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=300))
    def test_strings_come_back(self, text: bytes) -> None:
        """Every string that the hpack library codes decodes to itself."""
        coded = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)
        self.assertEqual(decode_huffman(coded), text)


class EncodingTests(SynchronousTestCase):
    """RFC 7541 §6, writing."""

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.lists(st.tuples(NAMES, VALUES), max_size=12), max_size=4))
    def test_another_decoder_reads_our_blocks(self, blocks: list[list[tuple[bytes, bytes]]]) -> None:
        """The hpack library decodes our blocks to our fields, and equal fields are equal bytes."""
        decoder = Decoder(max_header_list_size=1 << 20)
        for fields in blocks:
            block = encode_block(fields)
            self.assertEqual([tuple(field) for field in decoder.decode(block, raw=True)], fields)
            self.assertEqual(encode_block(fields), block)
            self.assertEqual(HeaderDecoder(1 << 20).decode(block), tuple(fields))

    def test_secrets_are_never_indexed(self) -> None:
        """A token is marked so that no hop keeps it in its table (RFC 7541 §7.1.3)."""
        (field,) = Decoder().decode(encode_block([(b"authorization", b"secret")]), raw=True)
        self.assertIsInstance(field, NeverIndexedHeaderTuple)

    def test_no_table_satisfies_a_decoder_that_shrank_its_table(self) -> None:
        """After a peer announces a table of 0, a block that opens with NO_TABLE is accepted (RFC 7541 §4.2)."""
        decoder = Decoder()
        decoder.max_allowed_table_size = 0
        self.assertEqual(len(decoder.decode(NO_TABLE + encode_block([(b"a", b"b")]), raw=True)), 1)
