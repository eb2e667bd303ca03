"""The table of methods, and what keeps a server from starting."""

from __future__ import annotations

from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from twistedkv.pb import rpc_pb2, v3election_pb2
from twistedkv.protocols.rpc import Access, Call, Kind, Method, MethodTable, service_methods, unimplemented
from twistedkv.protocols.services.pending import pending_methods


def ignore(call: Call) -> None:
    """A handler that never answers."""


class MethodTableTests(SynchronousTestCase):
    """Registering methods."""

    def method(self, access: Any = Access.KEYS) -> Method:
        request, response = rpc_pb2.PutRequest, rpc_pb2.PutResponse
        return Method("/etcdserverpb.KV/Put", Kind.UNARY, request, response, access, ignore)

    def test_method_without_permission_is_refused(self) -> None:
        """A method that does not say who may call it keeps the server from starting."""
        with self.assertRaisesRegex(ValueError, "KV/Put does not declare"):
            MethodTable([self.method(access=cast(Access, None))])

    def test_method_registered_twice_is_refused(self) -> None:
        """Two handlers for one path are a mistake that shows at the start."""
        with self.assertRaisesRegex(ValueError, "registered twice"):
            MethodTable([self.method(), self.method()])

    def test_method_is_found_by_path(self) -> None:
        """The path of the request finds the method."""
        method = self.method()
        self.assertIs(MethodTable([method]).by_path["/etcdserverpb.KV/Put"], method)


class ServiceMethodsTests(SynchronousTestCase):
    """Methods from a service's descriptor."""

    def test_every_method_has_to_be_declared(self) -> None:
        """A service with a method that nobody declared, or a declared one that it has not, is refused."""
        service = rpc_pb2.DESCRIPTOR.services_by_name["Watch"]
        with self.assertRaisesRegex(ValueError, "Watch"):
            service_methods(service, {})
        with self.assertRaisesRegex(ValueError, "Look"):
            service_methods(service, {"Watch": (Access.KEYS, ignore), "Look": (Access.KEYS, ignore)})

    def test_kind_and_messages_come_from_the_descriptor(self) -> None:
        """All four kinds are told apart."""
        lease = {method.path.rpartition("/")[2]: method for method in self.every_method(rpc_pb2, "Lease")}
        self.assertIs(lease["LeaseKeepAlive"].kind, Kind.BIDI)
        self.assertIs(lease["LeaseGrant"].kind, Kind.UNARY)
        self.assertIs(lease["LeaseGrant"].request, rpc_pb2.LeaseGrantRequest)
        election = self.every_method(v3election_pb2, "Election")
        observe = next(method for method in election if method.path.endswith("/Observe"))
        self.assertIs(observe.kind, Kind.SERVER_STREAM)

    def every_method(self, module: Any, name: str) -> list[Method]:
        service = module.DESCRIPTOR.services_by_name[name]
        return service_methods(service, {method.name: (Access.KEYS, ignore) for method in service.methods})

    def test_methods_that_are_not_written_say_so(self) -> None:
        """What is not written yet is known by name, with the permission it will need, and answers UNIMPLEMENTED."""
        pending = pending_methods()
        self.assertTrue(all(method.handler is unimplemented for method in pending))
        MethodTable(pending)
