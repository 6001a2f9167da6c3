"""Draw the pictures of this folder: Llama-3.1-70B over four H200, on a light and on a dark page.

    python assets/draw.py

PNGs are taken with a headless Chromium where one is installed; without it only the SVGs are written.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pgplan as pg

FOLDER = Path(__file__).parent
THEMES = {"light": ("#1d2430", "#ffffff"), "dark": ("#e6e6e6", "#111418")}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def themed(svg: str, ink: str, paper: str) -> str:
    """Return the picture with its own background; in a notebook it takes the page's colours."""
    opened = svg.replace("max-width:100%;height:auto", f"max-width:100%;height:auto;color:{ink}", 1)
    return opened.replace("<desc>", f'<rect width="100%" height="100%" fill="{paper}"/><desc>', 1)


def photograph(browser: str, svg: Path, target: Path) -> None:
    """Take a picture of an SVG file in its own size, at double resolution."""
    width, height = re.findall(r'(?:width|height)="(\d+)"', svg.read_text(encoding="utf-8"))[:2]
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--force-device-scale-factor=2",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                f"--screenshot={target.resolve()}",
                svg.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
        )


def main() -> None:
    """Write every picture."""
    plan = pg.plan(
        "llama-3.1-70b",
        pg.Cluster.uniform("H200", pp_size=4),
        workload=pg.Workload(max_model_len=8192),
        split="default",
    )
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    for theme, (ink, paper) in THEMES.items():
        svg = FOLDER / f"plan-{theme}.svg"
        svg.write_text(themed(plan.to_svg(), ink, paper) + "\n", encoding="utf-8")
        if browser:
            photograph(browser, svg, svg.with_suffix(".png"))


if __name__ == "__main__":
    main()
