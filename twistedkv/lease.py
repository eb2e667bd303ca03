"""Leases as the rest of the store sees them: which exist, and which keys hang on them.

Leases are not granted yet, so that a put which names one is refused as etcd refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable

from twistedkv.errors import LeaseNotFoundError


class Lessor:
    """Which leases exist and which keys are attached to each. A key has at most one lease.

    Args:
        leases: the ids of those that exist; no key is attached yet.
    """

    def __init__(self, leases: Iterable[int] = ()) -> None:
        self._keys: dict[int, set[bytes]] = {lease: set() for lease in leases}

    def keys(self, lease: int) -> frozenset[bytes]:
        """The keys that hang on a lease that exists."""
        return frozenset(self._keys[lease])

    def check(self, lease: int) -> None:
        """Refuse a lease that does not exist; 0 stands for no lease.

        Raises:
            LeaseNotFoundError: there is none with this id.
        """
        if lease and lease not in self._keys:
            raise LeaseNotFoundError

    def attach(self, lease: int, key: bytes) -> None:
        """Hang ``key`` on a lease that exists."""
        self._keys[lease].add(key)

    def detach(self, lease: int, key: bytes) -> None:
        """Take ``key`` off its lease; a lease that is gone is no error."""
        if (keys := self._keys.get(lease)) is not None:
            keys.discard(key)
