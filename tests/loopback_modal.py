"""Modal's side of the wire on loopback, for its real client: the few calls that deploying, files and functions take.

Nothing is built or run in containers. Images count as built at once and are kept with the commands that would have
built them; files are kept in memory; a function that is called runs here, by `run`. Every other call fails, with its
name, so that no test passes by an answer that nobody thought about.
"""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable

import grpclib
import grpclib.server
from aiohttp import web
from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from modal._serialization import deserialize, serialize
from modal_proto import api_pb2 as pb
from modal_proto.api_grpc import ModalClientBase

BUILDER = "2025.06"  # the version of Modal's base images that this account has
SUCCESS = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)
SETTINGS = pb.EnvironmentSettings(image_builder_version=BUILDER)
SAME = {  # what is answered to every request of a kind
    "ClientHello": pb.ClientHelloResponse(),
    "EnvironmentGetOrCreate": pb.EnvironmentGetOrCreateResponse(
        environment_id="en-1", metadata=pb.EnvironmentMetadata(name="main", settings=SETTINGS)
    ),
    "AppGetByDeploymentName": pb.AppGetByDeploymentNameResponse(),
    "AppGetOrCreate": pb.AppGetOrCreateResponse(app_id="ap-1"),
    "AppCreate": pb.AppCreateResponse(app_id="ap-1"),
    "AppPublish": pb.AppPublishResponse(url="https://modal.invalid/apps/ap-1"),
    "AppHeartbeat": Empty(),
    "AppClientDisconnect": Empty(),
    "AppGetLogs": pb.TaskLogsBatch(app_done=True),
    "ClassCreate": pb.ClassCreateResponse(class_id="cs-1", handle_metadata=pb.ClassHandleMetadata()),
}


class LoopbackModal:
    """calls: (name, request) of all that was asked. files: volume -> path -> content. run: name -> what is called."""

    def __init__(self):
        self.calls: list[tuple[str, object]] = []
        self.files: dict[str, dict[str, bytes]] = {}
        self.sent: dict[str, bytes] = {}  # by checksum
        self.run: dict[str, Callable] = {}  # by the function's name
        self._tags: dict[str, str] = {}  # function id -> name
        self._results: dict[str, pb.FunctionGetOutputsItem] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "LoopbackModal":
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def environment(self) -> dict[str, str]:
        """What makes modal's client come here."""
        url = f"http://127.0.0.1:{self.port}"
        return {"MODAL_SERVER_URL": url, "MODAL_TOKEN_ID": "ak-loopback", "MODAL_TOKEN_SECRET": "as-loopback"}

    def asked(self, name: str) -> list:
        """The requests of one kind."""
        return [request for called, request in self.calls if called == name]

    async def _start(self) -> int:
        self._grpc = grpclib.server.Server([self])
        await self._grpc.start("127.0.0.1", 0)
        pages = web.Application()
        pages.router.add_get("/{checksum}", self._block)
        self._http = web.AppRunner(pages)
        await self._http.setup()
        site = web.TCPSite(self._http, "127.0.0.1", 0)
        await site.start()
        self._blocks = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        return self._grpc._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._grpc.close()
        await self._grpc.wait_closed()
        await self._http.cleanup()

    async def _block(self, request: web.Request) -> web.Response:
        return web.Response(body=self.sent[request.match_info["checksum"]])

    def __mapping__(self) -> dict:
        empty = dict.fromkeys(ModalClientBase.__abstractmethods__)
        known = type("Known", (ModalClientBase,), empty)().__mapping__()
        return {path: call._replace(func=self._handler(path.rpartition("/")[2])) for path, call in known.items()}

    def _handler(self, name: str):
        async def answer(stream) -> None:
            request = await stream.recv_message()
            self.calls.append((name, request))
            if name not in SAME and not hasattr(self, name):
                raise grpclib.GRPCError(Status.UNIMPLEMENTED, f"loopback Modal does not know {name}")
            await stream.send_message(SAME[name] if name in SAME else getattr(self, name)(request))

        return answer

    # --- secrets, images and what is put into them ---

    def SecretGetOrCreate(self, request):  # noqa: N802  (the names are Modal's)
        return pb.SecretGetOrCreateResponse(secret_id=_name("st", request))

    def ImageGetOrCreate(self, request):  # noqa: N802
        return pb.ImageGetOrCreateResponse(image_id=_name("im", request), result=SUCCESS)

    def MountBatchedCheckExistence(self, request):  # noqa: N802
        missing = [one for one in request.sha256_hex_hashes if one not in self.sent]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    def MountPutFile(self, request):  # noqa: N802
        if request.WhichOneof("data_oneof") == "data":
            assert hashlib.sha256(request.data).hexdigest() == request.sha256_hex
            self.sent[request.sha256_hex] = request.data
        return pb.MountPutFileResponse(exists=request.sha256_hex in self.sent)

    def MountGetOrCreate(self, request):  # noqa: N802
        metadata = pb.MountHandleMetadata(content_checksum_sha256_hex=_name("", request))
        return pb.MountGetOrCreateResponse(mount_id=_name("mo", request), handle_metadata=metadata)

    # --- functions ---

    def FunctionPrecreate(self, request):  # noqa: N802
        function_id = f"fu-{request.function_name}"
        self._tags[function_id] = request.function_name
        return pb.FunctionPrecreateResponse(function_id=function_id, handle_metadata=_handle(request))

    def FunctionCreate(self, request):  # noqa: N802
        definition = request.function
        self._tags[request.existing_function_id] = definition.function_name
        function_id = request.existing_function_id
        data = pb.FunctionData(ranked_functions=[pb.FunctionData.RankedFunction(rank=0, function=definition)])
        return pb.FunctionCreateResponse(
            function_id=function_id, handle_metadata=_handle(definition), function_data=data
        )

    def FunctionMap(self, request):  # noqa: N802
        [item] = request.pipelined_inputs
        args, kwargs = deserialize(item.input.args, None)
        call_id = f"fc-{len(self._results)}"
        result = self.run[self._tags[request.function_id]](*args, **kwargs)
        self._results[call_id] = pb.FunctionGetOutputsItem(
            result=pb.GenericResult(status=SUCCESS.status, data=serialize(result)),
            idx=0,
            input_id="in-1",
            data_format=pb.DATA_FORMAT_PICKLE,
        )
        taken = pb.FunctionPutInputsResponseItem(idx=0, input_id="in-1")
        return pb.FunctionMapResponse(function_call_id=call_id, pipelined_inputs=[taken])

    def FunctionGetOutputs(self, request):  # noqa: N802
        return pb.FunctionGetOutputsResponse(
            outputs=[self._results[request.function_call_id]], num_unfinished_inputs=0, last_entry_id="1-0"
        )

    # --- volumes ---

    def VolumeGetOrCreate(self, request):  # noqa: N802
        self.files.setdefault(request.deployment_name, {})
        metadata = pb.VolumeMetadata(version=pb.VOLUME_FS_VERSION_V1, name=request.deployment_name)
        return pb.VolumeGetOrCreateResponse(volume_id=f"vo-{request.deployment_name}", metadata=metadata)

    def _of(self, request) -> dict[str, bytes]:
        return self.files[request.volume_id.removeprefix("vo-")]

    def VolumePutFiles(self, request):  # noqa: N802
        for file in request.files:
            self._of(request)[file.filename.lstrip("/")] = self.sent[file.sha256_hex]
        return Empty()

    def VolumeListFiles(self, request):  # noqa: N802
        folder = request.path.strip("/")
        found = [path for path in self._of(request) if path.startswith(f"{folder}/")]
        if not found:
            raise grpclib.GRPCError(Status.NOT_FOUND, f"no {folder}")
        entries = [pb.FileEntry(path=path, type=pb.FileEntry.FileType.FILE, mtime=int(time.time())) for path in found]
        return pb.VolumeListFilesResponse(entries=entries)

    def VolumeGetFile2(self, request):  # noqa: N802
        path = request.path.lstrip("/")
        if path not in self._of(request):
            raise grpclib.GRPCError(Status.NOT_FOUND, f"no {path}")
        content = self._of(request)[path]
        checksum = hashlib.sha256(content).hexdigest()
        self.sent[checksum] = content
        urls = [f"{self._blocks}/{checksum}"] if content else []
        return pb.VolumeGetFile2Response(get_urls=urls, size=len(content), start=0, len=len(content))

    def VolumeRemoveFile(self, request):  # noqa: N802
        kept = self._of(request)
        for path in [path for path in kept if path == request.path or path.startswith(f"{request.path}/")]:
            del kept[path]
        return Empty()


def _name(kind: str, request) -> str:
    return f"{kind}-{hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()[:16]}"


def _handle(definition) -> pb.FunctionHandleMetadata:
    handle = pb.FunctionHandleMetadata(
        function_name=definition.function_name,
        function_type=definition.function_type,
        web_url="https://loopback.invalid" if definition.HasField("webhook_config") else "",
        supported_input_formats=[pb.DATA_FORMAT_PICKLE],
        supported_output_formats=[pb.DATA_FORMAT_PICKLE],
    )
    for name in definition.method_definitions:
        handle.method_handle_metadata[name].CopyFrom(
            pb.FunctionHandleMetadata(function_name=name, web_url=f"https://loopback.invalid/{name}")
        )
    return handle
