"""The reference backend keeps the seam's promises."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedkv.storage.backend import Backend, BackendError, Batch, Bucket
from twistedkv.storage.contract import EVERYTHING, BackendContract, put
from twistedkv.storage.memory import MemoryBackend


class MemoryBackendTests(BackendContract, SynchronousTestCase):
    """The contract, on memory."""

    durable = False

    def make_backend(self) -> Backend:
        """A new, empty one."""
        return MemoryBackend()

    def test_revisions_must_ascend(self) -> None:
        """The reference is stricter than a database: a row older than the newest one is refused."""
        self.write(put(5, b"key"))
        self.assertRaises(BackendError, self.write, put(4, b"older"))
        self.assertRaises(BackendError, self.write, put(7, b"key"), put(6, b"key"))
        self.assertEqual(self.backend.scan(0, EVERYTHING, 10), [put(5, b"key")])

    def test_records_are_a_copy(self) -> None:
        """Changing what was read changes nothing that is stored."""
        self.backend.write(Batch(records={(Bucket.META, b"key"): b"value"}))
        self.backend.records(Bucket.META).clear()
        self.assertEqual(self.backend.records(Bucket.META), {b"key": b"value"})
