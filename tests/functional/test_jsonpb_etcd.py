"""Our JSON against the gateway of a real etcd 3.5.1: what is refused and with which words, and what is answered."""

from __future__ import annotations

import http.client
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import Message
from twisted.trial.unittest import SynchronousTestCase

from tests.functional.processes import MISSING_ETCD, EtcdProcess
from twistedkv.pb import rpc_pb2
from twistedkv.protocols.jsonpb import JSONError, from_json, to_json

TYPES: dict[str, tuple[type[Message], type[Message]]] = {
    "/v3/kv/range": (rpc_pb2.RangeRequest, rpc_pb2.RangeResponse),
    "/v3/kv/txn": (rpc_pb2.TxnRequest, rpc_pb2.TxnResponse),
    "/v3/kv/deleterange": (rpc_pb2.DeleteRangeRequest, rpc_pb2.DeleteRangeResponse),
    "/v3/auth/role/get": (rpc_pb2.AuthRoleGetRequest, rpc_pb2.AuthRoleGetResponse),
    "/v3/cluster/member/add": (rpc_pb2.MemberAddRequest, rpc_pb2.MemberAddResponse),
    "/v3/maintenance/transfer-leadership": (rpc_pb2.MoveLeaderRequest, rpc_pb2.MoveLeaderResponse),
    "/v3/lease/timetolive": (rpc_pb2.LeaseTimeToLiveRequest, rpc_pb2.LeaseTimeToLiveResponse),
}

VALUES = (  # what stands where a value should, right and wrong; separated by blanks
    b"null true false tru trux nulL nul falsy 0 -0 -1 5 1.5 1e3 1E+2 1.0 300 05 +5 5x - -x 1. 1.x 1e 1e+ .5 2147483648 "
    b"9223372036854775807 9223372036854775808 -9223372036854775808 18446744073709551615 18446744073709551616 "
    b'99999999999999999999999999 "" "5" "-1" "05" "+5" "5_0" "1e3" "1.5" "true" "null" "{}" "[]" "{" "nul" "5x" "-" '
    b'"\\u0035" "5\\n" "9223372036854775808" "Zm9v" "Zm9" "Zg" "Z" "Zg=" "Zg==" "Zg===" "Zh==" "Zm9vZg" "Zm8=" "Zm8==" '
    b'"Zm8=x" "Zm9v====" "Zm9v=" "=" "==" "Z===" "Zm9v\\tZm9v" "Zm\\n9v" "Zm8\\r\\n=" "Zg=\\n=" "Zg=\\n" "Zg==\\nx" '
    b'"Zm-_" "Zm9\\u0076" "\\/\\/8=" "Zm\xc3\xa99v" "Zm9v\xff" "ASCEND" "ascend" "FOO" "1" "KEY" "\\u0041SCEND" '
    b'"AS\xffC" "\xe2\x82x" "\xed\xa0\x80" "\\ud800" "\\ud83d\\ude00" "\\ud83d\\u0041" "\\ude00\\ud83d" "<&>" "\\x" '
    b'"\\u12" "\\u12g4" "\\b\\f\\t\\v" "a\x7fb" "a\x01b" "abc {} [] [1] [1,2,3] [1,300] [1,-1] [null] [null,5] [true] '
    b'[[]] [{}] {"key":"Zm9v"} {"a" {"a"5} {"a":} {"a":5,} {5:5} {,} [1,] [,1] [1x] [1} {]} '
    b"' ` \\ \x00 \x7f \x80 \xa0 \xef\xbb\xbf{} NaN Infinity // /**/"
).split(b" ")

FIELDS = {
    "/v3/kv/range": ("key", "limit", "sort_order", "sortTarget", "serializable", "unknown", "[x.y]"),
    "/v3/kv/txn": ("compare", "success"),
    "/v3/kv/deleterange": ("range_end",),
    "/v3/auth/role/get": ("role",),
    "/v3/cluster/member/add": ("peerURLs",),
    "/v3/maintenance/transfer-leadership": ("targetID",),
}  # None of these changes the membership: Raft drops a second change in a row, and etcd then never answers it.

RANGES = (
    b"", b" \n\t", b"{}{}", b"{}nox", b"{} {", b"\r\n{}",
    b'{"limit":"x","limit":"5"}', b'{"limit":"5","limit":"x"}', b'{"key":"Zg==","key":"Zm9v","limit":true}',
    b'{"sort_order":"FOO","sortOrder":"ASCEND"}', b'{"sortOrder":null,"sort_order":"FOO"}',
    b'{"limit":"x","key":"Zm9"}', b'{"key":"Zm9","limit":"x"}',
    b'{"KEY":5}', b'{"Limit":"x"}', b'{"k\\u0065y":5}', b'{"k\xffy":5}',
    b"[" * 10_000, b"[" * 10_001,
    b'{"a":' + b"[" * 9_999 + b"]" * 9_999 + b',"limit":"x"}',
    b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b',"limit":"x"}',
)  # fmt: skip

TXNS = (
    b'{"compare":[{"result":"FOO"}]}',
    b'{"compare":[{"target":"FOO"}]}',
    b'{"compare":[{"version":"x"}]}',
    b'{"compare":[{"key":"Zm9v","version":"1"},{"value":"Zm9"}]}',
    b'{"success":[{"request_put":{"key":"Zm9"}}]}',
    b'{"success":[{"requestPut":{"key":"Zm9"}}]}',
    b'{"failure":[{"request_txn":{"success":[{"request_range":{"limit":{}}}]}}]}',
    b'{"success":[{"request_put":null}]}',
    b'{"success":[{"request_put":5}]}',
    b'{"success":[{"request_put":{"key":"Zm9"},"request_range":{"key":"Zm"}}]}',
    b'{"success":[{"request_range":{"key":"Zm"},"request_put":{"key":"Zm9"}}]}',
)


def _bodies() -> Iterator[tuple[str, bytes]]:
    for value in VALUES:
        yield "/v3/kv/range", value
        yield "/v3/kv/range", value + b" x"
        for path, fields in FIELDS.items():
            for field in fields:
                yield path, b'{"%s":%s}' % (field.encode(), value)
    for body in RANGES:
        yield "/v3/kv/range", body
    for body in TXNS:
        yield "/v3/kv/txn", body


def _pairs(text: str) -> list[tuple[str, object]]:
    """JSON with the order of its members kept, so that a comparison sees it."""
    pairs: list[tuple[str, object]] = json.loads(text, object_pairs_hook=list)
    return pairs


class JSONOfEtcdTests(SynchronousTestCase):
    """What a client posts, and what it reads."""

    skip = MISSING_ETCD

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        server = EtcdProcess(Path(directory.name))
        self.addCleanup(server.stop)
        server.start()
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        self.addCleanup(self.connection.close)

    def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Post a body; status and answer."""
        self.connection.request("POST", path, body)
        response = self.connection.getresponse()
        return response.status, response.read().rstrip(b"\n")

    def assert_same_verdict(self, path: str, body: bytes) -> None:
        """Both refuse the body with equal words, or neither does."""
        status, answer = self.ask(path, body)
        theirs = json.loads(answer).get("message", "") if status == 400 else ""
        try:
            from_json(body, TYPES[path][0])
        except JSONError as error:
            self.assertEqual((status, str(error)), (400, theirs), f"{path} {body[:80]!r}")
        else:
            self.assertTrue(not theirs or theirs.startswith("etcdserver: "), f"{path} {body[:80]!r}: {theirs}")

    def test_bad_bodies_are_refused_with_the_same_words(self) -> None:
        """A body that etcd refuses is refused with its words, and what it takes is taken."""
        for path, body in _bodies():
            self.assert_same_verdict(path, body)

    def test_cut_and_damaged_bodies_give_the_same_words(self) -> None:
        """A body cut off anywhere, or with any one byte changed, gets etcd's verdict."""
        path = "/v3/kv/range"
        body = (
            b'{"key":"Zm9v","limit":"5","sort_order":"DESCEND","serializable":true,"x":[1.5e+3,null,{"y":"\\u00e9"}]}'
        )
        for end in range(len(body)):
            self.assert_same_verdict(path, body[:end])
        dice = random.Random(35)
        for _ in range(400):
            place = dice.randrange(len(body))
            self.assert_same_verdict(path, body[:place] + bytes((dice.randrange(256),)) + body[place + 1 :])

    def test_accepted_bodies_mean_the_same(self) -> None:
        """What etcd stores for an odd but accepted key is what our reading of the body says."""
        for value in VALUES:
            body = b'{"key":[120,1],"value":' + value + b"}"
            status, _ = self.ask("/v3/kv/put", body)
            if status != 200:
                continue
            expected = from_json(body, rpc_pb2.PutRequest)
            _, answer = self.ask("/v3/kv/range", b'{"key":"eAE="}')
            (kv,) = from_json(answer, rpc_pb2.RangeResponse).kvs
            self.assertEqual((kv.key, kv.value), (expected.key, expected.value), body)

    def test_answers_are_written_byte_for_byte(self) -> None:
        """Every answer that we read and write again is what etcd wrote, in its order and with its escapes."""
        name = b'<a&b>\\u2028\\u007f\\u00e9\\ud83d\\ude00\\n\\u0001\\"\\\\/'
        requests: list[tuple[str, bytes, type[Message]]] = [
            ("/v3/kv/put", b'{"key":"AAH/","value":"YmFy","lease":"0"}', rpc_pb2.PutResponse),
            ("/v3/kv/put", b'{"key":"AAH/","prev_kv":true}', rpc_pb2.PutResponse),
            ("/v3/kv/range", b'{"key":"AA==","range_end":"AA=="}', rpc_pb2.RangeResponse),
            ("/v3/kv/range", b'{"key":"AA==","range_end":"AA==","limit":1}', rpc_pb2.RangeResponse),
            (
                "/v3/kv/txn",
                b'{"compare":[{"key":"eg==","version":"0"}],"success":[{"request_txn":{"success":[{"request_put":{"key":"eg=="}}]}},'
                b'{"request_range":{"key":"eg=="}},{"request_delete_range":{"key":"eQ=="}}]}',
                rpc_pb2.TxnResponse,
            ),
            ("/v3/kv/deleterange", b'{"key":"AA==","range_end":"AA==","prev_kv":true}', rpc_pb2.DeleteRangeResponse),
            ("/v3/lease/grant", b'{"TTL":60,"ID":7}', rpc_pb2.LeaseGrantResponse),
            ("/v3/lease/leases", b"", rpc_pb2.LeaseLeasesResponse),
            ("/v3/auth/user/add", b'{"name":"' + name + b'","password":"x"}', rpc_pb2.AuthUserAddResponse),
            ("/v3/auth/user/list", b"", rpc_pb2.AuthUserListResponse),
            ("/v3/auth/role/add", b'{"name":"r"}', rpc_pb2.AuthRoleAddResponse),
            (
                "/v3/auth/role/grant",
                b'{"name":"r","perm":{"permType":"READWRITE","key":"YQ=="}}',
                rpc_pb2.AuthRoleGrantPermissionResponse,
            ),
            ("/v3/auth/role/get", b'{"role":"r"}', rpc_pb2.AuthRoleGetResponse),
            ("/v3/auth/status", b"", rpc_pb2.AuthStatusResponse),
            ("/v3/cluster/member/list", b"", rpc_pb2.MemberListResponse),
            ("/v3/maintenance/status", b"", rpc_pb2.StatusResponse),
            ("/v3/maintenance/hash", b"", rpc_pb2.HashResponse),
            ("/v3/maintenance/alarm", b'{"action":"ACTIVATE","alarm":"NOSPACE"}', rpc_pb2.AlarmResponse),
            ("/v3/maintenance/alarm", b'{"action":"DEACTIVATE","alarm":1}', rpc_pb2.AlarmResponse),
        ]  # fmt: skip
        for path, body, message_type in requests:
            status, answer = self.ask(path, body)
            self.assertEqual(status, 200, answer)
            self.assertEqual(to_json(from_json(answer, message_type)), answer)
            self.assertEqual(_pairs(to_json(from_json(answer, message_type)).decode()), _pairs(answer.decode()))
