"""The access-log codec: what Envoy alone knows of a finished request, as one event for the ledger.

Every request that Envoy answered arrives here once, whoever answered it: local replies (a blocked path, 413, 502),
bytes, response flags, durations. The grant or the refusal comes along in ext_authz metadata, which no client can forge.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from envoy.config.core.v3 import base_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2

from policy.rules.events import OWN_PAGES, Finished, Progress, lacks_answer, local_reason, refusal_status, unjudged_id
from policy.rules.logs import redact_path

if TYPE_CHECKING:
    from collections.abc import Iterator

StreamAccessLogsMessage = als_pb2.StreamAccessLogsMessage
StreamAccessLogsResponse = als_pb2.StreamAccessLogsResponse
AUTHZ = "envoy.filters.http.ext_authz"
_PERIODIC = accesslog_pb2.AccessLogType.DownstreamPeriodic

# Envoy's own short names of its response flags, as they stand in its logs.
_FLAGS = (
    ("failed_local_healthcheck", "LH"), ("no_healthy_upstream", "UH"), ("upstream_request_timeout", "UT"),
    ("local_reset", "LR"), ("upstream_remote_reset", "UR"), ("upstream_connection_failure", "UF"),
    ("upstream_connection_termination", "UC"), ("upstream_overflow", "UO"), ("no_route_found", "NR"),
    ("rate_limited", "RL"), ("rate_limit_service_error", "RLSE"), ("stream_idle_timeout", "SI"),
    ("downstream_connection_termination", "DC"), ("upstream_retry_limit_exceeded", "URX"),
    ("downstream_protocol_error", "DPE"), ("upstream_protocol_error", "UPE"), ("duration_timeout", "DT"),
    ("invalid_envoy_request_headers", "IH"), ("overload_manager", "OM"), ("no_filter_config_found", "NFCF"),
    ("no_cluster_found", "NC"), ("dns_resolution_failure", "DF"), ("downstream_remote_reset", "DR"),
)  # fmt: skip


def entries(message: Any) -> Iterator[Finished]:
    for entry in message.http_logs.log_entry:
        if entry.common_properties.access_log_type == _PERIODIC:
            continue
        read = _entry(entry)
        if read is not None:
            yield read


def progress(message: Any) -> Iterator[Progress]:
    """Of the exchanges that still go on and hold a reservation."""
    for entry in message.http_logs.log_entry:
        if entry.common_properties.access_log_type != _PERIODIC:
            continue
        metadata = entry.common_properties.metadata.filter_metadata
        grant = _authz(metadata).get("grant", "")
        held: dict[str, Any] = json.loads(grant) if grant else {}
        if held.get("epoch"):
            yield Progress(held["request_id"], held["tenant_id"], _own(metadata)[2] or 0)


def _authz(metadata: Any) -> dict[str, str]:
    # A mesh names its filters after its own resources; see `processor.edge.messages.grant`.
    name = AUTHZ if AUTHZ in metadata else next((one for one in metadata if one.startswith(f"{AUTHZ}/")), None)
    fields = metadata[name].fields if name is not None else {}
    return {name: fields[name].string_value for name in fields}


def _own(metadata: Any) -> tuple[bool, str, int | None]:
    """What Envoy's own meter noted: that it was there, what it read at the end, the pieces of content it saw."""
    if "paddock" not in metadata:
        return False, "", None
    fields = metadata["paddock"].fields
    deltas = int(fields["deltas"].number_value) if "deltas" in fields else None
    return "meter" in fields, fields["used"].string_value if "used" in fields else "", deltas


def _entry(entry: Any) -> Finished | None:
    common, request, response = entry.common_properties, entry.request, entry.response
    # A malformed request gets its id only with its answer.
    request_id = request.request_id or response.response_headers.get("x-request-id", "")
    if not request_id:
        return None  # no response carries an id that this entry could be found by
    metadata = common.metadata.filter_metadata
    text = _authz(metadata)
    if not text:
        request_id = unjudged_id(request_id)
    grant = text.get("grant", "")
    held: dict[str, Any] = json.loads(grant) if grant else {}
    settled = "paddock" in metadata and "settled" in metadata["paddock"].fields
    started = common.start_time
    started_at = held.get("started_at") or started.seconds * 1_000_000 + started.nanos // 1000
    status = response.response_code.value
    duration = common.duration  # set however the exchange ended; the last-byte times are not, where a client left
    first = common.time_to_first_upstream_rx_byte
    address = common.downstream_remote_address.socket_address.address
    reached = bool(common.upstream_remote_address.ListFields())
    tenant_id = held.get("tenant_id") or (int(text["tenant_id"]) if "tenant_id" in text else None)
    recorded = "recorded" in text
    if not reached:
        told = response.response_headers.get("grpc-status", "")
        status = refusal_status(status, told, limited=common.response_flags.rate_limited)
    refused = not reached and status >= 400 and not grant
    metered, used, deltas = _own(metadata)
    microseconds = duration.seconds * 1_000_000 + duration.nanos // 1000
    flags = [short for name, short in _FLAGS if getattr(common.response_flags, name)]
    event = {
        "id": request_id,
        "s": str(started_at),
        "t": tenant_id,
        "tn": text.get("tenant", ""),
        "kp": text.get("key_prefix", ""),
        "model": text.get("model", ""),
        "ep": text.get("endpoint", "") or held.get("endpoint", "") or redact_path(request.path.partition("?")[0])[:200],
        "method": base_pb2.RequestMethod.Name(request.request_method),
        "addr": address,
        "st": status,
        "reason": text.get("reason", "") or (local_reason(status) if refused else ""),
        "nf": not grant and not reached and lacks_answer(status),
        "flags": ",".join([*flags, *filter(None, text.get("signals", "").split(","))]),
        "in": request.request_body_bytes,
        "out": response.response_body_bytes,
        "us": microseconds,
        "up_us": first.seconds * 1_000_000 + first.nanos // 1000,
    }
    return Finished(
        request_id, started_at, tenant_id, address, refused, recorded, text.get("recorded") == "0", grant, settled,
        reached, response.response_body_bytes, json.dumps(event, separators=(",", ":")),
        edge_reason=local_reason(status) if refused and "reason" not in text else "",
        status=status, microseconds=microseconds, metered=metered, used=used, deltas=deltas,
        open=not text and not refused and (not reached or common.route_name in OWN_PAGES),
    )  # fmt: skip
