"""The table of methods, and what keeps a server from starting."""

from __future__ import annotations

from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from twistedkv.pb import rpc_pb2, v3election_pb2, v3lock_pb2
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
        lease = {
            method.path.rpartition("/")[2]: method
            for method in pending_methods()
            if method.path.startswith("/etcdserverpb.Lease/")
        }
        self.assertIs(lease["LeaseKeepAlive"].kind, Kind.BIDI)
        self.assertIs(lease["LeaseGrant"].kind, Kind.UNARY)
        self.assertIs(lease["LeaseGrant"].request, rpc_pb2.LeaseGrantRequest)
        observe = next(method for method in pending_methods() if method.path.endswith("/Observe"))
        self.assertIs(observe.kind, Kind.SERVER_STREAM)

    def test_methods_that_are_not_written_say_so(self) -> None:
        """Every service of etcd's API is known by name, and answers UNIMPLEMENTED where it is not written."""
        paths = {method.path for method in pending_methods()}
        for module in (rpc_pb2, v3lock_pb2, v3election_pb2):
            for service in module.DESCRIPTOR.services_by_name.values():
                if service.name not in ("KV", "Cluster", "Maintenance"):
                    for method in service.methods:
                        self.assertIn(f"/{service.full_name}/{method.name}", paths)
        self.assertTrue(all(method.handler is unimplemented for method in pending_methods()))
