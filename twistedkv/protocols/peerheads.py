"""What members tell each other about themselves in the header of every request, and what of it keeps one out.

Source: etcd ``server/etcdserver/api/rafthttp/{util,http,stream,peer}.go``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from twistedkv.optiontypes import Url
from twistedkv.protocols.msgappv2 import StreamKind

PIPELINE_PATH: Final = "/raft"
STREAM_PATH: Final = "/raft/stream/"
SNAPSHOT_PATH: Final = "/raft/snapshot"
PROBING_PATH: Final = "/raft/probing"
MEMBERS_PATH: Final = "/members"
VERSION_PATH: Final = "/version"

CRC_FIELD: Final = "X-Twistedkv-Crc32c"  # of a snapshot's database, 8 hexadecimal digits; etcd sends none
MIN_CLUSTER_VERSION: Final = "3.0.0"  # etcd api/version/version.go
INCOMPATIBLE: Final = "incompatible version"
CLUSTER_ID_MISMATCH: Final = "cluster ID mismatch"

_NO_VERSION: Final = "2.0.0"  # who says nothing is from before the header was
_VERSION: Final = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})\.[0-9]{1,9}(?:[-+].*)?", re.ASCII)
_HEX: Final = re.compile(r"0*[0-9a-fA-F]{1,16}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a member is to others."""

    member_id: int
    cluster_id: int
    version: str  # of the server, as ``3.5.1``
    urls: tuple[str, ...]  # peer URLs by which others reach it

    def fields(self) -> str:
        """The header fields of each of its requests."""
        return (
            f"X-Server-From: {self.member_id:x}\r\nX-Server-Version: {self.version}\r\n"
            f"X-Min-Cluster-Version: {MIN_CLUSTER_VERSION}\r\nX-Etcd-Cluster-ID: {self.cluster_id:x}\r\n"
            f"X-PeerURLs: {','.join(self.urls)}\r\n"
        )

    def stream_request(self, kind: StreamKind, to: int, url: Url) -> bytes:
        """Asks ``to`` for a stream to us."""
        path = f"{STREAM_PATH}{kind.value}/{self.member_id:x}"
        return f"GET {path} HTTP/1.1\r\nHost: {_host(url)}\r\n{self.fields()}X-Raft-To: {to:x}\r\n\r\n".encode(
            "latin-1"
        )

    def post_request(self, message: bytes, url: Url) -> bytes:
        """Delivers one raftpb.Message."""
        head = (
            f"POST {PIPELINE_PATH} HTTP/1.1\r\nHost: {_host(url)}\r\n{self.fields()}"
            f"Content-Type: application/protobuf\r\nContent-Length: {len(message)}\r\n\r\n"
        )
        return head.encode("latin-1") + message

    def snapshot_request(self, url: Url, crc32c: int) -> bytes:
        """The head of a snapshot's delivery; its body comes in chunks. ``crc32c`` is of the database in it."""
        return (
            f"POST {SNAPSHOT_PATH} HTTP/1.1\r\nHost: {_host(url)}\r\n{self.fields()}{CRC_FIELD}: {crc32c:08x}\r\n"
            "Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        ).encode("latin-1")

    def refusal(self, fields: Mapping[str, str]) -> str | None:
        """Why a sender with these header fields is none of this cluster, or not of this age; ``None`` if it is.

        Its version must be able to take part, and so must ours by its own count.
        """
        theirs = _major_minor(fields.get("x-server-version", _NO_VERSION))
        they_need = _major_minor(fields.get("x-min-cluster-version", _NO_VERSION))
        ours, we_need = _major_minor(self.version), _major_minor(MIN_CLUSTER_VERSION)
        if not theirs or not they_need or not ours or not we_need or theirs < we_need or they_need > ours:
            return INCOMPATIBLE
        return None if fields.get("x-etcd-cluster-id") == f"{self.cluster_id:x}" else CLUSTER_ID_MISMATCH

    def refusal_of_answer(self, fields: Mapping[str, str]) -> str | None:
        """Why whoever answered with these header fields is no peer of ours; ``None`` if it is."""
        theirs, we_need = _major_minor(fields.get("x-server-version", _NO_VERSION)), _major_minor(MIN_CLUSTER_VERSION)
        if not theirs or not we_need or theirs < we_need:
            return INCOMPATIBLE
        ours = f"{self.cluster_id:x}"
        return None if fields.get("x-etcd-cluster-id", ours) == ours else CLUSTER_ID_MISMATCH


def get_request(path: str, url: Url) -> bytes:
    """A plain question."""
    return f"GET {path} HTTP/1.1\r\nHost: {_host(url)}\r\n\r\n".encode("latin-1")


def plain_request(method: str, path: str, body: bytes, content_type: str, url: Url) -> bytes:
    """A question with a body, which a GET may have too (etcd ``server/etcdserver/corrupt.go``)."""
    kind = f"Content-Type: {content_type}\r\n" if content_type else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: {_host(url)}\r\n{kind}Content-Length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


def parse_id(text: str) -> int | None:
    """An id as hexadecimal text; ``None`` if it is none. 0 is nobody's."""
    return int(text, 16) or None if _HEX.fullmatch(text) else None


def parse_crc(text: str | None) -> int | None:
    """The checksum of a snapshot's database; ``None`` if its sender gives none, or none that is one."""
    return int(text, 16) if text is not None and len(text) == 8 and _HEX.fullmatch(text) else None


def sender_urls(fields: Mapping[str, str]) -> Sequence[str]:
    """Where the sender says that it can be reached; empty if it does not."""
    text = fields.get("x-peerurls", "")
    return text.split(",") if text else ()


def _host(url: Url) -> str:
    return str(url).partition("://")[2]


def _major_minor(version: str) -> tuple[int, int] | None:
    found = _VERSION.fullmatch(version)
    return None if found is None else (int(found[1]), int(found[2]))
