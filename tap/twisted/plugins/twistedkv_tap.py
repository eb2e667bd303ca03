"""Makes ``twistd twistedkv`` known to Twisted. Its directory must never have an ``__init__.py``: it extends a package
of Twisted's own."""

from twisted.application.service import ServiceMaker

twistedkv_service = ServiceMaker(
    "twistedkv",  # for people
    "twistedkv.tap",  # imported only when it is asked for
    "A distributed key-value store that etcd clients can talk to.",
    "twistedkv",  # the word on twistd's command line
)
