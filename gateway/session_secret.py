"""The secret that browser sessions are signed from: below the data directory, made on the first start.

A setting in the environment comes first; PADDOCK_SESSION_SECRET set to nothing turns browser sessions off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.server_key import made_secret

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SECRET = "PADDOCK_SESSION_SECRET"  # noqa: S105  # the name of a setting
FILE = "PADDOCK_SESSION_SECRET_FILE"


def settings(data_dir: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The settings of an instance's policies."""
    if SECRET in environment or FILE in environment:
        return {}
    return {FILE: str(made_secret(data_dir / "secrets" / "session"))}
