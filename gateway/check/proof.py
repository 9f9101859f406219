"""From files to findings: reads them, puts them together, runs every rule, asks Envoy itself where it is at hand."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap
from envoy_data_plane.envoy.config.cluster.v3 import Cluster

from gateway.check import (
    bodies,
    certificates,
    edge,
    filters,
    http_checks,
    meter,
    once,
    quotes,
    routes,
    tracing,
    upstreams,
)
from gateway.check.document import Document, Plain, Unreadable, read
from gateway.check.site import METER_FILE, Finding, Rule, Site
from gateway.check.typed import Typed
from gateway.launch import shipped_envoy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHECKS = (
    edge.check, filters.check, http_checks.check, meter.check, routes.check, once.check, bodies.check, upstreams.check,
    certificates.check, quotes.check, tracing.check,
)  # fmt: skip
_MODULES = (edge, filters, http_checks, meter, routes, once, bodies, upstreams, certificates, quotes, tracing)
RULES: tuple[Rule, ...] = tuple(rule for module in _MODULES for rule in vars(module).values() if isinstance(rule, Rule))
_UNREADABLE = "unreadable"
_CLUSTER_URL = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
_PATIENCE = 60  # seconds for `envoy --mode validate`


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What the services beside Envoy are set to."""

    max_request_body_bytes: int
    upstreams: tuple[str, ...] = ()  # empty: not compared
    directory: Path | None = None  # where the bootstrap lies; None: files that it names are not looked for


def prove(main: Document, others: Sequence[Document], settings: Settings) -> list[Finding]:
    """Every finding of a bootstrap and its cluster files, in the order of files and lines."""
    try:
        site = _site(main, others, settings)
    except _Broken as error:
        return [error.finding]
    found = {finding for check in CHECKS for finding in check(site)}
    for typed in site.files:
        for path, what in typed.unknown:
            line = typed.document.line(path)
            found.add(Finding(typed.document.name, line, "unknown", f"{what} is not known to this check", note=True))
    order = [typed.document.name for typed in site.files]
    return sorted(found, key=lambda finding: (order.index(finding.file), finding.line, finding.rule, finding.what))


def document(path: Path) -> Document | Finding:
    """A file, or why it cannot be read."""
    try:
        return read(str(path), path.read_text(encoding="utf-8"))
    except Unreadable as error:
        return Finding(str(path), error.line, _UNREADABLE, error.why)
    except (OSError, UnicodeDecodeError) as error:
        return Finding(str(path), 1, _UNREADABLE, getattr(error, "strerror", None) or "not UTF-8")


def validated(main: Document, others: Sequence[Document], envoy: Path) -> Finding | None:
    """What `envoy --mode validate` has against the configuration, its clusters folded in; None where nothing."""
    whole = dict(main.content)
    whole.pop("dynamic_resources", None)
    static = whole.get("static_resources")
    static = dict(static) if isinstance(static, dict) else {}
    static["clusters"] = [*_listed(static.get("clusters")), *(one for other in others for one in _folded(other))]
    whole["static_resources"] = static
    with tempfile.TemporaryDirectory(prefix="paddock-check-") as directory:
        _point_at_files(whole, Path(directory))
        path = Path(directory) / "envoy.yaml"
        path.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
        command: list[str | Path] = [
            envoy,
            "--mode",
            "validate",
            "-c",
            path,
            "--log-level",
            "critical",
            "--disable-hot-restart",
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Finding(main.name, 1, "envoy", f"Envoy could not be asked: {error}")
    if done.returncode == 0:
        return None
    words = _spoken(done.stderr or done.stdout).replace(str(path), main.name)
    return Finding(main.name, 1, "envoy", f"Envoy does not take it: {words[:500]}", mend="correct what it names")


def _point_at_files(value: Plain, directory: Path) -> None:
    """For what does not lie on this machine as it will on Envoy's: the shipped meter, and empty files of secrets."""
    if isinstance(value, list):
        for one in value:
            _point_at_files(one, directory)
    elif isinstance(value, dict):
        name = value.get("filename")
        if isinstance(name, str) and Path(name).name == METER_FILE and not Path(name).exists():
            value["filename"] = str(shipped_envoy() / METER_FILE)
        for key in ("sds_config", "sdsConfig"):
            _stand_in(value.get(key), directory)
        for one in value.values():
            _point_at_files(one, directory)


def _stand_in(source: Plain, directory: Path) -> None:
    """Secrets that come from a file: Envoy wants it to exist, and reads it when it runs."""
    if not isinstance(source, dict):
        return
    for key in ("path_config_source", "pathConfigSource"):
        named = source.get(key)
        if isinstance(named, dict) and isinstance(named.get("path"), str) and not Path(str(named["path"])).exists():
            empty = directory / "secrets.yaml"
            empty.write_text("resources: []\n", encoding="utf-8")
            source[key] = {"path": str(empty)}


def _spoken(text: str) -> str:
    """The words of Envoy's log, which is in lines of JSON where the configuration says so."""
    words = []
    for line in text.splitlines():
        try:
            words.append(str(json.loads(line)["event"]))
        except (ValueError, KeyError, TypeError):
            words.append(line)
    return " ".join(" ".join(words).split())


def _listed(value: Plain) -> list[Plain]:
    return value if isinstance(value, list) else []


def _folded(document: Document) -> Iterator[Plain]:
    """The clusters of a file as a bootstrap has them."""
    for one in _listed(document.content.get("resources")):
        yield {name: value for name, value in one.items() if name != "@type"} if isinstance(one, dict) else one


class _Broken(Exception):
    def __init__(self, finding: Finding) -> None:
        super().__init__(finding)
        self.finding = finding


def _site(main: Document, others: Sequence[Document], settings: Settings) -> Site:
    typed = Typed(main)
    files = [typed, *(Typed(other) for other in others)]
    current = typed
    try:
        bootstrap = typed.load(Bootstrap)
        clusters = []
        for current in files[1:]:
            clusters += list(_clusters(current))
    except Unreadable as error:
        raise _Broken(Finding(current.document.name, error.line, _UNREADABLE, error.why)) from error
    limit = settings.max_request_body_bytes
    return Site(typed, bootstrap, files, clusters, limit, settings.upstreams, settings.directory)


def _clusters(typed: Typed) -> Iterator[Cluster]:
    resources = typed.document.content.get("resources")
    if not isinstance(resources, list):
        raise Unreadable(1, "no list of resources")
    for number, resource in enumerate(resources):
        if not isinstance(resource, dict) or resource.get("@type") != _CLUSTER_URL:
            raise Unreadable(typed.document.line(("resources", number)), f"not a {_CLUSTER_URL}")
        yield typed.load(Cluster, ("resources", number))
