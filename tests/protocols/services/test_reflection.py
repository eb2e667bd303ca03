"""gRPC server reflection, asked message by message."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from twisted.trial.unittest import SynchronousTestCase

from tests.calls import RecordedCall
from twistedkv.errors import Code
from twistedkv.pb import reflection_v1_pb2, reflection_v1alpha_pb2
from twistedkv.protocols.services.reflection import ReflectionService


class ReflectionTests(SynchronousTestCase):
    """What generic tools ask a server."""

    module: Any = reflection_v1_pb2

    def ask(self, **question: Any) -> Any:
        service = ReflectionService(["etcdserverpb.KV", "etcdserverpb.Watch"])
        wanted = self.module.DESCRIPTOR.services_by_name["ServerReflection"].full_name
        method = next(each for each in service.methods() if each.path.startswith(f"/{wanted}/"))
        call = RecordedCall(method)
        method.handler(call)
        assert call.on_message is not None
        assert call.on_half_close is not None
        call.on_message(self.module.ServerReflectionRequest(host="h", **question).SerializeToString())
        call.on_half_close()
        self.assertTrue(call.done)
        self.assertEqual(len(call.sent), 1)
        response = self.module.ServerReflectionResponse.FromString(call.sent[0])
        self.assertEqual(response.valid_host, "h")
        return response

    def test_lists_services(self) -> None:
        """All services are listed by their full names, reflection itself too."""
        names = [each.name for each in self.ask(list_services="*").list_services_response.service]
        self.assertEqual(
            names,
            [
                "etcdserverpb.KV",
                "etcdserverpb.Watch",
                "grpc.reflection.v1.ServerReflection",
                "grpc.reflection.v1alpha.ServerReflection",
            ],
        )

    def test_files_of_a_symbol_make_a_pool(self) -> None:
        """The answer holds the file and all that it imports, enough to call the service with nothing else at hand."""
        for symbol in ("etcdserverpb.KV", "etcdserverpb.KV.Put", "mvccpb.KeyValue", "etcdserverpb.PutRequest"):
            answer = self.ask(file_containing_symbol=symbol).file_descriptor_response
            files = [FileDescriptorProto.FromString(each) for each in answer.file_descriptor_proto]
            pool = DescriptorPool()
            for file in reversed(files):
                pool.Add(file)
            self.assertTrue(pool.FindFileByName(files[0].name).serialized_pb)

    def test_file_by_name(self) -> None:
        """A file is found by the name that another one imports it by."""
        answer = self.ask(file_by_filename="twistedkv/pb/kv.proto").file_descriptor_response
        self.assertEqual(FileDescriptorProto.FromString(answer.file_descriptor_proto[0]).package, "mvccpb")

    def test_what_is_not_there_is_an_answer(self) -> None:
        """An unknown symbol, file or extension is NOT_FOUND in the answer, and the stream goes on."""
        extension = self.module.ExtensionRequest(containing_type="mvccpb.KeyValue", extension_number=1)
        for question in (
            {"file_containing_symbol": "no.such.Thing"},
            {"file_by_filename": "none.proto"},
            {"file_containing_extension": extension},
            {"all_extension_numbers_of_type": "no.such.Thing"},
        ):
            self.assertEqual(self.ask(**question).error_response.error_code, Code.NOT_FOUND)
        self.assertEqual(self.ask().error_response.error_code, Code.INVALID_ARGUMENT)
        numbers = self.ask(all_extension_numbers_of_type="mvccpb.KeyValue").all_extension_numbers_response
        self.assertEqual((numbers.base_type_name, list(numbers.extension_number)), ("mvccpb.KeyValue", []))


class ReflectionAlphaTests(ReflectionTests):
    """The older version, which many tools still ask."""

    module = reflection_v1alpha_pb2
