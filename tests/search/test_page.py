"""The page's server: values, limits, hostile input."""

import asyncio
import io
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_align import image_file
from tiny_align import many_scans

from align_keras.classes import class_probabilities
from align_keras.cli import main
from align_keras.embedding import load_embedder
from align_keras.search import Index
from align_keras.search import search
from align_keras.search import write_index
from align_keras.search.index import DamagedIndex
from align_keras.search.web.app import _Handlers
from align_keras.search.web.app import make_app
from align_keras.search.web.limits import Limits
from align_keras.search.web.limits import RateLimit
from align_keras.search.web.run_server import serve

pytest.importorskip("starlette")
httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

from page_server import find
from page_server import running


def test_page_answers_like_the_function(library, model, site):
    contents = (library.images / "04.jpg").read_bytes()
    answer = site.post(
        "/api/image", content=contents, headers={"Content-Type": "image/jpeg"}
    )
    image = answer.json()["image"]
    results = find(
        site,
        {"image": image, "weight": 1},
        {"text": "blue", "weight": 2},
        {"text": "red", "weight": -0.5},
        k=6,
    )
    expected = search(
        library.index,
        text="blue",
        image=contents,
        minus_text="red",
        minus_weight=0.5,
        k=6,
        model=model,
    )
    assert [r["row"] for r in results] == [r["row"] for r in expected]
    for ours, theirs in zip(results, expected, strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-3)
        assert ours["key"] == theirs["key"]
    alike = find(site, {"row": 5, "weight": 1}, k=1)
    assert alike[0]["row"] == 5
    shown = site.get("/thumbnails/5")
    assert shown.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(shown.content)).height == 32


def test_labels_are_a_softmax_at_the_models_temperature(
    library, model, dual_encoder, saved_model, site
):
    names = ["a bus", "the dog", "blue"]
    answer = site.post(
        "/api/labels", json={"part": {"row": 3}, "labels": names}
    ).json()["labels"]
    vector = np.array(Index(library.index).vectors[3])
    prompts = [t.replace("{}", n) for n in names for t in library.templates]
    texts = np.asarray(dual_encoder.encode_text(prompts))
    texts = texts.reshape(3, 2, -1).mean(axis=1)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    logits = texts @ vector / dual_encoder.temperature
    shares = np.exp(logits) / np.exp(logits).sum()
    found = {entry["label"]: entry["probability"] for entry in answer}
    for name, share in zip(names, shares, strict=True):
        assert found[name] == pytest.approx(share, abs=2e-3)
    assert [entry["label"] for entry in answer] == [
        names[i] for i in np.argsort(-shares)
    ]
    exported = load_embedder(saved_model)
    np.testing.assert_allclose(
        class_probabilities(texts @ vector, exported.temperature),
        shares,
        atol=1e-4,
    )
    assert class_probabilities(texts @ vector, None) is None


def test_a_label_may_have_several_names(library, model, dual_encoder, tmp_path):
    from starlette.testclient import TestClient

    vectors = np.asarray(Index(library.index).vectors[:2])
    rows = [(["0", "1"], ["", ""], vectors, [b"", b""])]
    labels = [["a bus", "the red bus"], "a dog"]
    write_index(
        rows,
        2,
        tmp_path / "index",
        library.preset,
        labels=labels,
        templates=library.templates,
    )
    client = TestClient(make_app(Index(tmp_path / "index"), model, hosts=["*"]))
    assert client.get("/api/index").json()["labels"] == ["a bus", "a dog"]
    prompts = [t.replace("{}", n) for n in labels[0] for t in library.templates]
    mean = np.asarray(dual_encoder.encode_text(prompts)).mean(axis=0)
    body = {"part": {"row": 1}, "labels": ["a bus"]}
    (found,) = client.post("/api/labels", json=body).json()["labels"]
    expected = vectors[1] @ mean / np.linalg.norm(mean)
    assert found["score"] == pytest.approx(expected, abs=2e-4)
    alone = np.asarray(dual_encoder.encode_text(prompts[:2])).mean(axis=0)
    alone = vectors[1] @ alone / np.linalg.norm(alone)
    assert abs(alone - expected) > 1e-3


def bomb():
    """A PNG file of 100 megapixels in 12 kB."""
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    return file.getvalue()


JSON, JPEG = "application/json", "image/jpeg"
DEEP = b"[" * 20_000 + b"]" * 20_000
# What is sent, and the status that comes back: the table in docs/search.md.
HOSTILE = {
    "bytes that are no image": ("/api/image", JPEG, b"\xff\xd8 no", 422),
    "an empty image": ("/api/image", JPEG, b"", 422),
    "a program as an image": ("/api/image", JPEG, b"%!PS\nshowpage", 422),
    "half an image": ("/api/image", JPEG, image_file(1)[:300], 422),
    "a decompression bomb": ("/api/image", "image/png", bomb(), 422),
    "a JPEG of 101 scans": ("/api/image", JPEG, many_scans(101), 422),
    "a huge file": ("/api/image", JPEG, b"\xff" * 300_000, 413),
    "an image as a form": (
        "/api/image",
        "multipart/form-data; boundary=x",
        b"--x--",
        415,
    ),
    "JSON of another type": ("/api/search", "text/plain", b"{}", 415),
    "broken JSON": ("/api/search", JSON, b"{", 400),
    "deep JSON": ("/api/search", JSON, DEEP, 400),
    "a list": ("/api/search", JSON, b"[]", 422),
    "1 MB of text": (
        "/api/search",
        JSON,
        json.dumps({"parts": [{"text": "a" * 10**6}]}).encode(),
        413,
    ),
    "2,000 characters": (
        "/api/search",
        JSON,
        json.dumps({"parts": [{"text": "a" * 2000}]}).encode(),
        422,
    ),
    "half a character": (
        "/api/search",
        JSON,
        b'{"parts": [{"text": "\\ud800"}]}',
        422,
    ),
    "an infinite weight": (
        "/api/search",
        JSON,
        b'{"parts": [{"text": "a", "weight": Infinity}]}',
        422,
    ),
    "a weight of 401 digits": (
        "/api/search",
        JSON,
        b'{"parts": [{"text": "a", "weight": 1%s}]}' % (b"0" * 400),
        422,
    ),
    "parts that cancel out": (
        "/api/search",
        JSON,
        b'{"parts": [{"text": "a"}, {"text": "a", "weight": -1}]}',
        422,
    ),
    "13 parts": (
        "/api/search",
        JSON,
        json.dumps({"parts": [{"text": "a"}] * 13}).encode(),
        422,
    ),
    "a million results": (
        "/api/search",
        JSON,
        b'{"parts": [{"text": "a"}], "k": 1000000}',
        422,
    ),
    "a row before the first": (
        "/api/search",
        JSON,
        b'{"parts": [{"row": -1}]}',
        422,
    ),
    "an image nobody sent": (
        "/api/search",
        JSON,
        b'{"parts": [{"image": "../../etc/passwd"}]}',
        410,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_requests_are_refused_with_a_reason(site, name):
    path, kind, body, status = HOSTILE[name]
    answer = site.post(path, content=body, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert answer.json()["error"]
    assert "Traceback" not in answer.text
    assert site.get("/api/index").status_code == 200


def exchange(site, request):
    """Send bytes on a connection of their own, and read all that comes."""
    address = site.base_url.host, site.base_url.port
    with socket.create_connection(address, 60) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_slow_body_is_given_up(library, model):
    with running(library, model, Limits(seconds=0.3)) as site:
        answer = exchange(
            site,
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n"
            b'{"parts": [',
        )
        assert answer.split(b" ", 2)[1] == b"408"
        assert b"took too long" in answer
        assert find(site, {"text": "a bus"})


@pytest.mark.parametrize(
    "path",
    [
        "/thumbnails/../index.json",
        "/thumbnails/%2e%2e%2findex.json",
        "/thumbnails/-1",
        "/thumbnails/30",
        "/thumbnails/99999999999999999999",
        "/thumbnails/" + 5000 * "9",
        "/thumbnails/%C2%B2",
        "/index.json",
        "/model/config.json",
        "/..%2f..%2fetc/passwd",
        "/docs",
    ],
)
def test_nothing_but_thumbnails_is_read(site, path):
    # A client would tidy up the path first.
    answer = exchange(
        site,
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\n"
        "Connection: close\r\n\r\n".encode(),
    )
    assert answer.split(b" ", 2)[1] == b"404"


def test_other_hosts_and_methods_are_refused(site):
    elsewhere = {"Host": "evil.example"}
    assert site.get("/", headers=elsewhere).status_code == 400
    assert site.get("/api/search").status_code == 405
    assert site.put("/thumbnails/1").status_code == 405
    policy = site.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline'; script" not in policy
    first, second = (site.get("/").text for _ in range(2))
    assert first != second  # The number of the script is new each time.


def test_keys_are_neither_paths_nor_markup(library, model, tmp_path):
    from starlette.testclient import TestClient

    keys = ["../../7", "<script>alert(1)</script>", "/etc/passwd\0"]
    vectors = np.eye(3, Index(library.index).dim, dtype="float32")
    rows = [(keys, keys, vectors, [image_file(0)] * 3)]
    write_index(rows, 3, tmp_path / "index", library.preset)
    client = TestClient(make_app(Index(tmp_path / "index"), model, hosts=["*"]))
    body = {"parts": [{"row": 1}], "k": 3}
    answer = client.post("/api/search", json=body)
    # Neither changed nor shown by the browser as anything but data.
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    found = {r["row"]: (r["key"], r["text"]) for r in answer.json()["results"]}
    assert found == {row: (key, key) for row, key in enumerate(keys)}
    for row in range(3):
        assert client.get(f"/thumbnails/{row}").content == image_file(0)


def test_requests_are_rationed():
    now = [0.0]
    rate = RateLimit(rate=2, burst=3, addresses=2, clock=lambda: now[0])
    assert [rate.take("a") for _ in range(3)] == [0, 0, 0]
    assert rate.take("a") == pytest.approx(0.5)
    assert rate.take("b") == 0
    now[0] = 0.5
    assert rate.take("a") == 0
    assert rate.take("a") > 0
    now[0] = 100.0
    assert [rate.take("a") > 0 for _ in range(4)] == [False] * 3 + [True]


def test_too_many_requests_are_refused(library, model):
    from starlette.testclient import TestClient

    limits = Limits(rate=0.01, burst=2)
    app = make_app(Index(library.index), model, limits, ["*"])
    client = TestClient(app)
    answers = [client.get("/api/index") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 100
    assert client.get("/thumbnails/0").status_code == 429


@pytest.mark.parametrize(
    "error", [KeyError("red"), IndexError(7), DamagedIndex("`/srv/index` …")]
)
def test_errors_of_the_server_are_not_blamed_on_the_client(
    library, model, monkeypatch, error
):
    from starlette.testclient import TestClient

    def fail(*_):
        raise error

    index = Index(library.index)
    app = make_app(index, model, hosts=["*"])
    client = TestClient(app, raise_server_exceptions=False)
    query = {"parts": [{"image": "0" * 32}]}
    assert client.post("/api/search", json=query).status_code == 410
    monkeypatch.setattr(index, "search", fail)
    query = {"parts": [{"row": 0}]}
    answer = client.post("/api/search", json=query)
    assert answer.status_code == 500 and "/srv" not in answer.text


def test_a_cost_beyond_the_bucket_leaves_a_debt():
    now = [0.0]
    rate = RateLimit(rate=2, burst=3, clock=lambda: now[0])
    assert rate.take("a", 11) == 0
    assert rate.take("a", 11) == pytest.approx(5.5)
    now[0] = 4.4
    assert rate.take("a") > 0
    now[0] = 4.6
    assert rate.take("a") == 0


def test_new_labels_cost_what_they_embed(library, model):
    from starlette.testclient import TestClient

    limits = Limits(rate=0.01, burst=8)
    app = make_app(Index(library.index), model, limits, ["*"])
    client = TestClient(app)

    def ask(names):
        body = {"part": {"row": 3}, "labels": names}
        return client.post("/api/labels", json=body).status_code

    # Those of the index are free, and so is what is remembered.
    assert ask(["a bus", "a dog", "a house"]) == 200
    names = [f"label {number}" for number in range(64)]
    assert ask(names) == 200
    assert ask(names) == 200
    assert ask(["one more"]) == 429


class Upload:
    """An image that arrives in parts, and perhaps never does."""

    client, headers = None, {"content-type": "image/jpeg"}

    def __init__(self, *parts, stalls=False):
        self.parts, self.stalls = parts, stalls

    async def stream(self):
        for part in self.parts:
            yield part
            await asyncio.sleep(0.001)
        if self.stalls:
            await asyncio.sleep(60)


class CountingEngine:
    """Embeds nothing, and counts how much it is asked for at once."""

    def __init__(self):
        self.now = self.most = self.done = 0

    async def add_image(self, contents):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        self.now -= 1
        self.done += 1
        return "token"


def test_slow_uploads_take_no_place():
    async def run():
        engine = CountingEngine()
        handlers = _Handlers(engine, Limits(uploads=4, seconds=0.5))
        slow = [
            asyncio.create_task(handlers.image(Upload(b"a", stalls=True)))
            for _ in range(50)
        ]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(0.3):
            uploads = [handlers.image(Upload(b"a", b"b")) for _ in range(9)]
            await asyncio.gather(*uploads)
        assert (engine.done, engine.most) == (9, 4)
        assert handlers.held_bytes == 50
        answers = await asyncio.gather(*slow, return_exceptions=True)
        assert {answer.status for answer in answers} == {408}
        assert (engine.done, handlers.held_bytes) == (9, 0)

    asyncio.run(run())


def test_few_bytes_of_images_lie_in_memory():
    async def run():
        engine = CountingEngine()
        limits = Limits(upload_bytes=30, held_bytes=100, seconds=0.2)
        handlers = _Handlers(engine, limits)
        uploads = [Upload(b"a" * 15, b"b" * 15, stalls=True) for _ in range(9)]
        uploads.append(Upload(b"c"))
        answers = await asyncio.gather(
            *map(handlers.image, uploads), return_exceptions=True
        )
        statuses = [getattr(answer, "status", 200) for answer in answers]
        # Six first parts fit, and then no more; what is refused makes room.
        assert statuses.count(503) >= 3 and statuses.count(408) >= 1
        assert handlers.held_bytes == 0
        assert engine.done == statuses.count(200)
        answer = await handlers.image(Upload(b"a" * 30))
        assert answer.status_code == 200

    asyncio.run(run())


def test_limits_that_no_image_meets_are_refused():
    with pytest.raises(ValueError, match="`held_bytes` must be at least"):
        Limits(upload_bytes=100, held_bytes=99)


@pytest.mark.parametrize("value", [0, -1, float("nan")])
@pytest.mark.parametrize("name", ["rate", "max_pixels"])
def test_limits_are_positive(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be positive"):
        Limits(**{name: value})


def test_a_port_that_is_none_is_refused(library):
    words = "between 0 and 65535. Received: port=99999"
    with pytest.raises(ValueError, match=words):
        serve(library.index, port=99999)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "0"], "--rate: must be above 0"),
        (["--rate", "nan"], "--rate: must be above 0"),
        (["--max-pixels", "-1"], "--max-pixels: must be at least 1"),
        (["--port", "99999"], "--port: must be at most 65535"),
    ],
)
def test_wrong_command_lines(library, capsys, options, message):
    with pytest.raises(SystemExit):
        main(["serve", str(library.index), *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--host", "::1"], ["[::1]:8080", "localhost"]),
        (["--host", "0.0.0.0", "--allow-host", "box"], ["box:8080"]),
        (["--rate", "0.2"], ["localhost"]),
    ],
)
def test_names_of_the_page(library, capsys, monkeypatch, options, names):
    from starlette.testclient import TestClient

    def run(server, sockets):
        sockets[0].close()
        client = TestClient(server.config.app)
        for name in [*names, "evil.example"]:
            answer = client.get("/thumbnails/1", headers={"Host": name})
            assert answer.status_code == (200 if name in names else 400)
        # Nobody is kept out for good.
        client.get("/", headers={"Host": names[0]}).raise_for_status()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.setattr("align_keras.search.web.app._THUMBNAIL_COST", 1e-9)
    # Whether or not this machine has the address.
    create = socket.create_server
    monkeypatch.setattr(
        socket, "create_server", lambda *_, **__: create(("127.0.0.1", 0))
    )
    assert main(["serve", str(library.index), *options]) == 0
    line = capsys.readouterr().out
    assert ("--allow-host" in line) == ("0.0.0.0" in options)


def test_a_hundred_queries_at_once(library, site):
    """The script of the load test, for two seconds."""
    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/serve_load.py", str(site.base_url)),
            *("--seconds", "2"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    result = json.loads(done.stdout)
    assert (done.returncode, result["errors"]) == (0, 0), result
    assert result["queries"] >= 100
