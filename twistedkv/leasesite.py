"""What the leader's peer port answers to members whose clients renew leases or ask about them.

Statuses and texts are etcd's (``server/lease/leasehttp/http.go``); its members match on them. Other than etcd 3.5.1, a
member that does not lead says so to both questions, for it does not know how long a lease has left.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError, Message
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime

from twistedkv.errors import KVError, LeaseNotFoundError
from twistedkv.leaseforward import NOT_FOUND, PROTOBUF
from twistedkv.leaseprimary import NotPrimaryError, PrimaryLessor
from twistedkv.pb.lease_pb2 import LeaseInternalRequest, LeaseInternalResponse
from twistedkv.pb.rpc_pb2 import LeaseKeepAliveRequest, LeaseKeepAliveResponse
from twistedkv.protocols.answers import Answer, Fields, error_text

APPLY_TIMEOUT_S: Final = 1.0  # for the state to catch up; etcd http.go, applyTimeout
ENDED_TIMEOUT_S: Final = 10.0  # for a lease that has ended to be revoked; who asks gives up before
MAX_BODY_BYTES: Final = 64 * 1024  # a question has about ten

_PROTOBUF: Final = Fields([(b"Content-Type", PROTOBUF.encode())])
_NO_MESSAGE: Final = error_text(400, "error unmarshalling request")
_TOO_LONG: Final = error_text(413, "http: request body too large")
_BEHIND: Final = error_text(408, "waiting for node to catch up its applied index has timed out")
_UNKNOWN: Final = error_text(404, NOT_FOUND.decode())


class Request(Protocol):
    """What is needed of a question; see :class:`twistedkv.peersite.PeerRequest`."""

    @property
    def body(self) -> bytes: ...


class LeaseSite:
    """Answers ``/leases`` and ``/leases/internal`` of the peer port, to POST alone.

    Args:
        primary: the lessor of this member.
        reactor: for the time-outs.
    """

    def __init__(self, primary: PrimaryLessor, reactor: IReactorTime) -> None:
        self._primary = primary
        self._reactor = reactor

    def renew(self, request: Request) -> Deferred[Answer]:
        """Renews a lease: a LeaseKeepAliveRequest for a LeaseKeepAliveResponse without a header."""
        return Deferred.fromCoroutine(_answer(self._renew, request.body))

    def time_to_live(self, request: Request) -> Deferred[Answer]:
        """Says how long a lease has left: a LeaseInternalRequest for a LeaseInternalResponse."""
        return Deferred.fromCoroutine(_answer(self._time_to_live, request.body))

    async def _renew(self, body: bytes) -> Message:
        request = LeaseKeepAliveRequest.FromString(body)
        await self._caught_up()
        renewal = Deferred.fromCoroutine(self._primary.renew(request.ID))
        ttl_s = await renewal.addTimeout(ENDED_TIMEOUT_S, self._reactor)
        return LeaseKeepAliveResponse(ID=request.ID, TTL=ttl_s)

    async def _time_to_live(self, body: bytes) -> Message:
        internal = LeaseInternalRequest.FromString(body)
        if not internal.HasField("LeaseTimeToLiveRequest"):
            raise DecodeError("a question about nothing")  # etcd 3.5.1 drops the connection
        request = internal.LeaseTimeToLiveRequest
        await self._caught_up()
        response = LeaseInternalResponse(
            LeaseTimeToLiveResponse=await self._primary.time_to_live(request.ID, request.keys)
        )
        # It has to be there: a member of etcd fills it in for its client, and ends itself if it cannot.
        response.LeaseTimeToLiveResponse.header.SetInParent()
        return response

    def _caught_up(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._primary.up_to_date()).addTimeout(APPLY_TIMEOUT_S, self._reactor)


async def _answer(carry_out: Callable[[bytes], Coroutine[Any, Any, Message]], body: bytes) -> Answer:
    """The answer to one question, whatever comes of it."""
    if len(body) > MAX_BODY_BYTES:
        return _TOO_LONG
    try:
        return Answer(200, _PROTOBUF, (await carry_out(body)).SerializeToString())
    except DecodeError:
        return _NO_MESSAGE
    except LeaseNotFoundError:
        return _UNKNOWN
    except TimeoutError:
        return _BEHIND
    except (NotPrimaryError, KVError) as error:
        return error_text(400, str(error))
