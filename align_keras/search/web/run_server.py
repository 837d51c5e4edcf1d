"""Run the web page for an index."""

import contextlib
import ipaddress
import socket
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from align_keras.io.lists import check_list
from align_keras.io.optional import OptionalModule
from align_keras.search.index import Index
from align_keras.search.web.app import make_app
from align_keras.search.web.limits import Limits

uvicorn = OptionalModule("uvicorn", extra="serve")


def serve(
    directory: str | Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    model: str | Path | None = None,
    limits: Limits | None = None,
    hosts: Sequence[str] = (),
    open_browser: bool = False,
    qdrant: str | None = None,
    verify: bool = False,
) -> None:
    """Serve the web page of an index until interrupted.

    Args:
        directory: string or `pathlib.Path`. The directory of an index.
        host: string. The address to listen on. Defaults to loopback, which
            other machines cannot reach.
        port: int. Defaults to `8080`.
        model: string or `pathlib.Path`. Another copy of the index's model.
            Defaults to `None`: the copy in the index.
        limits: a `Limits`. Defaults to `None`: the defaults of `Limits`.
        hosts: list of strings. Further host names under which clients may
            reach the page, besides loopback and `host`. Defaults to none.
        open_browser: bool. Whether to open the page in a browser. Defaults to
            `False`.
        qdrant: string. See `Index`. Defaults to `None`.
        verify: bool. See `Index`. Defaults to `False`.

    Raises:
        ConnectionError: the Qdrant server does not answer.
        FileNotFoundError: there is no such index.
        ImportError: starlette or uvicorn is not installed.
        OSError: the port is taken.
        ValueError: the index is damaged, the model did not embed it, or the
            port is out of range.
    """
    if not 0 <= port <= 65535:
        raise ValueError(
            f"`port` must lie between 0 and 65535. Received: port={port}"
        )
    check_list(hosts, "hosts")
    index = Index(directory, qdrant, verify)
    # Bind first: a port in use should fail before the model loads.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    # URLs and the Host header put an IPv6 address in brackets.
    shown = f"[{host}]" if ":" in host else host
    allowed = ["localhost", "127.0.0.1", "[::1]", shown, *hosts]
    app = make_app(index, index.load_model(model), limits, allowed)
    url = f"http://{shown}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        app,
        log_level="warning",
        limit_concurrency=1000,
        timeout_keep_alive=5,
        # Take the client's address from the connection, not from a header.
        proxy_headers=False,
        server_header=False,
    )
    print(
        f"{index.count} images at {url} (press Ctrl-C to stop)"
        + (
            ""
            if _is_loopback(host)
            else "; other machines can reach it, unencrypted, under the "
            f"names {', '.join(allowed[3:])}; --allow-host NAME adds one"
        ),
        flush=True,
    )
    if open_browser:
        webbrowser.open(url)
    # Uvicorn stops on Ctrl-C, then raises the interruption again.
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listener])
    print("Goodbye.", flush=True)


def _is_loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


__all__ = ["Limits", "serve"]
