"""Load test of the search page's server, from this machine.

    align-keras serve INDEX --port 8080 --rate 100000
    python benchmarks/serve_load.py http://127.0.0.1:8080 --seconds 30

Keeps a number of queries in flight, with words that are not in the server's
cache, and prints how many were answered and how long they took.
"""

import argparse
import asyncio
import collections
import json
import random
import time
import urllib.parse

WORDS = "a the red blue green bus dog house on near star ring heart".split()


async def ask(host, port, body):
    """Send one query on its own connection; return status and answer."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        answer = await reader.read()
    finally:
        writer.close()
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]


async def client(host, port, end, seed, times, outcomes):
    """Send one query after another until the time is over."""
    rng = random.Random(seed)
    while time.perf_counter() < end:
        text = " ".join(rng.choices(WORDS, k=6))
        parts = [
            {"text": text, "weight": 2},
            {"text": rng.choice(WORDS), "weight": -1},
        ]
        body = json.dumps({"parts": parts, "k": 20}).encode()
        start = time.perf_counter()
        try:
            status, answer = await ask(host, port, body)
            found = status == 200 and json.loads(answer)["results"]
            outcome = "ok" if found else f"status {status}"
        except (OSError, ValueError, IndexError) as error:
            outcome = type(error).__name__
        times.append(time.perf_counter() - start)
        outcomes[outcome] += 1


async def load(host, port, clients, seconds):
    """Run all clients and summarize their answers."""
    times, outcomes = [], collections.Counter()
    end = time.perf_counter() + seconds
    await asyncio.gather(
        *(
            client(host, port, end, seed, times, outcomes)
            for seed in range(clients)
        )
    )
    times.sort()
    return {
        "clients": clients,
        "seconds": seconds,
        "queries": len(times),
        "errors": len(times) - outcomes["ok"],
        "outcomes": dict(outcomes),
        "queries_per_second": round(len(times) / seconds, 1),
        "p50_ms": round(1000 * times[len(times) // 2], 1),
        "p99_ms": round(1000 * times[int(0.99 * len(times))], 1),
    }


def main():
    """Measure, print one JSON object, and fail if a query failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="address of a server on this machine")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30)
    args = parser.parse_args()
    url = urllib.parse.urlparse(args.url)
    if url.hostname not in ("127.0.0.1", "localhost", "::1"):
        parser.error("the load is for a server on this machine alone")
    result = asyncio.run(
        load(url.hostname, url.port, args.clients, min(args.seconds, 120))
    )
    print(json.dumps(result))
    return 1 if result["errors"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
