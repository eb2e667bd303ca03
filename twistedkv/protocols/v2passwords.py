"""Passwords of the v2 API: made into bcrypt hashes, and compared with them, without keeping the reactor waiting.

A hash takes some 50 ms of a processor, on purpose, and a client sends its password with every request. So what was
found right is remembered: for each user, a keyed digest of the name, the password and the hash that it went with. What
that means for security: no password is kept, and the key is this process's own and nowhere else; an entry is good for
that one hash only, so it dies when the password is changed or the user removed; but whoever can read this process's
memory could try passwords against a digest faster than against the hash. Wrong passwords are not remembered: each costs
its time.

A name that nobody has takes as long as one that somebody has, so that time does not tell which names there are.

bcrypt looks at the first 72 bytes of a password, as in etcd 3.5.

Source: Go ``golang.org/x/crypto/bcrypt`` for the form of the hashes, which are etcd's.
"""

from __future__ import annotations

import hmac
import os
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Final, Protocol, TypeVar

import bcrypt
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure

COST: Final = 10  # Go's bcrypt.DefaultCost: 2**10 rounds

_MOST_BYTES: Final = 72
_MOST_REMEMBERED: Final = 1024  # users
_MOST_AT_ONCE: Final = 2  # threads; a flood of wrong passwords is not to have all processors
_KEY_BYTES: Final = 32
_T = TypeVar("_T")

_log = Logger()


class InThread(Protocol):
    """Runs what takes long in a thread: ``partial(deferToThreadPool, reactor, pool)``."""

    def __call__(self, function: Callable[[], _T], /) -> Deferred[_T]:
        """Its result or its failure."""


class Passwords:
    """Hashes passwords and checks them.

    Args:
        in_thread: runs what takes long.
        cost: of new hashes, as a power of two.
    """

    def __init__(self, in_thread: InThread, cost: int = COST) -> None:
        self._in_thread = in_thread
        self._cost = cost
        self._threads = DeferredSemaphore(_MOST_AT_ONCE)
        self._key = os.urandom(_KEY_BYTES)
        self._right: OrderedDict[str, bytes] = OrderedDict()  # digests by user, the latest used one last
        self._asked: dict[bytes, list[Deferred[bool]]] = {}  # who waits, by what is being checked
        self._nobodys = f"$2a${cost:02d}${'.' * 53}"  # the hash of no password that anyone knows

    def hashed(self, password: bytes) -> Deferred[str]:
        """A new hash of ``password``."""
        return self._run(lambda: bcrypt.hashpw(password[:_MOST_BYTES], bcrypt.gensalt(self._cost, b"2a")).decode())

    def check(self, user: str, password: bytes, password_hash: str | None) -> bool | Deferred[bool]:
        """Whether ``password`` is the one of the user who has this hash; None if there is no such user.

        The answer is at hand if it was right before. A Deferred fires with nothing but the answer, or is cancelled;
        if no answer was to be had, that is logged, and it is no.
        """
        against = self._nobodys if password_hash is None else password_hash
        digest = self._digest(user, password, against)
        remembered = self._right.get(user)
        if remembered is not None and hmac.compare_digest(remembered, digest):
            self._right.move_to_end(user)
            return True
        answer: Deferred[bool] = Deferred()
        waiting = self._asked.get(digest)
        if waiting is None:  # else many connections of one client ask the same at the same time
            waiting = self._asked[digest] = [answer]
            checking = self._run(lambda: _matches(password[:_MOST_BYTES], against, self._nobodys))
            checking.addErrback(_no_answer)
            checking.addCallback(self._checked, user, digest)
            checking.addErrback(lambda failure: _log.failure("after a password was checked", failure))
        else:
            waiting.append(answer)
        return answer

    def _checked(self, right: bool, user: str, digest: bytes) -> None:
        if right:
            self._right[user] = digest
            self._right.move_to_end(user)
            if len(self._right) > _MOST_REMEMBERED:
                self._right.popitem(last=False)
        for answer in self._asked.pop(digest):
            answer.callback(right)

    def _digest(self, user: str, password: bytes, password_hash: str) -> bytes:
        digest = blake2b(key=self._key)
        for part in (user.encode("utf-8", "surrogateescape"), password_hash.encode("utf-8", "surrogateescape")):
            digest.update(b"%d:%b" % (len(part), part))
        digest.update(password)
        return digest.digest()

    def _run(self, function: Callable[[], _T]) -> Deferred[_T]:
        running: Deferred[_T] = self._threads.run(self._in_thread, function)
        return running


def _matches(password: bytes, password_hash: str, nobodys: str) -> bool:
    """Whether they belong together; something that is no hash takes the time of one."""
    try:
        return bcrypt.checkpw(password, password_hash.encode("utf-8", "surrogateescape")) and password_hash != nobodys
    except ValueError:
        bcrypt.checkpw(password, nobodys.encode())
        return False


def _no_answer(failure: Failure) -> bool:
    _log.failure("a password could not be checked", failure)
    return False
