"""gRPC server reflection, versions v1 and v1alpha: which services there are, and the files that describe them.

With it generic tools can call every method without having the ``.proto`` files. Source: grpc/grpc
``doc/server-reflection.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from twistedkv.errors import Code
from twistedkv.pb import reflection_v1_pb2, reflection_v1alpha_pb2
from twistedkv.pb.pool import Default
from twistedkv.protocols.rpc import Access, Call, Method, service_methods


class ReflectionService:
    """Answers one question a message, in order, until the client half-closes.

    Args:
        services: full names of the services that the server has; the two reflection services are added.
        pool: where their descriptions are.
    """

    def __init__(self, services: Iterable[str], pool: DescriptorPool | None = None) -> None:
        self._pool = pool or Default()
        own = (each.DESCRIPTOR.services_by_name["ServerReflection"].full_name for each in _VERSIONS)
        self._services = sorted({*services, *own})

    def methods(self) -> list[Method]:
        """The methods of both versions, for the method table."""

        def handler(module: Any) -> Any:
            return lambda call: self._open(call, module)

        return [
            method
            for module in _VERSIONS
            for method in service_methods(
                module.DESCRIPTOR.services_by_name["ServerReflection"],
                {"ServerReflectionInfo": (Access.OPEN, handler(module))},
            )
        ]

    def _open(self, call: Call, module: Any) -> None:
        def on_message(message: bytes) -> None:
            request = module.ServerReflectionRequest.FromString(message)
            response = module.ServerReflectionResponse(valid_host=request.host, original_request=request)
            self._answer(request, response)
            call.send(response.SerializeToString())

        call.on_message = on_message
        call.on_half_close = call.finish

    def _answer(self, request: Any, response: Any) -> None:
        try:
            match request.WhichOneof("message_request"):
                case "list_services":
                    for name in self._services:
                        response.list_services_response.service.add(name=name)
                case "file_by_filename":
                    self._describe(self._pool.FindFileByName(request.file_by_filename), response)
                case "file_containing_symbol":
                    self._describe(self._file_with(request.file_containing_symbol), response)
                case "all_extension_numbers_of_type":
                    name = request.all_extension_numbers_of_type
                    self._pool.FindMessageTypeByName(name)
                    response.all_extension_numbers_response.base_type_name = name  # etcd's messages have no extensions
                case "file_containing_extension":
                    raise KeyError(request.file_containing_extension.containing_type)
                case _:
                    response.error_response.error_code = Code.INVALID_ARGUMENT
                    response.error_response.error_message = "no question in the request"
        except KeyError as error:
            response.error_response.error_code = Code.NOT_FOUND
            response.error_response.error_message = f"not found: {error.args[0]}"

    def _file_with(self, symbol: str) -> FileDescriptor:
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            # The pool does not know methods by name: ask for the service instead.
            return self._pool.FindServiceByName(symbol.rpartition(".")[0]).file

    def _describe(self, file: FileDescriptor, response: Any) -> None:
        found: dict[str, bytes] = {}

        def add(each: FileDescriptor) -> None:
            if each.name not in found:
                found[each.name] = each.serialized_pb
                for dependency in each.dependencies:
                    add(dependency)

        add(file)
        response.file_descriptor_response.file_descriptor_proto.extend(found.values())


_VERSIONS = (reflection_v1_pb2, reflection_v1alpha_pb2)
