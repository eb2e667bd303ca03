"""Log entries in the forms of etcd 3.5 and 3.6: the same members and versions come out of both."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.pb.membership_pb2 import Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest, RequestHeader
from twistedkv.pb.rpc_pb2 import PutRequest
from twistedkv.v2request import decode_entry

# What members of etcd 3.5.1 wrote into their log: all fields, also those that are zero.
ZEROS = bytes.fromhex("2800320038004800500058006000680070007800800100")


def v2(method: str, path: str, value: str) -> bytes:
    """A request of the v2 store."""
    return Request(ID=7, Method=method, Path=path, Val=value).SerializeToString()


def attributes(path: str, fields: object) -> InternalRaftRequest:
    """What comes of a member's attributes."""
    return decode_entry(v2("PUT", path, json.dumps(fields)))


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
        for fields in ({}, {"name": "", "clientURLs": None}, {"clientURLs": []}):
            found = attributes("/0/members/a/attributes", fields).cluster_member_attr_set
            self.assertEqual((found.member_ID, found.member_attributes), (0xA, Attributes()))

    def test_the_cluster_s_version(self) -> None:
        """The leader of etcd 3.5 decides the cluster's version by a key of the v2 store."""
        found = decode_entry(v2("PUT", "/0/version", "3.5.0"))
        self.assertEqual(found.cluster_version_set, ClusterVersionSetRequest(ver="3.5.0"))

    def test_as_etcd_writes_it(self) -> None:
        """The zero fields that etcd writes change nothing."""
        body = b"\x08\x07\x12\x03PUT\x1a\x0a/0/version\x22\x053.5.0" + ZEROS
        self.assertEqual(decode_entry(body).cluster_version_set.ver, "3.5.0")

    def test_keys_of_the_v2_store(self) -> None:
        """A client's request for the v2 store leaves the id alone, so that nothing is carried out."""
        others = (
            v2("PUT", "/1/key", "v"),
            v2("DELETE", "/0/members/a/attributes", "{}"),
            v2("QGET", "/0/version", ""),
            v2("SYNC", "", ""),
            v2("PUT", "/0/members/a/raftAttributes", "{}"),
            v2("PUT", "/0/members/11112222333344445/attributes", "{}"),
        )
        for body in others:
            self.assertEqual(decode_entry(body), InternalRaftRequest(header=RequestHeader(ID=7)))

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
            self.assertIsInstance(decode_entry(body), InternalRaftRequest)

    @given(st.text(max_size=40))
    def test_any_attributes(self, text: str) -> None:
        """Whatever attributes a member gives, they are read or refused."""
        body = v2("PUT", "/0/members/a/attributes", text)
        try:
            found = decode_entry(body)
        except ValueError:
            return
        self.assertTrue(found.HasField("cluster_member_attr_set"))
