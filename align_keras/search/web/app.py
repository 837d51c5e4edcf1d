"""The web page's server, which reads only the index."""

import asyncio
import contextlib
import math
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align_keras.embedding.embedder import Embedder
from align_keras.io.json_files import parse_json
from align_keras.io.optional import OptionalModule
from align_keras.search.index import DamagedIndex
from align_keras.search.index import Index
from align_keras.search.web.batcher import Overloaded
from align_keras.search.web.engine import Engine
from align_keras.search.web.engine import Forgotten
from align_keras.search.web.limits import Limits
from align_keras.search.web.limits import RateLimit

applications = OptionalModule("starlette.applications", extra="serve")
middleware = OptionalModule("starlette.middleware", extra="serve")
responses = OptionalModule("starlette.responses", extra="serve")
routing = OptionalModule("starlette.routing", extra="serve")
trustedhost = OptionalModule("starlette.middleware.trustedhost", extra="serve")

# The page may load nothing from other origins, and no site may frame it.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' blob: "
    "data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# Number of images that the page shows before the first query.
_SAMPLES = 24
_THUMBNAIL_COST = 1 / 50
# The text encoder embeds up to 32 prompts at once.
_PROMPT_COST = 1 / 32
# How many bytes beyond the limit to read, so that the client gets the refusal.
_DROPPED = 4 * 2**20
_IMAGE_TYPES = ("image/", "application/octet-stream")


class _Refusal(Exception):
    """A response with an HTTP status and a reason."""

    def __init__(self, status, reason, headers=None):
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


def make_app(
    index: Index,
    embedder: Embedder,
    limits: Limits | None = None,
    hosts: Sequence[str] = ("localhost", "127.0.0.1"),
) -> Any:
    """Make the web application of the page.

    Args:
        index: an `align_keras.search.Index`.
        embedder: an `Embedder`, as `index.load_model()` returns it.
        limits: a `Limits`. Defaults to `None`: the defaults of `Limits`.
        hosts: list of strings. Host names to which it responds. Others are
            refused, which prevents DNS rebinding attacks. `"*"` allows all.
            Defaults to `localhost` and `127.0.0.1`.

    Returns:
        An ASGI application.

    Raises:
        ImportError: starlette is not installed.
    """
    limits = limits or Limits()
    engine = Engine(index, embedder, limits.max_pixels)
    handlers = _Handlers(engine, limits)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        await asyncio.to_thread(engine.warm_up)
        yield
        engine.close()

    post = {"methods": ["POST"]}
    return applications.Starlette(
        routes=[
            routing.Route("/", handlers.page),
            routing.Route("/api/index", handlers.about),
            routing.Route("/api/search", handlers.search, **post),
            routing.Route("/api/image", handlers.image, **post),
            routing.Route("/api/labels", handlers.labels, **post),
            routing.Route("/thumbnails/{row}", handlers.thumbnail),
        ],
        middleware=[
            middleware.Middleware(
                trustedhost.TrustedHostMiddleware, allowed_hosts=list(hosts)
            )
        ],
        exception_handlers={
            _Refusal: _refuse,
            Overloaded: _refuse,
            404: _refuse,
            405: _refuse,
        },
        lifespan=lifespan,
    )


async def _refuse(request, error):
    status = getattr(error, "status", getattr(error, "status_code", 503))
    reason = getattr(error, "reason", getattr(error, "detail", str(error)))
    headers = {**_HEADERS, **(getattr(error, "headers", None) or {})}
    if status >= 400 and request.method == "POST":
        # The rest of an unread body would be parsed as the next request.
        headers["Connection"] = "close"
    return responses.JSONResponse({"error": reason}, status, headers)


class _Handlers:
    def __init__(self, engine, limits):
        self.engine, self.limits = engine, limits
        self.rate = RateLimit(limits.rate, limits.burst)
        # Acquired once an image has arrived, so that slow clients take no slot.
        self.uploads = asyncio.Semaphore(limits.uploads)
        self.held_bytes = 0
        self.html = Path(__file__).with_name("page.html").read_text("utf-8")

    async def page(self, request):
        self._spend(request)
        # Only the script with this nonce may run.
        nonce = secrets.token_urlsafe(16)
        policy = f"{_POLICY}; script-src 'nonce-{nonce}'"
        headers = {**_HEADERS, "Content-Security-Policy": policy}
        return responses.HTMLResponse(
            self.html.replace("NONCE", nonce), headers=headers
        )

    async def about(self, request):
        self._spend(request)
        index = self.engine.index
        return _json(
            {
                "count": index.count,
                "dim": index.dim,
                "kind": index.kind,
                "labels": index.labels[: self.limits.labels],
                "upload_bytes": self.limits.upload_bytes,
                "text_length": self.limits.text_length,
                "samples": self.engine.samples(_SAMPLES),
            }
        )

    async def search(self, request):
        self._spend(request)
        body = await self._object(request)
        parts = body.get("parts")
        if not isinstance(parts, list) or not parts:
            raise _Refusal(422, "`parts` must be a list of words or images.")
        if len(parts) > self.limits.parts:
            raise _Refusal(
                422, f"A query may have {self.limits.parts} parts at most."
            )
        parts = [self._part(part, weighted=True) for part in parts]
        k = body.get("k", 60)
        if not _is_int(k) or not 1 <= k <= self.limits.results:
            raise _Refusal(
                422, f"`k` must lie between 1 and {self.limits.results}."
            )
        with _as_refusals():
            return _json({"results": await self.engine.search(parts, k)})

    async def labels(self, request):
        self._spend(request)
        body = await self._object(request)
        part = self._part(body.get("part"), weighted=False)
        if "text" in part:
            raise _Refusal(422, "`part` must name an image.")
        labels = body.get("labels")
        if not isinstance(labels, list) or not labels:
            raise _Refusal(422, "`labels` must be a list of words.")
        if len(labels) > self.limits.labels:
            raise _Refusal(422, f"`labels`: {self.limits.labels} at most.")
        labels = [self._text(label) for label in labels]
        self._spend(request, _PROMPT_COST * self.engine.prompts(labels))
        with _as_refusals():
            return _json({"labels": await self.engine.labels(part, labels)})

    async def image(self, request):
        self._spend(request)
        with self._holding() as hold:
            most = self.limits.upload_bytes
            contents = await self._body(request, most, hold)
            kind = request.headers.get("content-type", "")
            if not kind.startswith(_IMAGE_TYPES):
                raise _Refusal(
                    415,
                    "Send the image file, with the content type image/….",
                )
            async with self.uploads:
                with _as_refusals():
                    token = await self.engine.add_image(contents)
        return _json({"image": token})

    async def thumbnail(self, request):
        self._spend(request, _THUMBNAIL_COST)
        name, index = request.path_params["row"], self.engine.index
        # Python refuses to convert thousands of digits.
        row = int(name) if name.isdecimal() and len(name) < 20 else index.count
        contents = index.thumbnail(row) if row < index.count else b""
        if not contents:
            raise _Refusal(404, "There is no such thumbnail.")
        # Browsers show the bytes as an image, whatever they contain.
        headers = {**_HEADERS, "Cache-Control": "private, max-age=3600"}
        return responses.Response(
            contents, media_type="image/jpeg", headers=headers
        )

    # === Requests ===

    def _spend(self, request, cost=1.0):
        address = request.client.host if request.client else ""
        wait = self.rate.take(address, cost)
        if wait:
            raise _Refusal(
                429,
                "Too many requests; wait a moment.",
                {"Retry-After": str(math.ceil(wait))},
            )

    @contextlib.contextmanager
    def _holding(self):
        """Count the bytes of an image as held until it is embedded."""
        held = 0

        def hold(count):
            nonlocal held
            if self.held_bytes + count > self.limits.held_bytes:
                raise _Refusal(
                    503,
                    "Too many images are arriving at once; try again.",
                    {"Retry-After": "5"},
                )
            self.held_bytes += count
            held += count

        try:
            yield hold
        finally:
            self.held_bytes -= held

    async def _body(self, request, limit, hold=lambda count: None):
        """Read a body, and refuse one that is too long or too slow.

        The body is read before its type is checked, and one that is slightly
        too long is read to its end: if the connection closes with unread
        bytes, the client never sees the response.
        """
        contents, received = bytearray(), 0
        length = request.headers.get("content-length", "0")
        huge = length.isdecimal() and int(length[:20]) > limit + _DROPPED
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for chunk in request.stream():
                    received += len(chunk)
                    if received <= limit:
                        hold(len(chunk))
                        contents += chunk
                    if huge or received > limit + _DROPPED:
                        break
        except TimeoutError:
            raise _Refusal(408, "The request took too long.") from None
        if huge or received > limit:
            raise _Refusal(413, f"More than {limit} bytes were sent.")
        return bytes(contents)

    async def _object(self, request):
        contents = await self._body(request, self.limits.json_bytes)
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip() != "application/json":
            raise _Refusal(415, "Send JSON, with the type application/json.")
        try:
            value = parse_json(contents.decode("utf-8"))
        except ValueError:
            raise _Refusal(400, "The request is not valid JSON.") from None
        if not isinstance(value, dict):
            raise _Refusal(422, "The request must be a JSON object.")
        return value

    def _part(self, part, weighted):
        """Check one part of a query."""
        kinds = ("text", "image", "row")
        given = [
            name for name in kinds if isinstance(part, dict) and name in part
        ]
        if len(given) != 1:
            raise _Refusal(
                422, "A part must have one of `text`, `image` and `row`."
            )
        (name,) = given
        value = part[name]
        if name == "row":
            if not _is_int(value) or not 0 <= value < self.engine.index.count:
                raise _Refusal(422, "`row` must be a row of the index.")
        else:
            value = self._text(value)
        if not weighted:
            return {name: value}
        weight = part.get("weight", 1.0)
        number = isinstance(weight, (int, float)) and weight is not True
        # Also refuses NaN, and integers too large for a float.
        if not number or not abs(weight) <= 100:
            raise _Refusal(422, "`weight` must lie between -100 and 100.")
        return {name: value, "weight": float(weight)}

    def _text(self, value):
        if not isinstance(value, str) or not value.strip():
            raise _Refusal(422, "A text must be a string that is not blank.")
        if len(value) > self.limits.text_length:
            most = self.limits.text_length
            raise _Refusal(422, f"A text may have {most} characters at most.")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _Refusal(422, "A text must be valid Unicode.") from None
        return value.strip()


@contextlib.contextmanager
def _as_refusals():
    try:
        yield
    except Forgotten as error:
        raise _Refusal(410, str(error)) from None
    except DamagedIndex:
        # Not the client's fault: the log names the directory, the answer not.
        raise
    except ValueError as error:
        raise _Refusal(422, str(error)) from None


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _json(value):
    return responses.JSONResponse(
        value, headers={**_HEADERS, "Cache-Control": "no-store"}
    )
