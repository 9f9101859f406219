"""Short texts of clients and upstreams: names, addresses, origins, paths, log lines, lists of models."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

from policy.rules import access_line, endpoints, logs, metering, models, origins, tags
from policy.rules.addresses import neighbourhood
from policy.rules.requests import Bounds, Kind, Refusal, parse


def _text(data: bytes) -> str:
    """As Envoy hands text over: what is no UTF-8 comes replaced."""
    return data.decode("utf-8", "replace")


def models_have_one_name(data: bytes) -> None:
    """The canonical name of a canonical name is itself, says nothing but ASCII, and letter case never matters."""
    name = _text(data)
    try:
        found = models.canonical(name)
    except ValueError as refused:
        assert not name or name not in str(refused) or len(name) < 4
        return
    assert models.canonical(found) == found
    assert models.canonical(name.upper()) == found
    assert models.canonical(f" {found}\t") == found
    assert found.isascii() and found == found.lower() and ":" in found and "://" not in found


def origins_have_one_spelling(data: bytes) -> None:
    """An origin of an origin is itself; there is nothing of a path, a user or a wildcard in it."""
    try:
        found = origins.origin(_text(data))
    except ValueError:
        return
    assert origins.origin(found) == found
    assert found.isascii() and found.isprintable()
    scheme, _, rest = found.partition("://")
    assert scheme in ("http", "https")
    assert rest and not set(rest) & set("/@?#*\\ \t\r\n%")
    for name, value in (*origins.preflight(found), *origins.readable(found)):
        assert "\n" not in name + value


def addresses_share_a_neighbourhood(data: bytes) -> None:
    """Every address of one /64 counts as one, an IPv4 address as itself however it is written; the rest stays."""
    text = _text(data)
    found = neighbourhood(text)
    assert neighbourhood(found) == found
    try:
        ip = ip_address(text)
    except ValueError:
        assert found == text
        return
    mapped = getattr(ip, "ipv4_mapped", None)
    if ip.version == 4 or mapped is not None:
        assert found == str(mapped or ip)
    else:
        network = ip_network(found)
        assert network.prefixlen == 64
        first, last = network[0], network[-1]
        assert int(first) <= int(ip) <= int(last)
        if getattr(last, "ipv4_mapped", None) is None:
            assert neighbourhood(str(last)) == found


def paths_find_what_is_in_the_table(data: bytes) -> None:
    """A path is an endpoint's by its exact spelling, or names a model that is judged like any other name."""
    method, _, path = _text(data).partition(" ")
    found = endpoints.find(method, path)
    if found is None:
        return
    endpoint, named = found
    if named is None:
        assert endpoints.ENDPOINTS[method, path] is endpoint
        return
    assert (method, endpoint.kind) == ("GET", Kind.MODEL) and path.startswith("/v1/models/")
    ask = parse(endpoint, b"", Bounds(), named)
    if not isinstance(ask, Refusal):
        assert models.canonical(ask.model) == ask.model


def access_lines_are_entries_or_nothing(data: bytes) -> None:
    """A line is a request that can be told of, in bounded words, or None. It never raises: no line stops a recovery."""
    found = access_line.parse(data)
    if found is None:
        return
    event = json.loads(found.event)
    assert event["id"] == found.request_id
    assert found.request_id
    assert all(len(value) <= 500 for name, value in event.items() if isinstance(value, str) and name != "id")
    assert type(event["st"]) is int and (found.tenant_id is None or type(found.tenant_id) is int)


def readings_are_settlements_or_refused(data: bytes) -> None:
    """What Envoy's meter read is figures that can be charged, whoever wrote them."""
    try:
        found = metering.reading(data)
    except ValueError:
        return
    counts = [found.completion_tokens, *(value for name, value in found.event.items() if name != "outcome")]
    assert all(type(one) is int and 0 <= one <= 2**53 for one in (*counts, found.prompt_tokens) if one is not None)
    assert not (found.exact and found.prompt_tokens is None)
    assert set(found.event) <= {"st", "outcome", "ttft", "load", "prompt", "eval"}


def tags_list_what_can_be_asked_for(data: bytes) -> None:
    """What an upstream lists is kept by a keep-list, bounded, under names that requests can spell."""
    try:
        found = tags.read(data)
    except ValueError:
        return
    assert len(found) <= tags.MODELS_MAX
    assert len({one.canonical for one in found}) == len(found)
    for one in found:
        assert models.canonical(one.name) == one.canonical
        assert set(one.details) <= {"name", "model", "modified_at", "size", "digest", "details", "capabilities"}
        assert one.details["name"] == one.name
    entries = [one.details for one in found]
    said = json.loads(tags.tags_body(entries))["models"]
    assert [one["name"] for one in said] == [one.name for one in found]
    assert len(json.loads(tags.models_body(entries))["data"]) == len(found)


def logs_cut_secrets(data: bytes) -> None:
    """Wherever a credential stands in a text, it is cut; cutting twice changes nothing more."""
    text = _text(data)
    key, token = "nz_abcdefghiSECRETSECRETSECRETSECRETSECRET", "eyJhbGciOi.SECRET-SECRET_SECRET.SECRETSECRET"
    for secret in (key, f"Bearer {token}", f"x://user:{'SECRET' * 3}@host"):
        assert "SECRETSECRET" not in logs.redact(f"{text} {secret} {text}"), secret
    once = logs.redact(text)
    assert logs.redact(once) == once
    assert len(once) <= len(text) + text.count("@") + text.count(".") + text.count("nz") + text.lower().count("b")


TARGETS = (
    models_have_one_name,
    origins_have_one_spelling,
    addresses_share_a_neighbourhood,
    paths_find_what_is_in_the_table,
    access_lines_are_entries_or_nothing,
    readings_are_settlements_or_refused,
    tags_list_what_can_be_asked_for,
    logs_cut_secrets,
)
