"""The page's server in this process, and what a client asks it."""

import contextlib
import socket
import threading
import time

import httpx
import uvicorn

from align_keras.search import Index
from align_keras.search.web.app import make_app


@contextlib.contextmanager
def running(library, model, limits):
    """A server on loopback, as a client of it."""
    app = make_app(Index(library.index), model, limits)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    while not server.started:
        time.sleep(0.05)
        assert thread.is_alive()
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
    server.should_exit = True
    thread.join()


def find(site, *parts, **more):
    answer = site.post("/api/search", json={"parts": parts, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]
