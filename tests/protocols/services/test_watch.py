"""The Watch service: requests in, the hub's answers out, and a client that does not read."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from twisted.trial.unittest import SynchronousTestCase

from tests.calls import RecordedCall
from tests.watchworld import World
from twistedkv.pb.rpc_pb2 import (
    WatchCancelRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from twistedkv.protocols.services.watch import WatchService
from twistedkv.watch import WatchHub


class Member:
    def __init__(self, hub: WatchHub) -> None:
        self.hub = hub


class PausableCall(RecordedCall):
    paused = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


class WatchServiceTests(SynchronousTestCase):
    """One call."""

    def setUp(self) -> None:
        self.world = World()
        self.member = Member(self.world.hub)
        (self.method,) = WatchService(self.member).methods()

    def call(self) -> PausableCall:
        call = PausableCall(self.method)
        call.run()
        return call

    def ask(self, call: PausableCall, request: WatchRequest) -> None:
        assert call.on_message is not None
        call.on_message(request.SerializeToString())

    def read(self, call: PausableCall) -> list[WatchResponse]:
        sent, call.sent = call.sent, []
        return [WatchResponse.FromString(message) for message in sent]

    def test_requests_reach_the_stream(self) -> None:
        """A watch is made, asked for progress and cancelled; a request without content is passed over."""
        call = self.call()
        self.ask(call, WatchRequest(create_request=WatchCreateRequest(key=b"k")))
        self.ask(call, WatchRequest())
        self.ask(call, WatchRequest(progress_request=WatchProgressRequest()))
        self.ask(call, WatchRequest(cancel_request=WatchCancelRequest(watch_id=0)))
        created, progress, canceled = self.read(call)
        self.assertEqual((created.created, progress.watch_id, canceled.canceled), (True, -1, True))

    def test_a_half_closed_call_goes_on(self) -> None:
        """A client that has nothing more to ask goes on to be told, as behind the JSON gateway."""
        call = self.call()
        self.ask(call, WatchRequest(create_request=WatchCreateRequest(key=b"k")))
        if call.on_half_close is not None:
            call.on_half_close()
        self.world.write((b"k", b"1"))
        self.assertEqual(len(self.read(call)), 2)
        self.assertFalse(call.done)

    def test_a_lost_client_is_forgotten(self) -> None:
        """When the call is cancelled its watches are gone."""
        call = self.call()
        self.ask(call, WatchRequest(create_request=WatchCreateRequest(key=b"k")))
        self.assertEqual((self.world.hub.streams, self.world.hub.watchers), (1, 1))
        assert call.on_cancel is not None
        call.on_cancel()
        self.assertEqual((self.world.hub.streams, self.world.hub.watchers), (0, 0))

    def test_a_request_that_is_no_message_ends_the_call(self) -> None:
        """Garbage ends the call and frees its watches, though nobody tells the handler of that end."""
        call = self.call()
        self.ask(call, WatchRequest(create_request=WatchCreateRequest(key=b"k")))
        assert call.on_message is not None
        self.assertRaises(DecodeError, call.on_message, b"\xff\xff\xff")
        self.assertEqual((self.world.hub.streams, self.world.hub.watchers), (0, 0))

    def test_who_does_not_read_cannot_ask(self) -> None:
        """Requests wait while answers do, and go on with the room for them."""
        call = self.call()
        call.room = False
        self.ask(call, WatchRequest(create_request=WatchCreateRequest(key=b"k")))
        self.assertTrue(call.paused)
        self.world.write((b"k", b"1"))
        self.assertEqual(len(self.read(call)), 1)
        call.room = True
        assert call.on_writable is not None
        call.on_writable()
        self.world.settle()
        self.assertFalse(call.paused)
        self.assertEqual([len(response.events) for response in self.read(call)], [1])
