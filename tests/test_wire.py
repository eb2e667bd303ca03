"""The hand-written encodings are protobuf's own, byte by byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.pb.kv_pb2 import KeyValue
from twistedkv.pb.rpc_pb2 import (
    DeleteRangeResponse,
    PutResponse,
    RangeResponse,
    ResponseHeader,
    ResponseOp,
    TxnResponse,
)
from twistedkv.wire import (
    HeaderEncoder,
    delete_body,
    prefixed,
    put_body,
    range_body,
    revision_header,
    txn_body,
    varint,
    varint_of_id,
)

u64 = st.integers(0, (1 << 64) - 1)
i64 = st.integers(-(1 << 63), (1 << 63) - 1)
revision = st.integers(0, (1 << 63) - 1)
pairs = st.builds(KeyValue, key=st.binary(min_size=1), value=st.binary(max_size=300), mod_revision=i64, lease=i64)
responses = st.one_of(
    st.builds(ResponseOp, response_put=st.builds(PutResponse, prev_kv=pairs)),
    st.builds(ResponseOp, response_delete_range=st.builds(DeleteRangeResponse, deleted=i64)),
)


class VarintTests(SynchronousTestCase):
    """Numbers and lengths."""

    def test_sizes(self) -> None:
        """Seven bits to a byte, least first; negative numbers take ten bytes (protobuf's encoding guide)."""
        self.assertEqual(varint(0), b"\0")
        self.assertEqual(varint(0x7F), b"\x7f")
        self.assertEqual(varint(0x80), b"\x80\x01")
        self.assertEqual(varint(-1), b"\xff" * 9 + b"\x01")

    @given(i64.filter(bool))
    def test_any_number(self, number: int) -> None:
        """Every 64-bit number is encoded as protobuf does it."""
        self.assertEqual(b"\x18" + varint(number), ResponseHeader(revision=number).SerializeToString())
        unsigned = number % (1 << 64)
        self.assertEqual(varint_of_id(unsigned), varint(unsigned))

    @given(st.binary(max_size=300))
    def test_prefixed(self, body: bytes) -> None:
        """A field with a length is its tag, the length and the bytes."""
        self.assertEqual(RangeResponse.FromString(prefixed(b"\x0a", b"")), RangeResponse(header=ResponseHeader()))
        self.assertEqual(prefixed(b"\x2a", body) if body else b"", KeyValue(value=body).SerializeToString())


class HeaderTests(SynchronousTestCase):
    """Response headers."""

    @given(u64, u64, revision, u64)
    def test_any_header(self, cluster: int, member: int, revision: int, term: int) -> None:
        """The header is field 1 of a response, with what is zero left out; asked again, it is the same."""
        header = ResponseHeader(cluster_id=cluster, member_id=member, revision=revision, raft_term=term)
        expected = RangeResponse(header=header).SerializeToString()
        encoder = HeaderEncoder(cluster, member)
        self.assertEqual(encoder.field(revision, term), expected)
        self.assertEqual(encoder.field(revision, term), expected)

    def test_header_follows_revision_and_term(self) -> None:
        """A new revision or a new term is in the next header, though the last one is remembered."""
        encoder = HeaderEncoder(1, 2)
        for revision, term in ((5, 1), (6, 1), (6, 2), (0, 0)):
            header = RangeResponse.FromString(encoder.field(revision, term)).header
            self.assertEqual((header.revision, header.raft_term), (revision, term))

    @given(revision)
    def test_header_of_an_operation(self, revision: int) -> None:
        """§1: within a transaction a header has the revision alone."""
        expected = PutResponse(header=ResponseHeader(revision=revision)).SerializeToString()
        self.assertEqual(revision_header(revision), expected)


class BodyTests(SynchronousTestCase):
    """Responses without their headers."""

    def test_pairs_of_any_length(self) -> None:
        """Around each length at which its encoding changes, a pair comes out as protobuf writes it."""
        for size in (0, 100, 125, 126, 127, 128, 1019, 1020, 1021, 1022, 1023, 1024, 16_381, 16_384, 1 << 20):
            kv = KeyValue(value=bytes(size))
            expected = RangeResponse(kvs=[kv], count=1).SerializeToString()
            self.assertEqual(range_body([kv.SerializeToString()], 1, False), expected, size)

    @given(st.lists(pairs, max_size=4), st.integers(0, 1000), st.booleans())
    def test_range(self, kvs: list[KeyValue], beyond: int, more: bool) -> None:
        """A range's pairs, more and count; without pairs there is never more."""
        expected = RangeResponse(kvs=kvs, more=more and bool(kvs), count=len(kvs) + beyond)
        encoded = [pair.SerializeToString() for pair in kvs]
        self.assertEqual(range_body(encoded, len(kvs) + beyond, more and bool(kvs)), expected.SerializeToString())

    @given(st.none() | pairs)
    def test_put(self, previous: KeyValue | None) -> None:
        """A put's previous pair, if there was one."""
        encoded = None if previous is None else previous.SerializeToString()
        self.assertEqual(put_body(encoded), PutResponse(prev_kv=previous).SerializeToString())

    @given(st.lists(pairs, max_size=4), st.integers(0, 1000))
    def test_delete(self, previous: list[KeyValue], more: int) -> None:
        """A delete's count and previous pairs."""
        deleted = len(previous) + more
        expected = DeleteRangeResponse(deleted=deleted, prev_kvs=previous).SerializeToString()
        self.assertEqual(delete_body(deleted, [pair.SerializeToString() for pair in previous]), expected)

    @given(st.booleans(), st.lists(responses, max_size=4))
    def test_txn(self, succeeded: bool, answers: list[ResponseOp]) -> None:
        """A transaction's outcome and its answers in order."""
        expected = TxnResponse(succeeded=succeeded, responses=answers).SerializeToString()
        self.assertEqual(txn_body(succeeded, [answer.SerializeToString() for answer in answers]), expected)
