"""The descriptor pool of the generated modules; see :mod:`twistedkv.pb.generate` for why it is our own."""

from __future__ import annotations

from google.protobuf.descriptor_pool import DescriptorPool

_POOL = DescriptorPool()


def Default() -> DescriptorPool:
    """The pool that holds every message of this package; named as the function that generated code calls."""
    return _POOL
