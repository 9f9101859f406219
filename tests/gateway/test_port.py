"""The claim on the front door's port."""

from __future__ import annotations

import socket

import pytest

from gateway.failure import Failure
from gateway.port import claim, free_port


def listener(number: int) -> socket.socket:
    """As Envoy listens."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", number))
    made.listen()
    return made


def test_a_claimed_port_is_for_one_gateway_whose_envoy_gets_every_connection() -> None:
    with claim("127.0.0.1", 0) as port:
        assert port.url == f"http://127.0.0.1:{port.number}"
        with pytest.raises(Failure, match=f"port {port.number} on 127.0.0.1 is taken"):
            claim("127.0.0.1", port.number)
        with listener(port.number) as envoy:
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", port.number), timeout=5):
                    envoy.accept()[0].close()
        with pytest.raises(Failure, match="is taken"):  # also while Envoy is down for a moment
            claim("127.0.0.1", port.number)
    with claim("127.0.0.1", port.number):
        pass


@pytest.mark.parametrize(("host", "near"), [("0.0.0.0", "127.0.0.1"), ("localhost", None)])  # noqa: S104  for a moment
def test_the_url_is_one_that_a_client_on_this_machine_can_use(host: str, near: str | None) -> None:
    with claim(host, 0) as port:
        assert port.url in {f"http://{near or '127.0.0.1'}:{port.number}", f"http://[::1]:{port.number}"}


def test_an_address_that_is_none_or_not_ours() -> None:
    with pytest.raises(Failure, match=r"no\.such\.host\.invalid:0 is no address to listen on"):
        claim("no.such.host.invalid", 0)
    with pytest.raises(Failure, match=r"cannot listen on 192\.0\.2\.1:0: Cannot assign requested address"):
        claim("192.0.2.1", 0)


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as made:
        made.bind(("127.0.0.1", free_port()))
