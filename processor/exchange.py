"""One HTTP exchange as processor sees it: one object per exchange, one method per phase, no I/O.

A method takes what Envoy reports of a phase and returns a verdict: pass on, change this, answer that. The gRPC loop
translates both ways and knows nothing else. What the exchange used is asked for at the end, however it ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policy.rules.decision import error_body
from policy.rules.grant import Duty, Grant
from policy.rules.settlement import Settlement
from policy.rules.splices import apply
from processor.answers import clean_status, foreign
from processor.show import sanitize, sanitize_model
from processor.usage import meter_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.rules.speeds import Speeds
    from processor.usage import Meter


@dataclass(frozen=True, slots=True)
class Pass:
    """Go on, with changes where any are named. `body` None leaves the body (or the chunk) as it is."""

    set_headers: tuple[tuple[str, str], ...] = ()
    remove_headers: tuple[str, ...] = ()
    body: bytes | None = None
    buffer_request: bool = False  # hand over the whole request body
    watch_response: bool = False  # hand over the response's headers, its body as `body_mode` says
    body_mode: str = ""  # in a response_headers verdict: "stream", "buffer" or "" for none
    replace: bool = False  # in a response_headers verdict: `body` stands for whatever body would have come
    upstream: str = ""  # in a request_body verdict: ip:port of the Ollama to go to, where it is chosen here
    reroute: bool = False  # look for the route anew: what was changed decides
    ended: bool = False  # nothing more of this exchange will come: settle now


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer the client at once, instead of the upstream."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    details: str = "paddock_answer"


Verdict = Pass | Answer


@dataclass(slots=True)
class Exchange:
    """One admitted request on its way. `begun` and every `now` are seconds of one monotonic clock."""

    grant: Grant
    begun: float
    status: int = 0
    first_byte: float | None = None
    last_byte: float = 0.0
    cut: bool = False
    detail: bool = False  # errors carry `detail`, which envelope clients read
    _meter: Meter | None = field(default=None, repr=False)
    _failed: bool = False
    _foreign: tuple[str, ...] = ()  # names of headers that end here

    def request_headers(self, end: bool) -> Verdict:
        """The request's headers; `end` where no body follows."""
        return Pass(buffer_request=bool(self.grant.splices) and not end, watch_response=True)

    def out_of_step(self) -> Answer:
        """Envoy's phases do not come as they must, so what policy wants cannot be done: refused, nothing charged."""
        self._failed = True
        return self._error(503, "unavailable", "temporarily unavailable")

    def request_body(self, body: bytes) -> Verdict:
        """The whole request body, asked for because it must change before the upstream sees it."""
        try:
            changed = apply(body, self.grant.splices)
        except ValueError:
            # The splices were made for another body: a filter in between rewrote it. What was judged is not what came.
            self._failed = True
            return self._error(503, "unavailable", "temporarily unavailable")
        return Pass(body=changed, set_headers=(("content-length", str(len(changed))),))

    def response_headers(self, headers: Mapping[str, str], end: bool, now: float) -> Pass:
        """The response's headers, the upstream's or (where Envoy answered itself) Envoy's own."""
        self.status = int(headers.get(":status", "0") or 0)
        self._foreign = foreign(headers)
        if "grpc-status" in headers:  # Envoy's own error, to who says that it speaks gRPC
            self.status = 502
        if self.status >= 400 or self.status < 200:
            self._failed = True
            return self._replaced(*clean_status(self.status), replace=True)
        if end:
            return Pass(remove_headers=self._foreign, ended=True)
        if self.grant.duty is Duty.SHOW:
            return Pass(remove_headers=self._foreign, body_mode="buffer")
        self._meter = meter_for(
            self.grant.endpoint,
            content_type=headers.get("content-type", ""),
            content_encoding=headers.get("content-encoding", ""),
            hide_usage=self.grant.hide_usage,
            cap=self.grant.cap,
            prompt_estimate=self.grant.prompt_tokens,
        )
        # A changed or hidden chunk makes any stated length wrong; Envoy sends the body chunked instead.
        changes = self.grant.stream and "content-length" in headers
        wrong = ("content-length",) if changes else ()
        return Pass(body_mode="stream", remove_headers=(*self._foreign, *wrong))

    def response_body(self, chunk: bytes, end: bool, now: float) -> Verdict:
        """A chunk of the answer, or all of it where it was asked for whole."""
        if self.grant.duty is Duty.SHOW:
            try:
                clean = (sanitize if self.grant.endpoint == "/api/show" else sanitize_model)(chunk)
            except ValueError:
                return self.unusable()
            return Pass(body=clean, set_headers=(("content-length", str(len(clean))),), ended=True)
        if self.first_byte is None and chunk:
            self.first_byte = now
        self.last_byte = now
        if self._meter is None:  # no headers came first: what this is a part of cannot be known
            return self.out_of_step()
        body = self._meter.feed(chunk, end)
        self.cut = self._meter.cut
        return Pass(body=body, ended=end)

    @property
    def failed(self) -> bool:
        """Whether what came is no answer, whatever its status said."""
        return self._failed or (self._meter is not None and self._meter.usage().failed)

    def unusable(self, *, replace: bool = False) -> Pass:
        """What came is no answer: an error takes its place."""
        self._failed = True
        return self._replaced(502, "bad_gateway", "upstream unavailable", replace=replace)

    def produced(self) -> int:
        """Completion tokens so far."""
        return 0 if self._meter is None else self._meter.usage().completion_tokens

    @property
    def reserves(self) -> bool:
        """Whether there is a reservation to settle."""
        return bool(self.grant.epoch)

    def settlement(self, now: float, speeds: Speeds, *, whole: bool) -> Settlement:
        """What was used; `whole` False where the exchange broke off before its end."""
        facts: dict[str, object] = {"st": self.status or None}
        if self.first_byte is not None:
            facts["ttft"] = round((self.first_byte - self.begun) * 1e6)
        if self._meter is None:
            # No answer, or an error: nothing was produced. Broken off while waiting: something, that nobody saw.
            silent = whole or self._failed or self.status >= 400
            facts["outcome"] = "upstream_error" if self._failed else "completed" if whole else "aborted"
            if silent:
                return Settlement(0, 0, exact=True, event=facts)
            return Settlement(None, self._unseen(now, speeds), exact=False, event=facts)
        usage = self._meter.usage()
        speeds.learn(self.grant.model, usage.completion_tokens, usage.eval_duration)
        if not usage.readable:
            # An upstream that compresses although nobody asked: nothing was measured, so what was reserved is charged.
            facts["outcome"] = "unreadable"
            return Settlement(None, self.grant.cap, exact=False, event=facts)
        facts.update(load=usage.load_duration, prompt=usage.prompt_eval_duration, eval=usage.eval_duration)
        outcome = "cut" if self.cut else "completed" if whole or usage.exact else "aborted"
        facts["outcome"] = "upstream_error" if usage.failed else outcome
        completion = usage.completion_tokens
        if not (whole or usage.exact or completion or self.grant.stream):
            completion = self._unseen(now, speeds)
        return Settlement(usage.prompt_tokens, completion, exact=usage.exact, event=facts)

    def _unseen(self, now: float, speeds: Speeds) -> int:
        return speeds.produced(self.grant.model, now - self.begun, self.grant.cap)

    def _replaced(self, status: int, kind: str, message: str, *, replace: bool = False) -> Pass:
        """An error in place of what the upstream answered. It stays a response of the filter chain, and so keeps the
        headers that policy added; an answer of our own at this point would not."""
        body = error_body(status, kind, message, self.grant.request_id, detail=self.detail)
        headers = (*_error_headers(status), ("content-length", str(len(body))), (":status", str(status)))
        said = dict(headers)
        gone = tuple(name for name in self._foreign if name not in said)
        return Pass(headers, (*gone, "content-encoding", "transfer-encoding"), body, replace=replace, ended=True)

    def _error(self, status: int, kind: str, message: str) -> Answer:
        body = error_body(status, kind, message, self.grant.request_id)
        return Answer(status, body, _error_headers(status), details="paddock_upstream_error")


def _error_headers(status: int) -> tuple[tuple[str, str], ...]:
    retry = (("retry-after", "1"),) if status == 503 else ()
    return (("content-type", "application/json"), *retry)
