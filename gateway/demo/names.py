"""Model names as Ollama reads them: `[scheme://][host/][namespace/]model[:tag]`, then `:cloud` or `:local`.

Written apart from the policy's own reading of names, on purpose: two readings that agree are a test, one is a belief.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_WORD = r"[A-Za-z0-9_][A-Za-z0-9_%s-]{0,%d}"
_HOST = re.compile(_WORD % (".:", 349))
_NAMESPACE = re.compile(_WORD % ("", 79))
_PART = re.compile(_WORD % (".", 79))  # model and tag
_SUFFIX_CLOUD = "-cloud"


@dataclass(frozen=True, slots=True)
class Name:
    host: str
    namespace: str
    model: str
    tag: str
    cloud: bool = False  # runs on ollama.com, under the identity of whoever runs this server

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What two names of one model have in common."""
        return self.host.lower(), self.namespace.lower(), self.model.lower(), self.tag.lower()

    @property
    def short(self) -> str:
        """The name as `/api/tags` shows it: default host and namespace left out, the tag always there."""
        path = [self.host, self.namespace, self.model]
        if self.host.lower() == "registry.ollama.ai":
            path = path[2:] if self.namespace.lower() == "library" else path[1:]
        return "/".join(path) + ":" + self.tag


def _source(raw: str) -> tuple[str, bool]:
    """The name without its source suffix, and whether that said cloud."""
    head, colon, tail = raw.rpartition(":")
    suffix = tail.strip().lower()
    if not colon:
        return raw, False
    if suffix in ("cloud", "local"):
        return head, suffix == "cloud"
    if "/" not in suffix and suffix.endswith(_SUFFIX_CLOUD):
        return head + ":" + tail.strip()[: -len(_SUFFIX_CLOUD)], True
    return raw, False


def parse(raw: str) -> Name | None:
    """The name, defaults filled in, or None for one that no Ollama would take."""
    rest, cloud = _source(raw.strip())
    host, namespace, tag = "registry.ollama.ai", "library", "latest"
    if rest.rfind(":") > rest.rfind("/"):
        rest, _, tag = rest.rpartition(":")
    rest, slash, model = rest.rpartition("/")
    if slash:
        rest, slash, namespace = rest.rpartition("/")
        if slash:
            host = rest.partition("://")[2] if "://" in rest else rest
    if not (_HOST.fullmatch(host) and _NAMESPACE.fullmatch(namespace) and _PART.fullmatch(model)):
        return None
    return Name(host, namespace, model, tag, cloud) if _PART.fullmatch(tag) else None
