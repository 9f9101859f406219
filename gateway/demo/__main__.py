"""`python -m gateway.demo`: run the demo upstream in the foreground."""

from __future__ import annotations

import argparse

from gateway.demo.server import serve


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m gateway.demo", description="A small Ollama that echoes the prompt."
    )
    parser.add_argument("--host", default="127.0.0.1", help="IPv4 address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=11434, help="port; 0 takes a free one (default: %(default)s)")
    parser.add_argument("--unix", metavar="PATH", help="listen on this Unix socket as well")
    options = parser.parse_args()
    serve(options.host, options.port, options.unix)


if __name__ == "__main__":
    main()
