"""The meter: the one script that may stand between policy and Ollama, and what has to be around it.

Where it is on for a route, ext_proc is off: answers are read in Envoy, settled with processor before their last piece,
and told to policy by the access log while they are on their way. A script can do anything, so no other is taken: not
one with lines of its own, not one that a route swaps for another.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.data.accesslog.v3 import AccessLogType
from envoy_data_plane.envoy.extensions.access_loggers.grpc.v3 import HttpGrpcAccessLogConfig
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import ExternalProcessor
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua, LuaPerRoute

from gateway.check.site import METER_FILE, Finding, Rule, Site, is_meter
from gateway.launch import shipped_envoy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envoy_data_plane.envoy.config.accesslog.v3 import AccessLogFilter
    from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpConnectionManager

    from gateway.check.site import Path as RoutePath

TWICE = Rule(
    "metered-twice",
    "two would edit one answer, and which of them settles it is chance",
    "turn ext_proc off for this route, or leave the meter off",
)
SOURCE = Rule(
    "meter-source",
    "a script there sees every prompt and answer, and writes what is charged",
    f"let default_source_code alone name the shipped {METER_FILE}, unchanged, for every route",
)
TOLD = Rule(
    "meter-log",
    "policy would not hear of answers under way: their reservations would run out, or a half be taken for the whole",
    "set access_log_options: {access_log_flush_interval: 1s}, and keep DownstreamPeriodic out of all logs but policy's",
)
SLOWEST = 5.0  # seconds between two signs of an answer: a lease has fifteen


def check(site: Site) -> Iterator[Finding]:
    for manager in site.managers():
        meters = [link for link in site.links(manager) if is_meter(link.settings)]
        for link in meters:
            assert isinstance(link.settings, Lua)  # noqa: S101  # a meter is one
            yield from _source(site, link.settings)
        served = [path for path in site.routes() if path.manager is manager and site.metered(path)]
        if served:
            yield from _told(site, manager)
        for path in served:
            if site.to_upstream(path.route) and site.serving(path, ExternalProcessor):
                yield site.finding(TWICE, "the meter and ext_proc are both on", path.route)
    for path in site.routes():
        yield from _swapped(site, path)


def _source(site: Site, lua: Lua) -> Iterator[Finding]:
    for name in ("inline_code", "source_codes"):
        if getattr(lua, name):
            yield site.finding(SOURCE, f"the meter has {name} besides", lua, name)
    named = Path((lua.default_source_code.filename if lua.default_source_code else None) or METER_FILE)
    if site.directory is None:
        return
    ours = (shipped_envoy() / METER_FILE).read_bytes()
    # Beside the configuration is what will be deployed with it; where it is named, what runs on this machine.
    places = {path for path in (site.directory / named.name, site.directory / named) if path.is_file()}
    for path in sorted(places):
        if path.read_bytes() != ours:
            yield site.finding(SOURCE, f"{path} is not the shipped one", lua, "default_source_code")
    if not places:
        what = f"{named} cannot be read here, so it was not compared with the shipped one"
        yield site.note(SOURCE, what, lua, "default_source_code")


def _swapped(site: Site, path: RoutePath) -> Iterator[Finding]:
    for link in site.links(path.manager):
        if not is_meter(link.settings):
            continue
        said = site.per_route(path, link.http_filter)
        if isinstance(said, LuaPerRoute) and (said.name or said.source_code is not None):
            yield site.finding(SOURCE, "the route puts another script in its place", path.route)


def _told(site: Site, manager: HttpConnectionManager) -> Iterator[Finding]:
    options = manager.access_log_options
    interval = options.access_log_flush_interval if options is not None else None
    if interval is None or not 0 < interval.total_seconds() <= SLOWEST:
        what = f"the access log does not tell of answers under way every {SLOWEST:.0f} s or sooner"
        yield site.finding(TOLD, what, options or manager, "access_log_flush_interval")
    for log in manager.access_log:
        if isinstance(site.unpacked(log.typed_config), HttpGrpcAccessLogConfig):
            continue  # policy knows the one from the other
        if not _leaves_periodic_out(log.filter):
            yield site.finding(TOLD, f"{log.name} has lines of answers that still go on", log)


def _leaves_periodic_out(chosen: AccessLogFilter | None) -> bool:
    if chosen is None:
        return False
    if chosen.log_type_filter is not None:
        return (AccessLogType.DownstreamPeriodic in chosen.log_type_filter.types) is chosen.log_type_filter.exclude
    if chosen.and_filter is not None:
        return any(_leaves_periodic_out(one) for one in chosen.and_filter.filters)
    if chosen.or_filter is not None:
        return all(_leaves_periodic_out(one) for one in chosen.or_filter.filters)
    return False
