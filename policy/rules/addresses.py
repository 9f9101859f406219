"""Client addresses as scopes: what one customer of a provider can change at will counts as one."""

from __future__ import annotations

from ipaddress import ip_address, ip_network


def neighbourhood(address: str) -> str:
    """The address that limits and turns are counted by.

    IPv4 as it is; IPv6 hands every customer 2^64 addresses, so those of a /64 share one. What is no address (a Unix
    socket has none) stays as it is.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    mapped = getattr(ip, "ipv4_mapped", None)
    if mapped is not None:
        return str(mapped)
    if ip.version == 6:
        return str(ip_network((int(ip) >> 64 << 64, 64)))
    return str(ip)
