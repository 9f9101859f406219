"""An upstream that costs next to nothing: canned answers on a bare asyncio protocol, so that it is not the bottleneck.

`python -m tests.bench.stub` prints its port. `POST` answers a short chat; a body with `"stream":true` gets so many
NDJSON chunks so many milliseconds apart as the prompt says (`tokens=200 delay=20`); GET lists one model.
"""

from __future__ import annotations

import asyncio
import re

import uvloop

MODEL = "llama3.1:8b"
_TAGS = (
    b'{"models":[{"name":"llama3.1:8b","model":"llama3.1:8b","modified_at":"2026-01-01T00:00:00Z","size":1,'
    b'"digest":"d","details":{"format":"gguf","family":"llama","families":["llama"],"parameter_size":"8B",'
    b'"quantization_level":"Q4_0"}}]}'
)
_VERSION = b'{"version":"0.0.0"}'
_CHAT = (
    b'{"model":"llama3.1:8b","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":"Hello there, '
    b'how are you today?"},"done":true,"done_reason":"stop","total_duration":1000000,"prompt_eval_count":6,'
    b'"prompt_eval_duration":1000,"eval_count":7,"eval_duration":1000}'
)
_COMPLETION = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"llama3.1:8b","system_fingerprint":"fp_ollama",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"Hello there, how are you today?"},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":6,"completion_tokens":7,"total_tokens":13}}'
)
_DELTA = (
    b'{"model":"llama3.1:8b","created_at":"2026-01-01T00:00:00.000000000Z",'
    b'"message":{"role":"assistant","content":" word"},"done":false}\n'
)
_FINAL = (
    b'{"model":"llama3.1:8b","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":""},"done":true,'
    b'"done_reason":"stop","total_duration":1000000,"prompt_eval_count":6,"prompt_eval_duration":1000,"eval_count":%d,'
    b'"eval_duration":1000}\n'
)
_WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
_LENGTH = re.compile(rb"content-length: (\d+)", re.I)
_ASKED = re.compile(rb"tokens=(\d+) delay=(\d+)")


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


class Stub(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream's transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._buffer, 0, end)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < whole:
                return
            request, self._buffer = self._buffer[:whole], self._buffer[whole:]
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"GET /v1/models"):
            body = b'{"object":"list","data":[{"id":"llama3.1:8b","object":"model","created":1,"owned_by":"library"}]}'
            self._transport.write(_WHOLE % (len(body), body))
        elif request.startswith(b"GET /api/version"):
            self._transport.write(_WHOLE % (len(_VERSION), _VERSION))
        elif request.startswith(b"GET"):
            self._transport.write(_WHOLE % (len(_TAGS), _TAGS))
        elif b'"stream":true' in request and (asked := _ASKED.search(request)):
            self._transport.write(_STREAM)
            self._token(0, int(asked[1]), int(asked[2]) / 1000)
        else:
            body = _COMPLETION if request.startswith(b"POST /v1/") else _CHAT
            self._transport.write(_WHOLE % (len(body), body))

    def _token(self, sent: int, tokens: int, delay: float) -> None:
        if self._transport.is_closing():
            return
        loop = asyncio.get_running_loop()
        if sent == tokens:
            self._transport.write(_chunk(_FINAL % tokens) + b"0\r\n\r\n")
            return
        self._transport.write(_chunk(_DELTA))
        if delay:
            loop.call_later(delay, self._token, sent + 1, tokens, delay)
        else:
            loop.call_soon(self._token, sent + 1, tokens, delay)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
