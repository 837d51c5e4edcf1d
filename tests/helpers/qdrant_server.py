"""The requests of Qdrant's server that writing a collection makes."""

import contextlib
import http.server
import json
import threading


class Collections(dict):
    """What the server holds: points by their numbers, by collection.

    Args:
        together: int. So many must have asked whether a collection exists
            before any of them is told.
        status: int. What the server says to who creates one that exists.
        full: int. From so many points on, it takes no more.
    """

    def __init__(self, together=1, status=409, full=None):
        super().__init__()
        self.barrier = threading.Barrier(together)
        self.lock = threading.Lock()
        self.status = status
        self.full = full

    def answer(self, method, path, body):
        parts = path.partition("?")[0].strip("/").split("/")
        name, rest = parts[1], parts[2:]
        if rest == ["exists"]:
            there = name in self
            if not there and self.barrier.n_waiting < self.barrier.parties:
                with contextlib.suppress(threading.BrokenBarrierError):
                    self.barrier.wait(10)
            return 200, {"exists": there}
        with self.lock:
            if method == "PUT" and not rest:
                if name in self:
                    return self.status, None
                self[name] = {}
                return 200, True
            if method == "DELETE" and not rest:
                return 200, self.pop(name, None) is not None
            if name not in self:
                return 404, None
            if method == "PUT" and rest == ["points"]:
                batch = body["batch"]
                points = zip(batch["ids"], batch["vectors"], strict=True)
                self[name] |= dict(points)
                if self.full is not None and len(self[name]) > self.full:
                    return 500, None
                return 200, {"operation_id": 1, "status": "completed"}
        return 404, None


@contextlib.contextmanager
def qdrant_server(collections):
    """Serve collections; yield the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_any(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or "null")
            status, result = collections.answer(self.command, self.path, body)
            said = {"result": result, "status": "ok", "time": 0}
            if status != 200:
                said = {"status": {"error": "refused"}, "time": 0}
            said = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_PUT = do_POST = do_DELETE = do_any

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()
