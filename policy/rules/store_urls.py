"""The form of a store's URL, told without a word of it: what stands where the port should may be half a password."""

from __future__ import annotations

from urllib.parse import urlsplit

POSTGRESQL = ("postgresql", "postgres")
REDIS = ("redis", "rediss", "unix", "redis+unix")


def wrong_with(url: str, schemes: tuple[str, ...]) -> str:
    """What is wrong with it, in words; empty where nothing is."""
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may quote the password
        return "it cannot be read as a URL"
    if parts.scheme not in schemes:
        return f"it does not begin with {' or '.join(f'{one}://' for one in schemes)}"
    for host in parts.netloc.rpartition("@")[2].split(","):  # PostgreSQL takes several
        port = host.rpartition("]")[2].partition(":")[2]
        if port and not (port.isascii() and port.isdecimal() and int(port) < 65536):
            return "its port is no number; in a password / ? # @ are written %2F %3F %23 %40"
    return ""
