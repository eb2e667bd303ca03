"""Requests of etcd's v2 store in the log: what members before 3.6 say of themselves comes in this form.

A log entry holds either an ``InternalRaftRequest`` or, from members of etcd 3.5 and older, a bare
``etcdserverpb.Request``. Their first bytes tell them apart: the id of a ``Request`` is its first field and never 0,
while nobody has written field 1 of an ``InternalRaftRequest`` since etcd 3.1.

Left out: requests for the keys of the v2 store, which have no effect here.

Sources: etcd ``server/etcdserver/server.go`` (applyEntryNormal), ``apply_v2.go`` (applyV2Request) and
``api/membership/store.go`` for the paths.
"""

from __future__ import annotations

import json
import re
from typing import Final

from google.protobuf.message import DecodeError

from twistedkv.pb.etcdserver_pb2 import Request
from twistedkv.pb.membership_pb2 import Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest
from twistedkv.pb.raft_internal_pb2 import InternalRaftRequest, RequestHeader

_ID_TAG: Final = 0x08  # field 1, varint
_ATTRIBUTES: Final = re.compile(r"/0/members/([0-9a-f]{1,16})/attributes")
_VERSION_PATH: Final = "/0/version"


def decode_entry(data: bytes) -> InternalRaftRequest:
    """What a normal entry asks for, in the form of etcd 3.6 also where an older member wrote it.

    Of a request for the keys of the v2 store only the header comes out.

    Raises:
        ValueError: it is no request, or one about members that is malformed.
    """
    try:
        if not data or data[0] != _ID_TAG:
            return InternalRaftRequest.FromString(data)
        request = Request.FromString(data)
    except DecodeError as error:
        raise ValueError(f"a log entry that is no request: {error}") from error
    made = InternalRaftRequest(header=RequestHeader(ID=request.ID))
    if request.Method == "PUT":
        found = _ATTRIBUTES.fullmatch(request.Path)
        if found is not None:
            made.cluster_member_attr_set.CopyFrom(_attributes(int(found[1], 16), request.Val))
        elif request.Path == _VERSION_PATH:
            made.cluster_version_set.CopyFrom(ClusterVersionSetRequest(ver=request.Val))
    return made


def _attributes(member_id: int, text: str) -> ClusterMemberAttrSetRequest:
    try:
        fields = json.loads(text)
        attributes = Attributes(name=fields.get("name", ""), client_urls=fields.get("clientURLs") or ())
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"a member's attributes are {text!r}") from error
    return ClusterMemberAttrSetRequest(member_ID=member_id, member_attributes=attributes)
