"""Find the Chromium that the browser tests drive, or install it: ``python tests/fetch_chromium.py``."""

from __future__ import annotations

import os
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    "Browser tests are skipped: no Chromium here. As root, apt-get install chromium; "
    "or let PGPLAN_CHROMIUM name the program"
)


def find_chromium() -> str | None:
    """Return the browser that ``PGPLAN_CHROMIUM`` names, else the first one on the path."""
    named = os.environ.get("PGPLAN_CHROMIUM")
    return next(filter(None, map(shutil.which, (named,) if named else NAMES)), None)


def main() -> None:
    """Install Debian's package where that can be done without asking anyone."""
    is_wanted = find_chromium() is None and "PGPLAN_CHROMIUM" not in os.environ
    if is_wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        print("Installing Chromium for the browser tests: a few minutes, once", flush=True)
        silent = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in ("update", "install -y chromium"):
            subprocess.run(["apt-get", "-qq", *words.split()], env=silent, stdout=subprocess.DEVNULL)
    if find_chromium() is None:
        print(MISSING)


if __name__ == "__main__":
    main()
