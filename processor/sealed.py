"""One envelope on its way, a method per phase: what an `Exchange` is to a plain request.

The order is the order of cost. Policy has checked the key and its rate; here the headers are read, then the body is
asked for, its payload id is claimed, it is opened, and what was inside is judged like any request's body and goes on
as a plain one. From there an `Exchange` does what it does for everybody: meter, cap, clean errors, settle. Only what
it lets pass is sealed before it leaves.

Every refusal of an envelope reads the same to its client; its cause is a word in the log. No method logs, or puts into
a verdict that stays here, anything of what was inside.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from policy.rules.decision import Deny, Reason
from policy.rules.splices import apply
from processor import replays
from processor.client_key import parse_client_key
from processor.envelope_headers import PAYLOAD_ID, PUBLIC_KEY, STREAM, STREAM_VERSION, parse_payload_id, parse_stream
from processor.envelope_refusal import Cause, Refusal
from processor.envelope_stream import StreamSealer
from processor.exchange import Answer, Exchange, Pass
from processor.memory import wipe_bytes
from processor.pieces import Pieces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    from policy.rules.grant import Grant
    from processor.envelopes import Envelopes, Inside
    from processor.exchange import Verdict

log = logging.getLogger(__name__)

UPSTREAM_PATH = "/v1/chat/completions"
TIER_HEADER = "x-paddock-tier"  # by it Envoy finds the upstreams of a tier; from a client it is void


@dataclass(frozen=True, slots=True)
class _Client:
    """Who is to be answered, and how: what the headers say."""

    key: RSAPublicKey
    payload_id: str
    stream: bool


@dataclass(slots=True)
class SealedExchange:
    """One envelope. `begun` and every `now` are seconds of one monotonic clock."""

    grant: Grant
    envelopes: Envelopes
    begun: float
    inner: Exchange | None = None  # once what was inside is admitted
    outcome: str = ""  # in a word, once it is known
    _client: _Client | None = None
    _claims: list[str] = field(default_factory=list)
    _sealer: StreamSealer | None = field(default=None, repr=False)
    _pieces: Pieces = field(default_factory=Pieces, repr=False)
    _started: bool = False
    _answered: bool = False
    _told: bool = False

    async def request_headers(self, headers: Mapping[str, str], end: bool) -> Verdict:
        key = parse_client_key(headers.get(PUBLIC_KEY, ""))
        payload_id = parse_payload_id(headers.get(PAYLOAD_ID))
        stream = parse_stream(headers.get(STREAM))
        for found in (key, payload_id, stream):
            if isinstance(found, Refusal):
                return await self._refused(found.cause)
        assert not isinstance(key, Refusal)  # noqa: S101  # for the type checker: the loop has seen to it
        assert not isinstance(payload_id, Refusal)  # noqa: S101  # likewise
        self._client = _Client(key, payload_id, stream is True)
        if end:
            return await self._refused(Cause.NOT_JSON)
        if not self.envelopes.ready:
            return self.denied(Deny(Reason.SERVER_KEY))
        return Pass(buffer_request=True, watch_response=True)

    async def request_body(self, body: bytes) -> Verdict:
        # Not before the body is here: a connection that broke on the way would keep the claim from its repetition.
        if not await self._claim(replays.of_payload_id(self.grant.key_id, self._known().payload_id)):
            return await self._refused(Cause.REPLAYED)
        found = await self.envelopes.open(body, self.grant)
        if isinstance(found, Refusal):
            return await self._refused(found.cause)
        if isinstance(found, Deny):
            return self.denied(found)
        with found.opened:
            return await self._judged(found)

    async def _judged(self, inside: Inside) -> Verdict:
        client = self._known()
        if inside.ask.stream != client.stream:
            return await self._refused(Cause.STREAM)
        if not await self._claim(replays.of_package(inside.opened.wrapped_key)):
            return await self._refused(Cause.REPLAYED)
        decision = await self.envelopes.judge(self.grant, inside.ask)
        if isinstance(decision, Deny):
            return self.denied(decision)
        assert decision.grant is not None  # noqa: S101  # whatever is forwarded has one
        self.inner = Exchange(decision.grant, self.begun, detail=True)
        if client.stream:
            self._sealer = StreamSealer(
                client.key, inside.opened.request_key, client.payload_id, random=os.urandom, processed_at=_unix()
            )
        plaintext = bytes(inside.opened.plaintext)
        forwarded = apply(plaintext, decision.grant.splices)
        if forwarded is not plaintext:
            wipe_bytes(plaintext)
        headers = [
            (":path", UPSTREAM_PATH),
            ("content-type", "application/json"),
            ("content-length", str(len(forwarded))),
        ]
        pinned = self._tier in self.envelopes.pinned
        if pinned:
            headers.append((TIER_HEADER, self._tier))
        return Pass(tuple(headers), body=forwarded, upstream=decision.upstream, reroute=pinned)

    async def response_headers(self, headers: Mapping[str, str], end: bool, now: float) -> Verdict:
        exchange, client = self._exchange(), self._known()
        verdict = exchange.response_headers(headers, end, now)
        if exchange.failed:  # an upstream's error, in our words by now
            return verdict
        streams = headers.get("content-type", "").partition(";")[0].strip().lower() == "text/event-stream"
        plain = headers.get("content-encoding", "identity").lower() in ("", "identity")
        if end or not plain or streams != client.stream or exchange.status >= 300:
            return exchange.unusable(replace=True)  # nothing that could be read, and so nothing to be sealed
        if client.stream:
            return Pass(((STREAM, STREAM_VERSION),), (*verdict.remove_headers, "content-length"), body_mode="stream")
        return Pass(remove_headers=verdict.remove_headers, body_mode="buffer")

    async def response_body(self, chunk: bytes, end: bool, now: float) -> Verdict:
        if self._sealer is not None:
            return self._record(self._sealer, chunk, end, now)
        exchange, client = self._exchange(), self._known()
        verdict = exchange.response_body(chunk, True, now)
        if exchange.failed:
            return exchange.unusable()
        unix = _unix()
        metadata = self.envelopes.metadata(client.payload_id, self._tier, unix)
        answer = chunk if verdict.body is None else verdict.body
        try:
            sealed = await self.envelopes.seal(answer, metadata, client.key, unix)
        except ValueError:
            return exchange.unusable()
        self._answered = True
        headers = (("content-type", "application/octet-stream"), ("content-length", str(len(sealed))))
        return Pass(headers, ("content-encoding", "transfer-encoding"), sealed, ended=True)

    def _record(self, sealer: StreamSealer, chunk: bytes, end: bool, now: float) -> Pass:
        """The records of what passes; the last one says that the stream is whole."""
        exchange, client = self._exchange(), self._known()
        verdict = exchange.response_body(chunk, end, now)
        plain = chunk if verdict.body is None else verdict.body
        out = [] if self._started else [sealer.start()]
        self._started = True
        out += [sealer.event(piece) for piece in self._pieces.feed(plain, end)]
        if end:
            metadata = self.envelopes.metadata(client.payload_id, self._tier, _unix())
            out.append(sealer.finish(json.dumps({"_metadata": metadata}).encode("ascii")))
            self._answered = True
        return Pass(body=b"".join(out), ended=end)

    async def end(self) -> None:
        """It has ended as its last verdict says: answered once and for all, or to be tried again."""
        claims, self._claims = self._claims, []
        if self._answered:
            self.outcome = "stream" if self._sealer is not None else "answered"
            await self.envelopes.replays.finish(claims, self.grant.request_id)
        else:
            self.outcome = self.outcome or "upstream_error"
            await self.envelopes.replays.drop(claims, self.grant.request_id)
        self.forget()

    def forget(self) -> None:
        """Leave nothing behind, however it ended; a second time does nothing."""
        claims, self._claims = self._claims, []
        self.envelopes.replays.drop_later(claims, self.grant.request_id)
        if self._sealer is not None:
            self._sealer.close()
        if not self._told:
            self._told = True
            self.envelopes.observer.enveloped(self.outcome or "aborted")

    async def _claim(self, name: str) -> bool:
        if not await self.envelopes.replays.take(name, self.grant.request_id):
            return False
        self._claims.append(name)
        return True

    async def _refused(self, cause: Cause) -> Answer:
        log.info("envelope refused", extra={"cause": cause.value, "request_id": self.grant.request_id})
        denial = await self.envelopes.refuse(self.grant, Reason.ENVELOPE)
        self.outcome = cause.value
        return self.denied(denial)

    def denied(self, denial: Deny) -> Answer:
        """The refusal as its client reads it: of 400s there is only one, whatever they are about. How key and tenant
        stand is in policy's headers already, which Envoy adds to whatever is answered."""
        self.outcome = self.outcome or denial.reason.value
        denial = Deny(Reason.ENVELOPE) if denial.status == 400 else replace(denial, headers=())
        body = denial.body(self.grant.request_id, detail=True)
        headers = (("content-type", "application/json"), *denial.answer_headers)
        return Answer(denial.status, body, headers, details="paddock_envelope")

    @property
    def _tier(self) -> str:
        assert self.grant.subject is not None  # noqa: S101  # an envelope's grant has one
        return self.grant.subject.tier

    def _known(self) -> _Client:
        assert self._client is not None  # noqa: S101  # set with the headers, which Envoy sends first
        return self._client

    def _exchange(self) -> Exchange:
        assert self.inner is not None  # noqa: S101  # set with the request's body, without which nothing goes on
        return self.inner


def _unix() -> int:
    return int(time.time())
