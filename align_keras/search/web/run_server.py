"""Run the web page on an index."""

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
    """Serve the web page until it is interrupted.

    Args:
        directory: string or `pathlib.Path`. An index.
        host: string. The address to listen on. Defaults to loopback, which
            other machines cannot reach.
        port: int. Defaults to `8080`.
        model: string or `pathlib.Path`. Another copy of the index's model.
            Defaults to `None`, that in the index.
        limits: a `Limits`. Defaults to `None`, its defaults.
        hosts: list of strings. Names under which the page is reached beside
            loopback and `host`.
        open_browser: bool. Whether to open the page in a browser. Defaults to
            `False`.
        qdrant: string. See `Index`. Defaults to `None`.
        verify: bool. See `Index`. Defaults to `False`.

    Raises:
        ConnectionError: the Qdrant server does not answer.
        FileNotFoundError: there is no such index.
        ImportError: starlette or uvicorn is not installed.
        OSError: the port is taken.
        ValueError: the index is damaged, the model is another one, or there
            is no such port.
    """
    if not 0 <= port <= 65535:
        raise ValueError(
            f"`port` must lie between 0 and 65535. Received: port={port}"
        )
    check_list(hosts, "hosts")
    index = Index(directory, qdrant, verify)
    # A port that is taken is better known before the model is loaded.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    # An address with colons stands in brackets, also in a request's header.
    shown = f"[{host}]" if ":" in host else host
    allowed = ["localhost", "127.0.0.1", "[::1]", shown, *hosts]
    app = make_app(index, index.load_model(model), limits, allowed)
    url = f"http://{shown}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        app,
        log_level="warning",
        limit_concurrency=1000,
        timeout_keep_alive=5,
        # The client's address is that of the connection, not of a header.
        proxy_headers=False,
        server_header=False,
    )
    print(
        f"{index.count} images at {url} (Ctrl-C ends it)"
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
    # It ends at Ctrl-C and passes the interruption on.
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listener])
    print("Goodbye.", flush=True)


def _is_loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


__all__ = ["Limits", "serve"]
