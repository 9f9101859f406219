"""The gRPC front of processor: the ext_proc loop. It reads a phase, asks the exchange, writes the reply.

However a stream ends (normally, by a client that left, by an upstream that died, by our own shutdown) the exchange is
settled once: before the reply to its last piece where it ends well, from `finally` where it does not.
"""

from __future__ import annotations

import logging
import time
import traceback
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import grpc.aio

from policy.rules.decision import Deny, Reason, error_body
from policy.rules.faults import StoreDown
from policy.rules.grant import Duty
from policy.rules.speeds import Speeds
from processor.edge import messages
from processor.exchange import Answer, Exchange, Pass
from processor.sealed import SealedExchange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from policy.rules.grant import Grant
    from policy.rules.settlement import Settlement
    from processor.envelopes import Envelopes

log = logging.getLogger(__name__)

PHASES = "ext_proc must let processor override its modes, or send request bodies BUFFERED"


class Settler(Protocol):
    """Settles reservations and keeps their leases."""

    async def settle(self, grant: Grant, settlement: Settlement) -> bool: ...
    def later(self, grant: Grant, settlement: Settlement) -> None: ...
    def opened(self, exchange: Exchange) -> None: ...
    def closed(self, exchange: Exchange) -> None: ...


class Observer(Protocol):
    """Is told of each finished exchange."""

    def finished(self, exchange: Exchange, settlement: Settlement, seconds: float) -> None: ...


class ExternalProcessor:
    """envoy.service.ext_proc.v3.ExternalProcessor."""

    def __init__(self, settler: Settler, observer: Observer, envelopes: Envelopes | None = None) -> None:
        """`envelopes`: None where they are not enabled."""
        self._settler = settler
        self._observer = observer
        self._envelopes = envelopes
        self._speeds = Speeds()

    async def process(self, incoming: AsyncIterator[Any], context: Any) -> None:
        """One HTTP exchange."""
        now = time.monotonic  # uvloop rounds its own clock to milliseconds
        exchange: Exchange | None = None
        done = False  # its settlement is with the settler, one way or the other
        edited = False  # the body went on as policy wants it
        stream = aiter(incoming)
        try:
            async for message in stream:
                name = messages.phase(message)
                if exchange is None:
                    grant = messages.grant(message)
                    if grant is None or name != "request_headers":
                        await context.write(messages.reply(name, _unadmitted(message)))
                        return
                    if grant.duty is Duty.ENVELOPE:
                        await self._envelope(grant, message, stream, context)
                        return
                    exchange = Exchange(grant, now())
                    self._settler.opened(exchange)
                    edited = not grant.splices or messages.ended(message)
                edited = edited or (name == "request_body" and messages.ended(message))
                if edited or name == "request_headers":
                    verdict = self._phase(exchange, name, message, now())
                else:
                    # The body came in pieces, or not at all and the answer is here: it went on without its edits.
                    log.error("request body not edited", extra={"phase": name, "hint": PHASES})
                    verdict = exchange.out_of_step()
                settled = False
                if isinstance(verdict, Answer) or verdict.ended:
                    done = True
                    settled = await self._finish(exchange, now())
                await context.write(messages.reply(name, verdict, settled=settled))
                if isinstance(verdict, Answer):
                    return
        finally:
            if exchange is not None:
                self._closed(exchange, settled=done)

    @staticmethod
    def _phase(exchange: Exchange, name: str, message: Any, now: float) -> Pass | Answer:
        match name:
            case "response_body":
                return exchange.response_body(messages.body(message), messages.ended(message), now)
            case "request_headers":
                return exchange.request_headers(messages.ended(message))
            case "request_body":
                return exchange.request_body(messages.body(message)) if exchange.grant.splices else Pass()
            case "response_headers":
                return exchange.response_headers(messages.headers(message), messages.ended(message), now)
            case "response_trailers":
                return exchange.response_body(b"", True, now)
            case _:
                return Pass()

    async def _envelope(self, grant: Grant, first: Any, stream: AsyncIterator[Any], context: Any) -> None:
        """The same for an envelope, whose phases may have to wait: for a thread, for the judgement, for its claims."""
        if self._envelopes is None:
            body = Deny(Reason.NO_ENVELOPES).body(grant.request_id, detail=True)
            refusal = Answer(404, body, (("content-type", "application/json"),), details="paddock_envelope")
            await context.write(messages.reply("request_headers", refusal))
            return
        now = time.monotonic
        sealed = SealedExchange(grant, self._envelopes, now())
        done = False
        message = first
        try:
            while message is not None:
                name = messages.phase(message)
                verdict = await self._sealed_phase(sealed, name, message, now())
                if name == "request_body" and sealed.inner is not None:
                    self._settler.opened(sealed.inner)
                settled = False
                if not done and (isinstance(verdict, Answer) or verdict.ended):
                    done = True
                    settled = sealed.inner is not None and await self._finish(sealed.inner, now())
                    await sealed.end()
                await context.write(messages.reply(name, verdict, settled=settled))
                if isinstance(verdict, Answer):
                    return
                message = await anext(stream, None)
        finally:
            sealed.forget()
            if sealed.inner is not None:
                self._closed(sealed.inner, settled=done)

    @staticmethod
    async def _sealed_phase(sealed: SealedExchange, name: str, message: Any, now: float) -> Pass | Answer:
        try:
            match name:
                case "response_body":
                    return await sealed.response_body(messages.body(message), messages.ended(message), now)
                case "request_headers":
                    return await sealed.request_headers(messages.headers(message), messages.ended(message))
                case "request_body":
                    return await sealed.request_body(messages.body(message))
                case "response_headers":
                    return await sealed.response_headers(messages.headers(message), messages.ended(message), now)
                case "response_trailers":
                    return await sealed.response_body(b"", True, now)
                case _:
                    return Pass()
        except StoreDown as fault:
            log.warning("counter store down", extra={"fault": str(fault), "request_id": sealed.grant.request_id})
            return sealed.denied(Deny(Reason.STORE_DOWN))
        except Exception as fault:  # the last net, and no message in the log: it may quote what was inside
            log.error("envelope failed", extra={**_place(fault), "request_id": sealed.grant.request_id})
            instead = None if sealed.inner is None else sealed.inner.unusable(replace=name == "response_headers")
            asked = name.startswith("request")
            return sealed.denied(Deny(Reason.FAULT)) if asked or instead is None else instead

    def _closed(self, exchange: Exchange, *, settled: bool) -> None:
        """An exchange is over; where it broke off, what was used until then is settled without anybody waiting."""
        self._settler.closed(exchange)
        if not settled and exchange.reserves:
            now = time.monotonic()
            settlement = exchange.settlement(now, self._speeds, whole=False)
            self._settler.later(exchange.grant, settlement)
            self._observer.finished(exchange, settlement, now - exchange.begun)

    async def _finish(self, exchange: Exchange, now: float) -> bool:
        """Settle at the end of an exchange. True: the store has it."""
        if not exchange.reserves:
            return True
        settlement = exchange.settlement(now, self._speeds, whole=True)
        self._observer.finished(exchange, settlement, now - exchange.begun)
        return await self._settler.settle(exchange.grant, settlement)


def _place(fault: BaseException) -> dict[str, str]:
    """The fault's type and place."""
    frames = traceback.extract_tb(fault.__traceback__)[-3:]
    return {"fault": type(fault).__name__, "at": " < ".join(f"{f.name}:{f.lineno}" for f in reversed(frames))}


def _unadmitted(message: Any) -> Answer:
    """No grant: this request passed no policy, or the filters stand in an order in which it cannot. Nothing goes on."""
    request_id = ""
    if messages.phase(message) == "request_headers":
        request_id = messages.headers(message).get("x-request-id", "")
    log.error("no grant", extra={"hint": "ext_authz must stand before ext_proc and forward its metadata"})
    body = error_body(503, "unavailable", "temporarily unavailable", request_id)
    return Answer(503, body, (("content-type", "application/json"),), details="paddock_no_grant")


def handler(processor: ExternalProcessor) -> grpc.GenericRpcHandler:
    """The service as a generic handler, with the C messages' own (de)serializers."""
    return grpc.method_handlers_generic_handler(
        "envoy.service.ext_proc.v3.ExternalProcessor",
        {
            "Process": grpc.stream_stream_rpc_method_handler(
                processor.process,
                messages.ProcessingRequest.FromString,
                messages.ProcessingResponse.SerializeToString,
            )
        },
    )
