"""Exceptions to gRPC status."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.errors import Code, CompactedError, RPCError
from twistedkv.protocols.status import status_of


class StatusTests(SynchronousTestCase):
    """What a client is told of an exception, and what is logged."""

    def test_refusals_are_not_logged(self) -> None:
        """A KVError gives its own code and text."""
        logged: list[object] = []
        cases = {
            CompactedError(): (11, "etcdserver: mvcc: required revision has been compacted"),
            RPCError(Code.ABORTED, "as it says"): (10, "as it says"),
        }
        for error, status in cases.items():
            self.assertEqual(status_of(error, "/a/b", lambda *args: logged.append(args)), status)
        self.assertEqual(logged, [])

    def test_undecodable_requests(self) -> None:
        """A request that is no protobuf is INTERNAL in grpc-go's words, which differ for streams."""
        texts = {
            False: "grpc: error unmarshalling request: broken",
            True: "grpc: failed to unmarshal the received message broken",
        }
        for streaming, text in texts.items():
            self.assertEqual(status_of(DecodeError("broken"), "/a/b", self.fail, streaming), (13, text))

    def test_bugs_are_logged(self) -> None:
        """Any other exception is UNKNOWN with its text, and logged with the method's path."""
        logged: list[tuple[BaseException, str]] = []
        bug = ZeroDivisionError("oops")
        self.assertEqual(status_of(bug, "/a/b", lambda *args: logged.append(args)), (2, "oops"))
        self.assertEqual(logged, [(bug, "/a/b")])
