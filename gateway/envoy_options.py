"""Options of the shipped files: lines such as `#tls# transport_socket:`, which are comments until the word is cut off.

An operator turns one on with `sed`, the launcher here; so what `paddock up` runs is what a site gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def turned_on(text: str, options: Iterable[str]) -> str:
    """`text` with these options. ValueError on one that the file does not have."""
    for option in options:
        mark = f"#{option}# "
        if mark not in text:
            raise ValueError(f"there is no option {option}")
        text = text.replace(mark, "")
    return text
