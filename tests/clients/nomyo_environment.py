"""The published Python client in an environment of its own: `.venv-nomyo`, made once from `requirements/nomyo.lock`.

It pins other versions than ours, so it cannot live in the development environment. Made on first use (some seconds
and a package index), or beforehand: `python tests/clients/nomyo_environment.py`.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_LOCK = _ROOT / "requirements" / "nomyo.lock"
_HOME = _ROOT / ".venv-nomyo"
DRIVER = Path(__file__).with_name("nomyo_driver.py")


def nomyo_python() -> Path:
    """The interpreter that can import `nomyo`. Safe to call from several test processes at once."""
    python, stamp = _HOME / "bin" / "python", _HOME / "stamp"
    with _LOCK.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one builds, the others wait and find it built
        wanted = hashlib.sha256(lock.read() + sys.version.encode()).hexdigest()
        if not (stamp.is_file() and stamp.read_text() == wanted):
            _run(sys.executable, "-m", "venv", "--clear", str(_HOME))
            (_HOME / ".gitignore").write_text("*\n")
            _run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", str(_LOCK))
            stamp.write_text(wanted)
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    print(nomyo_python())
