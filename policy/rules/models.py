"""Model names: one canonical form for the many names that Ollama takes for one model, and who sees which.

Ollama reads a name as `[scheme://][host/][namespace/]model[:tag]`, fills what is missing with
`registry.ollama.ai/library/…:latest` and compares without regard to ASCII case (its `types/model` and
`internal/modelref` packages). A comparison of the strings as sent is therefore a hole: every name is reduced to the
shortest lower-case form first, and the reduced form is what allowlists, discovery and grants hold.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.rules.tenants import Key

T = TypeVar("T")

MAX_LENGTH = 200  # ours: Ollama's parts add up to more, names in use stay under 100

# What Go's strings.TrimSpace removes. str.strip() without an argument would also take U+001C to U+001F.
_GO_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"

# The parts, as Ollama's isValidPart has them, after lower-casing. Only a host may hold a colon.
_HOST = r"[a-z0-9_][a-z0-9_.:-]{0,199}"
_NAMESPACE = r"[a-z0-9_][a-z0-9_-]{0,79}"
_PART = r"[a-z0-9_][a-z0-9_.-]{0,79}"
_NAME = re.compile(rf"(?:(?:({_HOST})/)?({_NAMESPACE})/)?({_PART})(?::({_PART}))?")
_SHORT = re.compile(rf"{_PART}:{_PART}")
_SCHEME = re.compile(r"(?:https?|ollama)://(?=[^/]+/[^/]+/[^/]+\Z)")  # Ollama splits one off a full name only

_DEFAULT_HOST = "registry.ollama.ai"
_DEFAULT_NAMESPACE = "library"
_DEFAULT_TAG = "latest"


def canonical(name: str) -> str:
    """The short canonical form of `name`: lower case, defaults left out, always with a tag.

    ValueError where no Ollama would take the name, where it is longer than MAX_LENGTH, and where different versions of
    Ollama would run different models under it (`model:local`). Digests (`@sha256:…`) are not names here: they would
    open a model under a name that no allowlist holds. The message repeats nothing of the name.
    """
    if len(name) > MAX_LENGTH:
        raise ValueError("a model name of more than 200 characters")
    name = name.strip(_GO_SPACE)
    if not name.isascii():
        raise ValueError("a model name with characters outside ASCII")
    name = name.lower()
    if _SHORT.fullmatch(name) and not name.endswith((":local", "-cloud")):
        return name
    return _reduced(name)


def _reduced(name: str) -> str:
    base, source = _cut_source(_SCHEME.sub("", name, count=1))
    if source and _cut_source(base)[1]:
        raise ValueError("a model name with two source suffixes")
    parts = _NAME.fullmatch(base)
    if parts is None:
        raise ValueError("not a model name")
    host, namespace, model, tag = parts.groups()
    if source == "local" and not tag:
        # Today's Ollama reads `model:local` as `model:latest` on this machine, yesterday's as the tag `local`.
        raise ValueError("a model name with the tag local")
    short = f"{model}:{_tag(tag, source)}"
    if host not in (None, _DEFAULT_HOST):
        return f"{host}/{namespace}/{short}"
    return short if namespace in (None, _DEFAULT_NAMESPACE) else f"{namespace}/{short}"


def _cut_source(name: str) -> tuple[str, str]:
    """Ollama's source suffix: `:cloud`, `:local`, or `-cloud` at the end of a tag. ("", for none, comes second.)"""
    base, colon, last = name.rpartition(":")
    if not colon or "/" in last:
        return name, ""
    if last in ("cloud", "local"):
        return base, last
    if last.endswith("-cloud"):
        return name.removesuffix("-cloud"), "cloud"
    return name, ""


def _tag(tag: str | None, source: str) -> str:
    """The tag under which Ollama stores and lists the model: cloud models are `:cloud` or `:<tag>-cloud`."""
    if source == "cloud":
        return f"{tag}-cloud" if tag else "cloud"
    return tag or _DEFAULT_TAG


def effective(key: Key, discovered: Mapping[str, T]) -> dict[str, T]:
    """What is installed and allowed to `key`; `discovered` is keyed by canonical name and keeps its order."""
    return {name: value for name, value in discovered.items() if key.may_use(name)}
