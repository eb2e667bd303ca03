"""Every way in which the store says no: etcd's gRPC code and text on one class each.

Texts and codes are etcd's ``api/v3rpc/rpctypes/error.go``; clients match on both. Only
:mod:`twistedkv.protocols.status` turns these into bytes on a wire.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """gRPC status codes. Source: grpc/grpc ``doc/statuscodes.md``."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class KVError(Exception):
    """A refusal that a client sees. ``code`` and ``text`` are what goes on the wire."""

    code: ClassVar[Code] = Code.UNKNOWN
    text: ClassVar[str] = "unknown error"

    def __str__(self) -> str:
        return self.text


class InvariantError(Exception):
    """Our own state is wrong: the member stops rather than serve it."""


class RemovedError(Exception):
    """This member is in the cluster no more, and stops; etcd ``server/etcdserver/server.go`` has these words."""

    def __init__(self) -> None:
        super().__init__("the member has been permanently removed from the cluster")


class InconsistentDataError(Exception):
    """Other members hold something else than this one, which must not serve."""


class RPCError(KVError):
    """A status decided by the RPC layer or by a raw text, not one of etcd's fixed errors.

    Args:
        status: the gRPC code.
        message: the text for the client.
    """

    def __init__(self, status: Code, message: str) -> None:
        super().__init__(message)
        self.code = status  # type: ignore[misc]
        self.text = message  # type: ignore[misc]


class UnimplementedError(RPCError):
    """The method is not one that this server has; the text is grpc-go's."""

    def __init__(self, path: str) -> None:
        service, _, method = path.lstrip("/").rpartition("/")
        super().__init__(Code.UNIMPLEMENTED, f"unknown method {method} for service {service}")


# --- requests that are wrong in themselves ---------------------------------------------------------


class EmptyKeyError(KVError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: key is not provided"


class KeyNotFoundError(KVError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: key not found"


class ValueProvidedError(KVError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: value is provided"


class LeaseProvidedError(KVError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: lease is provided"


class TooManyOpsError(KVError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request"


class DuplicateKeyError(KVError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"


class InvalidSortOptionError(KVError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: invalid sort option"


class RequestTooLargeError(KVError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: request is too large"


# --- revisions and space ---------------------------------------------------------------------------


class CompactedError(KVError):
    code, text = Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"


class FutureRevisionError(KVError):
    code, text = Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision"


class NoSpaceError(KVError):
    code, text = Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"


class TooManyRequestsError(KVError):
    # The wire code is UNKNOWN, not RESOURCE_EXHAUSTED: etcd maps this one to a client-side error object.
    code, text = Code.UNKNOWN, "etcdserver: too many requests"


# --- leases ----------------------------------------------------------------------------------------


class LeaseNotFoundError(KVError):
    code, text = Code.NOT_FOUND, "etcdserver: requested lease not found"


class LeaseExistsError(KVError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: lease already exists"


class LeaseTTLTooLargeError(KVError):
    code, text = Code.OUT_OF_RANGE, "etcdserver: too large lease TTL"


# --- the cluster -----------------------------------------------------------------------------------


class NoLeaderError(KVError):
    code, text = Code.UNAVAILABLE, "etcdserver: no leader"


class NotLeaderError(KVError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: not leader"


class LeaderChangedError(KVError):
    code, text = Code.UNAVAILABLE, "etcdserver: leader changed"


class StoppedError(KVError):
    code, text = Code.UNAVAILABLE, "etcdserver: server stopped"


class RequestTimeoutError(KVError):
    code, text = Code.UNAVAILABLE, "etcdserver: request timed out"


class LeaderFailureTimeoutError(KVError):
    code, text = Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure"


class ConnectionLostTimeoutError(KVError):
    code, text = Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to connection lost"


class CorruptError(KVError):
    code, text = Code.DATA_LOSS, "etcdserver: corrupt cluster"


class BadLeaderTransfereeError(KVError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee"


class LeaderTransferTimeoutError(KVError):
    # The wire code is UNKNOWN: etcd does not map this one.
    code, text = Code.UNKNOWN, "etcdserver: request timed out, leader transfer took too long"


class NotForLearnerError(KVError):
    code, text = Code.UNAVAILABLE, "etcdserver: rpc not supported for learner"


class MemberNotFoundError(KVError):
    code, text = Code.NOT_FOUND, "etcdserver: member not found"


class MemberExistsError(KVError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: member ID already exist"


class PeerURLExistsError(KVError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: Peer URLs already exists"


class NotEnoughStartedError(KVError):
    # The wire code is UNKNOWN: etcd maps this one to a client-side error object.
    code, text = Code.UNKNOWN, "etcdserver: re-configuration failed due to not enough started members"


class InvalidMemberURLsError(KVError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: given member URLs are invalid"


class NotLearnerError(KVError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: can only promote a learner member"


class LearnerNotReadyError(KVError):
    code = Code.FAILED_PRECONDITION
    text = "etcdserver: can only promote a learner member which is in sync with leader"


class TooManyLearnersError(KVError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: too many learner members in cluster"


class UnhealthyError(KVError):
    code, text = Code.UNAVAILABLE, "etcdserver: unhealthy cluster"


class ClusterVersionUnavailableError(KVError):
    code, text = Code.UNAVAILABLE, "etcdserver: cluster version not found during downgrade"


class DowngradeFormatError(KVError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: wrong downgrade target version format"


class DowngradeTargetError(KVError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: invalid downgrade target version"


class DowngradeInProgressError(KVError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: cluster has a downgrade job in progress"


class NoDowngradeError(KVError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: no inflight downgrade job"


# --- users and permissions -------------------------------------------------------------------------


class UserEmptyError(KVError):
    code, text = Code.INVALID_ARGUMENT, "etcdserver: user name is empty"


class InvalidAuthTokenError(KVError):
    code, text = Code.UNAUTHENTICATED, "etcdserver: invalid auth token"


class PermissionDeniedError(KVError):
    code, text = Code.PERMISSION_DENIED, "etcdserver: permission denied"


class AuthNotEnabledError(KVError):
    code, text = Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled"
