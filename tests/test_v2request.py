"""Log entries in the forms of etcd 3.5 and 3.6: the same members and versions come out of both."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.pb.membership_pb2 import Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest, RequestHeader
from twistedkv.pb.rpc_pb2 import PutRequest
from twistedkv.storage.directory import Directory
from twistedkv.v2errors import V2Code, V2Error
from twistedkv.v2events import Action, Event
from twistedkv.v2request import PlainSet, carry_out, decode_entry, encode_entry
from twistedkv.v2watch import V2Hub

# What members of etcd 3.5.1 wrote into their log: all fields, also those that are zero.
ZEROS = bytes.fromhex("2800320038004800500058006000680070007800800100")


def v2(method: str, path: str, value: str = "", **fields: Any) -> bytes:
    """A request of the v2 store."""
    request = Request(ID=7, Method=method, Path=path.encode(), Val=value.encode("utf-8", "surrogatepass"), **fields)
    return request.SerializeToString()


def decode_ours(data: bytes) -> InternalRaftRequest:
    """What comes of an entry that is about members."""
    found = decode_entry(data)
    assert isinstance(found, InternalRaftRequest)
    return found


def attributes(path: str, fields: object) -> InternalRaftRequest:
    """What comes of a member's attributes."""
    return decode_ours(v2("PUT", path, json.dumps(fields)))


class DecodeTests(SynchronousTestCase):
    """What an entry asks for."""

    def test_requests_of_our_own_form(self) -> None:
        """A request in the form of etcd 3.6 is what it is."""
        request = InternalRaftRequest(header=RequestHeader(ID=5), put=PutRequest(key=b"k"))
        self.assertEqual(decode_entry(request.SerializeToString()), request)
        self.assertEqual(decode_entry(b""), InternalRaftRequest())

    def test_attributes(self) -> None:
        """A member of etcd 3.5 tells its name and URLs as a key of the v2 store; id and waiter are kept."""
        found = attributes("/0/members/8e9e05c52164694d/attributes", {"name": "m1", "clientURLs": ["http://x:1"]})
        expected = ClusterMemberAttrSetRequest(
            member_ID=0x8E9E05C52164694D, member_attributes=Attributes(name="m1", client_urls=["http://x:1"])
        )
        self.assertEqual(found, InternalRaftRequest(header=RequestHeader(ID=7), cluster_member_attr_set=expected))

    def test_attributes_that_are_left_out(self) -> None:
        """Go leaves out what is empty, or writes null for it."""
        every: tuple[dict[str, Any], ...] = ({}, {"name": "", "clientURLs": None}, {"clientURLs": []})
        for fields in every:
            found = attributes("/0/members/a/attributes", fields).cluster_member_attr_set
            self.assertEqual((found.member_ID, found.member_attributes), (0xA, Attributes()))

    def test_the_cluster_s_version(self) -> None:
        """The leader of etcd 3.5 decides the cluster's version by a key of the v2 store."""
        found = decode_ours(v2("PUT", "/0/version", "3.5.0"))
        self.assertEqual(found.cluster_version_set, ClusterVersionSetRequest(ver="3.5.0"))

    def test_as_etcd_writes_it(self) -> None:
        """The zero fields that etcd writes change nothing."""
        body = b"\x08\x07\x12\x03PUT\x1a\x0a/0/version\x22\x053.5.0" + ZEROS
        self.assertEqual(decode_ours(body).cluster_version_set.ver, "3.5.0")

    def test_keys_of_the_v2_store(self) -> None:
        """All other requests are for the tree, also those that come near the members' nodes."""
        others = (
            v2("PUT", "/1/key", "v"),
            v2("DELETE", "/0/members/a/attributes", "{}"),
            v2("PUT", "/0/members/a/attributes", "{}", PrevExist=True),
            v2("PUT", "/0/version", "3.5.0", PrevIndex=3),
            v2("PUT", "/0/version", "3.5.0", PrevValue=b"3.4.0"),
            v2("PUT", "/1/0/members/a/attributes", "no attributes"),
            v2("QGET", "/0/version"),
            v2("SYNC", ""),
            v2("PUT", "/0/members/a/raftAttributes", "{}"),
            v2("PUT", "/0/members/11112222333344445/attributes", "{}"),
        )
        for body in others:
            self.assertEqual(decode_entry(body), Request.FromString(body))
        self.assertEqual(
            decode_entry(encode_entry(300, others[0][2:])), Request(ID=300, Method="PUT", Path=b"/1/key", Val=b"v")
        )

    def test_what_is_no_request(self) -> None:
        """Bytes that are neither form, and attributes that are none, are refused."""
        bodies = (
            b"\xff",
            b"\x08",
            b"\x08\x07\x12\x7f",
            v2("PUT", "/0/members/a/attributes", "{"),
            v2("PUT", "/0/members/a/attributes", "[]"),
            v2("PUT", "/0/members/a/attributes", '{"name":5}'),
            v2("PUT", "/0/members/a/attributes", '{"clientURLs":5}'),
            v2("PUT", "/0/members/a/attributes", '{"clientURLs":[5]}'),
            v2("PUT", "/0/members/a/attributes", '{"name":"\\ud800"}'),
            v2("PUT", "/0/members/a/attributes", "[" * 100_000),
        )
        for body in bodies:
            with self.assertRaises(ValueError, msg=repr(body[:60])):
                decode_entry(body)

    @given(st.binary(max_size=60))
    def test_any_bytes(self, body: bytes) -> None:
        """Whatever an entry holds, it is a request or refused."""
        try:
            decode_entry(body)
        except ValueError:
            pass
        else:
            self.assertIsInstance(decode_entry(body), InternalRaftRequest | Request)

    @given(st.text(max_size=40))
    def test_any_attributes(self, text: str) -> None:
        """Whatever attributes a member gives, they are read or refused."""
        body = v2("PUT", "/0/members/a/attributes", text)
        try:
            found = decode_ours(body)
        except ValueError:
            return
        self.assertTrue(found.HasField("cluster_member_attr_set"))


class CarryOutTests(SynchronousTestCase):
    """Which rule of the tree a request means; etcd apply_v2.go."""

    def setUp(self) -> None:
        self.directory = Directory(V2Hub())

    def do(self, method: str, path: bytes = b"/1/k", **fields: Any) -> Event:
        event = carry_out(Request(ID=1, Method=method, Path=path, **fields), self.directory)
        assert event is not None
        return event

    def refused(self, method: str, path: bytes = b"/1/k", **fields: Any) -> V2Code:
        code = self.assertRaises(V2Error, self.do, method, path, **fields).code
        assert isinstance(code, V2Code)
        return code

    def test_puts(self) -> None:
        """Sets, creates, updates and swaps, by what the request says of the value that was there."""
        self.assertIs(self.do("PUT", Val=b"a").action, Action.SET)
        self.assertIs(self.refused("PUT", PrevExist=False), V2Code.NODE_EXISTS)
        self.assertIs(self.do("PUT", b"/1/new", PrevExist=False, PrevValue=b"x").action, Action.CREATE)
        self.assertIs(self.do("PUT", PrevExist=True, Val=b"b").action, Action.UPDATE)
        self.assertIs(self.do("PUT", PrevValue=b"b", Val=b"c").action, Action.COMPARE_AND_SWAP)
        self.assertIs(self.refused("PUT", PrevExist=True, PrevIndex=99), V2Code.TEST_FAILED)
        self.assertTrue(self.do("PUT", b"/1/d", Dir=True).node.is_dir)

    @given(st.binary(max_size=20), st.binary(max_size=40), st.integers(1, (1 << 64) - 1))
    @settings(max_examples=60, deadline=None)
    def test_a_plain_set(self, name: bytes, value: bytes, request_id: int) -> None:
        """A set of which path and value are known as text does what its entry does, whatever its key and value are."""
        path = b"/1/" + name
        entry = encode_entry(request_id, Request(Method="PUT", Path=path, Val=value or None).SerializeToString())
        plain = PlainSet(request_id, *(each.decode("utf-8", "surrogateescape") for each in (path, value)))
        decoded = decode_entry(entry)
        assert isinstance(decoded, Request)
        self.assertEqual(decoded.ID, plain.ID)
        outcomes: list[object] = []
        for request in (decoded, plain):
            tree = Directory(V2Hub())
            for before in (None, b"/1/d/e", path + b"/below", path):
                if before is not None:
                    with contextlib.suppress(V2Error):
                        carry_out(Request(Method="PUT", Path=before, Val=b"old"), tree)
                try:
                    event = carry_out(request, tree)
                except V2Error as error:
                    outcomes.append((error.code, error.cause, error.index))
                else:
                    assert event is not None
                    outcomes.append((event.action, event.node, event.previous, event.etcd_index, event.refresh))
            outcomes.append((tree.get("/", True, True).node, tree.index, tree.changed, tree.counters.counts))
        self.assertEqual(outcomes[:5], outcomes[5:])

    def test_a_plain_set_replaces_what_it_may(self) -> None:
        """A file, whatever its end is; neither a directory nor the root, and there is nothing below a file."""
        self.do("PUT", Val=b"old", Expiration=1_700_000_000_000_000_000)
        self.do("PUT", b"/1/d/e", Val=b"x")
        event = carry_out(PlainSet(1, "/1/k", "new"), self.directory)
        assert event is not None
        assert event.previous is not None
        self.assertEqual((event.node.value, event.node.expires_ns, event.previous.value), ("new", 0, "old"))
        for path, code in (
            ("/1/d", V2Code.NOT_FILE),
            ("/1", V2Code.ROOT_READ_ONLY),
            ("/1/k/below", V2Code.NOT_DIR),
        ):
            error = self.assertRaises(V2Error, carry_out, PlainSet(1, path, "v"), self.directory)
            self.assertEqual((error.code, error.index), (code, 3))

    def test_the_others(self) -> None:
        """In-order keys, deletions, swaps with nothing, and reads of members of etcd."""
        self.assertEqual(self.do("POST", b"/1/q", Val=b"a").node.key, "/1/q/00000000000000000001")
        self.assertEqual(self.do("QGET", b"/1/q", Recursive=True, Sorted=True).node.nodes[0].value, "a")
        self.assertIs(self.refused("DELETE", b"/1/q", Dir=True), V2Code.DIR_NOT_EMPTY)
        self.assertIs(self.do("DELETE", b"/1/q", Recursive=True).action, Action.DELETE)
        self.do("PUT", Val=b"v")
        self.assertIs(self.refused("DELETE", PrevValue=b"w"), V2Code.TEST_FAILED)
        self.assertIs(self.do("DELETE", PrevIndex=self.directory.index).action, Action.COMPARE_AND_DELETE)
        self.assertIs(self.refused("PATCH"), V2Code.RAFT_INTERNAL)

    def test_time(self) -> None:
        """A key goes when an entry says that its end is over; one with a new end in time does not."""
        end = 1_700_000_000_000_000_000
        self.do("PUT", Val=b"v", Expiration=end)
        self.do("PUT", b"/1/other", Expiration=end)
        self.do("PUT", b"/1/other", PrevExist=True, Expiration=end + 1, Refresh=True)
        self.assertIsNone(carry_out(Request(Method="SYNC", Time=end - 1), self.directory))
        self.assertIsNotNone(self.directory.node("/1/k"))
        self.assertIsNone(carry_out(Request(Method="SYNC", Time=end), self.directory))
        self.assertIsNone(self.directory.node("/1/k"))
        self.assertIsNotNone(self.directory.node("/1/other"))

    def test_bytes_that_are_no_text(self) -> None:
        """What clients write may be any bytes, and those are compared."""
        self.do("PUT", b"/1/\xff", Val=b"\xfe")
        self.assertIs(self.refused("PUT", b"/1/\xff", PrevValue=b"\xfd"), V2Code.TEST_FAILED)
        event = self.do("PUT", b"/1/\xff", PrevValue=b"\xfe", Val=b"ok")
        self.assertEqual(event.node.key.encode("utf-8", "surrogateescape"), b"/1/\xff")
