"""From a Deferred to the answer of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twistedkv.errors import InvariantError
from twistedkv.protocols.rpc import Call

T = TypeVar("T")


def answer_when(deferred: Deferred[T], call: Call, answer: Callable[[T], None]) -> None:
    """Have ``answer`` end ``call`` with what ``deferred`` fires with; a failure of either ends it with its status."""

    def failed(failure: Failure) -> None:
        call.fail(failure.value or InvariantError("a failure without an exception"))

    deferred.addCallback(answer).addErrback(failed)
