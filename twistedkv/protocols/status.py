"""Exceptions to gRPC status, and only here.

Texts for undecodable requests are grpc-go's (``server.go`` processUnaryRPC, ``stream.go`` recv), codes as well.
"""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import DecodeError

from twistedkv.errors import Code, KVError

LogFailure = Callable[[BaseException, str], None]  # an exception that is no refusal, and the method's path

DEADLINE_EXCEEDED_TEXT = "context deadline exceeded"


def status_of(error: BaseException, path: str, log_failure: LogFailure, streaming: bool = False) -> tuple[int, str]:
    """The gRPC code and text that tell a client of ``error``.

    Args:
        path: the method, for the log.
        log_failure: told of every exception that is not a refusal, so that it is logged with its traceback.
        streaming: the method takes a stream of requests, or gives one of answers.
    """
    if isinstance(error, KVError):
        return int(error.code), error.text
    if isinstance(error, DecodeError):
        what = "failed to unmarshal the received message" if streaming else "error unmarshalling request:"
        return int(Code.INTERNAL), f"grpc: {what} {error}"
    log_failure(error, path)
    return int(Code.UNKNOWN), str(error)
