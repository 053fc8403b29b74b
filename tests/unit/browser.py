"""A real browser without any network, for tests of pages; they are skipped where there is none."""

import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(
    (path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH")
# --no-sandbox: it does not start as root, e.g. in containers; the pages are our own.
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--virtual-time-budget=5000", "--window-size=1400,1000", "--enable-logging=stderr",
)  # fmt: skip


def open_page(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's HTML after its scripts have run, and the errors that they and the browser's policies gave."""
    assert BROWSER is not None
    process = subprocess.run(
        [BROWSER, *OPTIONS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stderr.splitlines() if "CONSOLE" in line]
    return process.stdout, [line for line in lines if "Error" in line or "Refused" in line or "violates" in line]
