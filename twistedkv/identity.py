"""Ids that are unique in the cluster without asking anybody. Source: etcd ``pkg/idutil/id.go``."""

from __future__ import annotations

META_MEMBER = b"member_id"  # in Bucket.META, as hex: whose database this is
META_CLUSTER = b"cluster_id"

_MEMBER_SHIFT, _TIME_SHIFT = 48, 8
_TIME_MASK = (1 << 40) - 1
_SUFFIX_MASK = (1 << _MEMBER_SHIFT) - 1


class RequestIds:
    """Request ids: 2 low bytes of the member id, then 40 bits of its start time in milliseconds and an 8-bit counter.

    The counter runs on into the time, so that a member makes as many as it needs; a restart begins with a later time
    and repeats none, as long as it made fewer than 256 a millisecond on average.

    Args:
        member_id: of the member that makes them.
        start_ms: when it started.
    """

    def __init__(self, member_id: int, start_ms: int) -> None:
        self._prefix = (member_id & 0xFFFF) << _MEMBER_SHIFT
        self._suffix = (start_ms & _TIME_MASK) << _TIME_SHIFT

    def next(self) -> int:
        """An id that this member never made before; unsigned, 64 bits."""
        self._suffix = (self._suffix + 1) & _SUFFIX_MASK
        return self._prefix | self._suffix
