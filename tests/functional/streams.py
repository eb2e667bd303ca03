"""Streams as a test sees them: send now, look later. gRPC by grpcio, the gateway's streams by ``http.client``.

A thread of its own reads each stream into a list; the test waits for what it expects there, never for a time.
"""

from __future__ import annotations

import http.client
import json
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message

from tests.functional.clients import GrpcClient, Reply, Rpc, connect_http, to_json
from tests.functional.processes import ServerProcess

_JOIN_TIMEOUT_S = 10.0
_IDLE_TIMEOUT_S = 300.0  # of a gateway stream on which nothing comes


class Stream:
    """The answers of one stream, in their order."""

    def __init__(self, falsify: Callable[[Message], None] | None = None) -> None:
        self._falsify = falsify  # a test of the test changes what comes
        self.messages: list[Message] = []
        self.lines: list[bytes] = []  # the gateway's text of each message
        self.end: Reply | None = None  # status, and over the gateway the HTTP answer, once it has ended
        self._changed = threading.Condition()

    def send(self, request: Message) -> None:
        """Send one more request.

        Raises:
            ValueError: this stream had all its requests when it was opened.
        """
        raise ValueError("all requests of a stream over the gateway are sent with its head")

    def wait_for(self, condition: Callable[[Sequence[Message]], bool], timeout_s: float) -> bool:
        """Wait until ``condition`` holds for what has come; false when the stream ended or the time is up before."""
        with self._changed:
            self._changed.wait_for(lambda: condition(self.messages) or self.end is not None, timeout_s)
            return condition(self.messages)

    def wait_for_end(self, timeout_s: float) -> Reply | None:
        """Wait for the status that ends the stream; ``None`` when the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: self.end is not None, timeout_s)
            return self.end

    def close(self) -> None:
        """Cancel the stream."""
        raise NotImplementedError

    def _got(self, message: Message, line: bytes = b"") -> None:
        if self._falsify is not None:
            self._falsify(message)
        with self._changed:
            self.messages.append(message)
            self.lines.append(line)
            self._changed.notify_all()

    def _ended(self, reply: Reply) -> None:
        with self._changed:
            self.end = reply
            self._changed.notify_all()


class GrpcStream(Stream):
    """A stream over gRPC.

    Args:
        client: its connection, which other calls may share.
        rpc: the method.
        requests: what is sent at once.
        ends: send nothing more after that.
    """

    def __init__(
        self,
        client: GrpcClient,
        rpc: Rpc,
        requests: Sequence[Message] = (),
        ends: bool = False,
        falsify: Callable[[Message], None] | None = None,
    ) -> None:
        super().__init__(falsify)
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        for request in requests:
            self.send(request)
        if ends:
            self.half_close()
        self._call = client.open(rpc.path, iter(self._requests.get, None))
        self._thread = threading.Thread(target=self._read, args=(rpc.response,), daemon=True)
        self._thread.start()

    def send(self, request: Message) -> None:
        """Send one more request."""
        self._requests.put(request.SerializeToString())

    def half_close(self) -> None:
        """Say that no further request comes."""
        self._requests.put(None)

    def close(self) -> None:
        """Cancel the stream and wait for the end of its threads."""
        self._call.cancel()
        self._requests.put(None)
        self._thread.join(_JOIN_TIMEOUT_S)

    def _read(self, response: type[Message]) -> None:
        try:
            for message in self._call:
                self._got(response.FromString(message))
            self._ended(Reply(0, "", None))
        except grpc.RpcError as error:
            self._ended(Reply(error.code().value[0], error.details() or "", None))


class GatewayStream(Stream):
    """A stream over the JSON gateway, on a connection of its own.

    Args:
        server: whose gateway.
        rpc: the method.
        requests: all that is sent: JSON objects, one after the other.
    """

    def __init__(
        self,
        server: ServerProcess,
        rpc: Rpc,
        requests: Sequence[Message],
        falsify: Callable[[Message], None] | None = None,
    ) -> None:
        super().__init__(falsify)
        if rpc.http_path is None:
            raise ValueError(f"{rpc.path} cannot be reached over the gateway")
        self._connection = connect_http(server, _IDLE_TIMEOUT_S)
        self._connection.connect()
        body = b"".join(to_json(request) for request in requests)
        self._connection.request("POST", rpc.http_path, body)
        self._thread = threading.Thread(target=self._read, args=(rpc.response,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the connection and wait for the end of the thread."""
        if self._connection.sock is not None:
            with suppress(OSError):  # the server was first
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(_JOIN_TIMEOUT_S)
        self._connection.close()

    def _read(self, response: type[Message]) -> None:
        reply = Reply(0, "", None)
        try:
            answer = self._connection.getresponse()
            reply.http_status = answer.status
            reply.headers = {name.lower(): value for name, value in answer.getheaders()}
            for line in answer:
                if answer.status != 200:
                    reply.body += line
                elif (parsed := json.loads(line)).keys() == {"result"}:
                    self._got(json_format.ParseDict(parsed["result"], response()), line)
                else:
                    reply.code, reply.text = parsed["error"]["grpc_code"], parsed["error"]["message"]
                    reply.body = line
        except (OSError, http.client.HTTPException) as error:
            reply.code, reply.text = -1, f"{type(error).__name__}"
        except (json_format.ParseError, ValueError, KeyError, TypeError) as error:
            reply.code, reply.text = -2, f"unreadable line: {error}"
        self._ended(reply)
