"""``pgplan app``: the planner without code cells, served by Voila to the browsers of this machine."""

from __future__ import annotations

import secrets
import socket
import webbrowser
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

from pgplan.errors import PgplanError


def serve(notebook: Path, *, with_browser: bool) -> int:
    """Serve what a notebook shows on 127.0.0.1 until Ctrl-C; every page that is opened has its own kernel.

    Raises:
        PgplanError: If Voila is not installed.
    """
    if find_spec("voila") is None:
        raise PgplanError("app needs Voila, which is not installed; pip install 'pgplan[app]'")
    # Others on this machine reach the port as well, and a kernel runs whatever it is told: hence the token.
    token = secrets.token_hex(16)
    options = {
        "Voila.ip": "127.0.0.1",
        "Voila.port": _free_port(),
        "Voila.token": token,
        "Voila.open_browser": True,
        "Voila.log_level": "ERROR",
        # A relative path that is typed into the planner starts where the command was given.
        "MappingKernelManager.root_dir": Path.cwd(),
        "KernelManager.transport": "ipc",
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    _application(token, with_browser=with_browser).launch_instance([*words, str(notebook)])
    return 0


def _application(token: str, *, with_browser: bool) -> Any:
    from voila.app import Voila
    from voila.shutdown_kernel_handler import VoilaShutdownKernelHandler

    # A page that is left asks for its kernel's end, without the token against pages of other sites, and would
    # be refused. Without it one still has to be logged in, and to know the kernel's id, which is random.
    VoilaShutdownKernelHandler.check_xsrf_cookie = lambda handler: None

    class App(Voila):  # type: ignore[misc]  # Voila has no types
        def initialize(self, argv: list[str] | None = None) -> None:
            super().initialize(argv)
            self.template_paths.insert(0, str(Path(__file__).with_name("page")))
            # The server's own default is above the interval of its pings, of which tornado complains.
            self.tornado_settings = {"ws_ping_timeout": 30_000}

        def launch_browser(self) -> None:
            # Called as soon as the port is open. Voila itself would open its page without the token.
            address = f"{self.connection_url}?token={token}"
            print(f"planner: {address}", "Ctrl-C ends it", sep="\n", flush=True)
            if with_browser:
                Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    return App


def _free_port() -> int:
    """Return a port that is free now; should another program be faster, Voila tries its neighbours."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
