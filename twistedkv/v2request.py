"""Requests of etcd's v2 store in the log: those for its keys, and what members before 3.6 say of themselves.

A log entry holds either an ``InternalRaftRequest`` or a bare ``etcdserverpb.Request``. Their first bytes tell them
apart: the id of a ``Request`` is its first field and never 0, while nobody has written field 1 of an
``InternalRaftRequest`` since etcd 3.1.

Sources: etcd ``server/etcdserver/server.go`` (applyEntryNormal), ``apply_v2.go`` (applyV2Request, applierV2store) and
``api/membership/store.go`` for the paths.
"""

from __future__ import annotations

import json
import re
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.pb.membership_pb2 import Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest, RequestHeader
from twistedkv.storage.directory import Directory
from twistedkv.v2errors import V2Code, V2Error
from twistedkv.v2events import Event
from twistedkv.wire import varint_of_id

_ID_TAG: Final = 0x08  # field 1, varint
# etcd's pattern has no anchors, so that a client's key that ends this way ends an etcd member.
_ATTRIBUTES: Final = re.compile(rb"/0/members/([0-9a-f]{1,16})/attributes")
_VERSION_PATH: Final = b"/0/version"


class PlainSet(NamedTuple):
    """A request that sets a file to a value, says nothing else, and was made by this member: it need not be decoded."""

    ID: int
    path: str
    value: str


def encode_entry(request_id: int, fields: bytes) -> bytes:
    """The entry for an encoded ``Request`` that has no id yet."""
    return b"\x08" + varint_of_id(request_id) + fields


def decode_entry(data: bytes) -> InternalRaftRequest | Request:
    """What a normal entry asks for: in the form of etcd 3.6 also where an older member wrote it, or for keys of v2.

    Raises:
        ValueError: it is no request, or one about members that is malformed.
    """
    try:
        if not data or data[0] != _ID_TAG:
            return InternalRaftRequest.FromString(data)
        request = Request.FromString(data)
    except DecodeError as error:
        raise ValueError(f"a log entry that is no request: {error}") from error
    path = request.Path
    if not path.startswith(b"/0/") or not _is_set(request):
        return request
    made = InternalRaftRequest(header=RequestHeader(ID=request.ID))
    found = _ATTRIBUTES.fullmatch(path)
    if found is not None:
        made.cluster_member_attr_set.CopyFrom(_attributes(int(found[1], 16), request.Val))
    elif path == _VERSION_PATH:
        made.cluster_version_set.CopyFrom(ClusterVersionSetRequest(ver=request.Val.decode()))
    else:
        return request
    return made


def carry_out(request: Request | PlainSet, directory: Directory) -> Event | None:
    """Do what a request for v2 keys asks for; None if nobody is to be told of one event, because it made any number.

    Raises:
        V2Error: it was refused, and nothing was changed.
    """
    if isinstance(request, PlainSet):
        return directory.set(request.path, False, request.value)
    path = _text(request.Path)
    match request.Method:
        case "PUT":
            return _put(request, path, directory)
        case "POST":
            return directory.create(path, request.Dir, _text(request.Val), request.Expiration, unique=True)
        case "DELETE":
            if request.PrevIndex or request.PrevValue:
                return directory.compare_and_delete(path, _text(request.PrevValue), request.PrevIndex)
            return directory.delete(path, request.Dir, request.Recursive)
        case "QGET":  # members of etcd ask this way for a linearizable read
            return directory.get(path, request.Recursive, request.Sorted)
        case "SYNC":
            directory.expire(request.Time)
            return None
    raise V2Error(V2Code.RAFT_INTERNAL, "etcdserver: unknown method")


def _put(request: Request, path: str, directory: Directory) -> Event:
    value, expires_ns, refresh = _text(request.Val), request.Expiration, request.Refresh
    conditional = request.HasField("PrevExist")
    if conditional and not request.PrevExist:
        return directory.create(path, request.Dir, value, expires_ns)
    if request.PrevIndex or request.PrevValue:
        previous = _text(request.PrevValue)
        return directory.compare_and_swap(path, previous, request.PrevIndex, value, expires_ns, refresh=refresh)
    if conditional:
        return directory.update(path, value, expires_ns, refresh=refresh)
    return directory.set(path, request.Dir, value, expires_ns, refresh=refresh)


def _is_set(request: Request) -> bool:
    conditional = request.PrevIndex or request.PrevValue or request.HasField("PrevExist")
    return request.Method == "PUT" and not conditional


def _attributes(member_id: int, text: bytes) -> ClusterMemberAttrSetRequest:
    try:
        fields = json.loads(text)
        attributes = Attributes(name=fields.get("name", ""), client_urls=fields.get("clientURLs") or ())
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"a member's attributes are {text!r}") from error
    return ClusterMemberAttrSetRequest(member_ID=member_id, member_attributes=attributes)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
