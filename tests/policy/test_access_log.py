"""What Envoy's log stream says: finished requests, and how far those have come that are still on their way."""

from __future__ import annotations

import json
from typing import Any

from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2

from policy.edge import access_log
from policy.rules.events import Progress
from policy.rules.grant import Duty, Grant

GRANT = Grant("r", 1_700_000_000_000_001, Duty.METER, "/api/chat", "m", True, 7, "acme", 9, "nz_abcdefghi", "e", 12, 99)
AUTHZ = access_log.AUTHZ


def message(*, periodic: bool = False, grant: str = "", authz: str = AUTHZ, **own: Any) -> Any:
    """One entry, with what the meter noted in `own`."""
    entry = accesslog_pb2.HTTPAccessLogEntry()
    common = entry.common_properties
    kinds = accesslog_pb2.AccessLogType
    common.access_log_type = kinds.DownstreamPeriodic if periodic else kinds.DownstreamEnd
    common.start_time.seconds = 1_700_000_000
    common.duration.seconds, common.duration.nanos = 2, 500_000_000
    common.upstream_remote_address.socket_address.address = "192.0.2.9"
    entry.request.request_id = "r"
    entry.response.response_code.value = 200
    if grant:
        common.metadata.filter_metadata[authz]["grant"] = grant
    for name, value in own.items():
        common.metadata.filter_metadata["paddock"][name] = value
    found = als_pb2.StreamAccessLogsMessage()
    found.http_logs.log_entry.append(entry)
    return found


def test_an_answer_on_its_way_is_progress_and_no_entry() -> None:
    told = message(periodic=True, grant=GRANT.to_json(), meter="1", deltas=41.0)
    assert list(access_log.entries(told)) == []
    assert list(access_log.progress(told)) == [Progress("r", 7, 41)]


def test_before_its_first_piece_it_has_come_nowhere() -> None:
    """The lease is renewed all the same: the model is at work."""
    assert list(access_log.progress(message(periodic=True, grant=GRANT.to_json()))) == [Progress("r", 7, 0)]


def test_under_the_name_that_a_mesh_gives_it() -> None:
    told = message(periodic=True, grant=GRANT.to_json(), authz=f"{AUTHZ}/securitypolicy/x")
    assert list(access_log.progress(told)) == [Progress("r", 7, 0)]


def test_what_holds_no_reservation_has_no_progress() -> None:
    nothing = json.dumps({**json.loads(GRANT.to_json()), "epoch": ""})
    assert list(access_log.progress(message(periodic=True, grant=nothing))) == []
    assert list(access_log.progress(message(periodic=True))) == []


def test_a_finished_one_is_an_entry_and_no_progress() -> None:
    told = message(grant=GRANT.to_json(), meter="1", deltas=41.0, used='{"c":1}')
    (entry,) = access_log.entries(told)
    assert list(access_log.progress(told)) == []
    assert (entry.metered, entry.used, entry.deltas, entry.settled) == (True, '{"c":1}', 41, False)
    assert (entry.status, entry.microseconds, entry.reached_upstream) == (200, 2_500_000, True)
    assert entry.started_at == GRANT.started_at


def test_the_meter_says_that_it_settled() -> None:
    (entry,) = access_log.entries(message(grant=GRANT.to_json(), meter="1", settled="1", used="{}", deltas=0))
    assert (entry.metered, entry.settled, entry.deltas) == (True, True, 0)


def test_what_processor_metered_is_not_said_to_be_envoys() -> None:
    (entry,) = access_log.entries(message(grant=GRANT.to_json(), settled="1"))
    assert (entry.metered, entry.used, entry.deltas, entry.settled) == (False, "", None, True)


def test_an_answer_of_which_nothing_came_has_no_deltas() -> None:
    (entry,) = access_log.entries(message(grant=GRANT.to_json(), meter="1"))
    assert (entry.metered, entry.deltas) == (True, None)


def unjudged(route: str = "blocked", **headers: str) -> Any:
    told = message()
    entry = told.http_logs.log_entry[0]
    entry.common_properties.ClearField("upstream_remote_address")
    entry.common_properties.route_name = route
    for name, value in headers.items():
        entry.response.response_headers[name.replace("_", "-")] = value
    return told


def test_a_refusal_told_in_grpc() -> None:
    (entry,) = access_log.entries(unjudged(grpc_status="7"))
    assert (entry.status, entry.refused, entry.open, entry.edge_reason) == (403, True, False, "endpoint_blocked")
    told = unjudged(grpc_status="14")
    told.http_logs.log_entry[0].common_properties.response_flags.rate_limited = True
    (entry,) = access_log.entries(told)
    assert (entry.status, entry.edge_reason) == (429, "address_rate")


def test_an_answer_for_anybody() -> None:
    (entry,) = access_log.entries(unjudged("healthz"))
    assert (entry.open, entry.refused, entry.entry.open) == (True, False, True)
    told = message()
    assert [one.open for one in access_log.entries(told)] == [False]  # of another Envoy: no route of ours
    told.http_logs.log_entry[0].common_properties.route_name = "version"
    assert [one.open for one in access_log.entries(told)] == [True]
    told.http_logs.log_entry[0].common_properties.metadata.filter_metadata[AUTHZ]["tenant"] = "acme"
    assert [one.open for one in access_log.entries(told)] == [False]
