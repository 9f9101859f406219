"""What the gateway serves to browsers as files: the session client, its types, and the page that chats with it.

They are read once, from the package, and are the same for everyone: no header of a request and nothing of its query
changes a byte of them, so no cache in between can be made to keep a wrong one. A cache asks again each time, and is
told with 304 that nothing changed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

_CODE = (
    # The client is code for any page to import, and carries nothing of anybody: so any origin may read it.
    (b"access-control-allow-origin", b"*"),
    (b"cross-origin-resource-policy", b"cross-origin"),
)
_OURS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), payment=()"),
)
_FILES = {
    "/session/": ("index.html", b"text/html; charset=utf-8", _OURS),
    "/session/page.css": ("page.css", b"text/css; charset=utf-8", _OURS),
    "/session/page.js": ("page.js", b"text/javascript; charset=utf-8", _OURS),
    "/session/client.js": ("client.js", b"text/javascript; charset=utf-8", _CODE),
    "/session/client.d.ts": ("client.d.ts", b"text/plain; charset=utf-8", _CODE),
}


@dataclass(frozen=True, slots=True)
class Page:
    """One file, ready to be sent."""

    body: bytes
    content_type: bytes
    etag: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    def unchanged(self, if_none_match: str | None) -> bool:
        """Whether who asks has it already (RFC 9110, 13.1.2)."""
        if if_none_match is None:
            return False
        known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
        return self.etag.decode() in known or known == {"*"}


def load() -> dict[str, Page]:
    """Every file by its path."""
    folder = files("policy").joinpath("pages")
    found = {}
    for path, (name, content_type, headers) in _FILES.items():
        body = folder.joinpath(name).read_bytes()
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'.encode()
        found[path] = Page(body, content_type, etag, headers)
    return found
