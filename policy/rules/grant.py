"""The grant: what policy admitted, handed to processor through Envoy.

Policy puts it into ext_authz dynamic metadata (namespace `envoy.filters.http.ext_authz`, one string field `grant`);
Envoy forwards it to ext_proc and writes it to the gRPC access log. No client can forge it: Envoy sets that namespace
from policy's answer alone. It carries no key, no prompt and no answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from dataclasses import fields as fields_of
from enum import StrEnum

from policy.rules.subject import Subject


class Duty(StrEnum):
    """What processor does with the exchange."""

    METER = "meter"  # read usage from the answer, settle the reservation
    SHOW = "show"  # keep-list the answer of /api/show and /v1/models/{model}
    ENVELOPE = "envelope"  # open the request, judge it, seal the answer


@dataclass(frozen=True, slots=True)
class Splice:
    """Replace `length` bytes at byte `offset` of the request body by `text`. Offsets refer to the body as received."""

    offset: int
    length: int
    text: str


@dataclass(frozen=True, slots=True)
class Grant:
    """One admitted request."""

    request_id: str
    started_at: int  # microseconds since the Unix epoch: Envoy's start of the request, with request_id its identity
    duty: Duty
    endpoint: str  # the path template of `policy.rules.requests.ENDPOINTS`, for example "/api/chat"
    model: str  # canonical
    stream: bool
    tenant_id: int
    tenant: str
    key_id: int
    key_prefix: str
    epoch: str  # identity of the counter store that holds the reservation; "" where nothing is reserved
    prompt_tokens: int  # estimate, reserved
    cap: int  # completion tokens, reserved; the answer is cut beyond them
    prompt_bytes: int = 0  # what the estimate was made from
    splices: tuple[Splice, ...] = ()  # what the request body must have changed before the upstream sees it
    hide_usage: bool = False  # usage was asked for upstream on the gateway's behalf: keep it from the client
    headers: tuple[tuple[str, str], ...] = ()  # reserved for duties that answer by themselves
    scopes: tuple[str, ...] = ()  # names of what else the reservation stands in, besides tenant and key
    counts_as: int = 0  # the key whose counters the reservation stands in, where that is not key_id
    subject: Subject | None = None  # with ENVELOPE: for whom what was in it is judged

    def to_json(self) -> str:
        # Field by field: `dataclasses.asdict` copies deeply, and cost more than all the rest of a check together.
        fields: dict[str, object] = {name: getattr(self, name) for name in _PLAIN}
        fields["splices"] = [(splice.offset, splice.length, splice.text) for splice in self.splices]
        fields["headers"] = self.headers
        if self.counts_as:
            fields["counts_as"] = self.counts_as
        if self.subject is not None:
            fields["subject"] = self.subject.as_fields()
        return _ENCODER.encode(fields)

    def to_meter(self) -> str:
        """What Envoy's own meter needs, in a form that costs it little: endpoint, cap, whether usage is hidden (1 or
        0), prompt estimate, start and request id, parted by spaces; then each splice as `offset length size:text`, one
        right after the other."""
        edits = "".join(f"{one.offset} {one.length} {len(one.text.encode())}:{one.text}" for one in self.splices)
        return (
            f"{self.endpoint} {self.cap} {self.hide_usage:d} {self.prompt_tokens} {self.started_at} {self.request_id} "
            f"{edits}"
        )

    @classmethod
    def from_json(cls, text: str) -> Grant:
        """Read what `to_json` wrote; ValueError on anything else."""
        try:
            fields = json.loads(text)
            fields["duty"] = Duty(fields["duty"])
            fields["splices"] = tuple(Splice(*splice) for splice in fields["splices"])
            fields["headers"] = tuple((name, value) for name, value in fields["headers"])
            fields["scopes"] = tuple(fields["scopes"])
            if "subject" in fields:
                fields["subject"] = Subject.from_fields(fields["subject"])
            return cls(**fields)
        except (TypeError, KeyError, RecursionError) as error:
            raise ValueError("not a grant") from error


_ENCODER = json.JSONEncoder(separators=(",", ":"))
_PLAIN = tuple(
    field.name for field in fields_of(Grant) if field.name not in ("splices", "headers", "counts_as", "subject")
)
