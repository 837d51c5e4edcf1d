"""The rules in plain Python, and rows in which every rule drops something.

Written from the paper's sentences and not from the library: loops, dicts and
strings; no hash stands for a text here.
"""

import collections
import random
import unicodedata


def normal(text):
    lower = unicodedata.normalize("NFC", text).lower()
    return " ".join(unicodedata.normalize("NFC", lower).split())


def make_rows(count=20_000, seed=0):
    """Rows of a noisy crawl, a list of dicts."""
    draw = random.Random(seed)
    words = [f"w{number}" for number in range(3000)]
    words += [
        "Äpfel",
        "ΣΑΣ",
        "İstanbul",
        "e\u0301te\u0301",
        "日本",
        "שלום",
        "\ufe0f",
        "\u0301",
    ]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    rows = []

    def sentence():
        length = draw.choice([0, 1, 2, 3, 5, 8, 8, 8, 12, 20, 21, 30])
        return " ".join(draw.choices(words, weights, k=length))

    # Most texts come several times, so that their bigrams are frequent.
    pool = [sentence() for _ in range(count // 6)]
    for number in range(count):
        text = draw.choice(pool) if draw.random() < 0.8 else sentence()
        kind = draw.random()
        if kind < 0.05:
            text = f"Stock photo {draw.randrange(60)} free"
        elif kind < 0.07:
            text = f"shared by few {draw.randrange(100)}"
        elif kind < 0.09:
            text = f"Only once {number}"
        elif kind < 0.10:
            text = draw.choice([None, "", " \u00a0\t"])
        url = f"https://example.org/{draw.randrange(count)}.jpg"
        if draw.random() < 0.15:
            url = f"https://example.org/popular-{draw.randrange(30)}.jpg"
        if draw.random() < 0.01:
            # Many rows, but of one image.
            text = f"the same image {draw.randrange(10)}"
            url = f"https://example.org/{text[-1]}.jpg"
        if draw.random() < 0.004:
            url = draw.choice([None, ""])
        side = draw.choice([-1, 0, 150, 200, 201, *[300, 600, 640] * 4])
        rows.append(
            {
                "id": f"r{draw.randrange(count * 20)}",
                "url": url,
                "text": text,
                "width": draw.choice(
                    [side, side * 3, side * 3 - 1, 700, 800, None]
                ),
                "height": side,
                "phash": draw.getrandbits(64) if draw.random() < 0.9 else None,
                "score": draw.choice(
                    [None, 0.1, 0.5, 0.50001, 0.9, *[0.3] * 9]
                ),
                "language": draw.choice(["en", "EN", "de", None, *["en"] * 8]),
            }
        )
    return rows


def make_test_hashes(rows, seed=1, distances=(0, 1, 2, 3, 4, 5)):
    """Hashes at known distances from some of the rows' hashes."""
    draw = random.Random(seed)
    hashes = []
    for row in draw.sample([r for r in rows if r["phash"] is not None], 300):
        flipped = row["phash"]
        for bit in draw.sample(range(64), draw.choice(distances)):
            flipped ^= 1 << bit
        hashes.append(flipped)
    return hashes


def sizes(row):
    def good(side):
        return side if side is not None and side > 0 else None

    return good(row["width"]), good(row["height"])


def drops(rows, test_hashes, settings=None):
    """Indices that each rule drops, a dict from its name to a set."""
    given = {
        "texts_per_image": 95,
        "shared_text": 10,
        "keep": 20_000,
        "ties": "keep",
        "count": "distinct",
        "ngrams": (1, 2),
    }
    given |= settings or {}
    texts = [normal(row["text"] or "") for row in rows]
    urls = [row["url"] or None for row in rows]
    found = collections.defaultdict(set)
    texts_of, images_of = (
        collections.defaultdict(list),
        collections.defaultdict(list),
    )
    tokens_of, occurrences = [], collections.Counter()
    for url, text in zip(urls, texts, strict=True):
        if url and text:
            texts_of[url].append(text)
            images_of[text].append(url)
        unigrams = text.split()
        tokens = []
        for length in given["ngrams"]:
            for start in range(len(unigrams) - length + 1):
                tokens.append(" ".join(unigrams[start : start + length]))
        tokens_of.append(tokens)
        occurrences.update(tokens)
    frequent = most_frequent(occurrences, given["keep"], given["ties"])
    size = len if given["count"] == "rows" else lambda x: len(set(x))
    crowded = {
        u for u, t in texts_of.items() if size(t) > given["texts_per_image"]
    }
    shared = {t for t, u in images_of.items() if size(u) > given["shared_text"]}
    seen_ids, seen_pairs = set(), set()
    for index, row in enumerate(rows):
        text, url = texts[index], urls[index]
        width, height = sizes(row)
        number = len(text.split())
        if not text or not url:
            found["unusable"].add(index)
        if row["id"] in seen_ids:
            found["repeated_ids"].add(index)
        seen_ids.add(row["id"])
        if width is None or height is None or not min(width, height) > 200:
            found["shorter_side"].add(index)
        if (
            width is None
            or height is None
            or not max(width, height) / min(width, height) < 3
        ):
            found["aspect_ratio"].add(index)
        if row["score"] is not None and row["score"] > 0.5:
            found["adult_content"].add(index)
        if url in crowded:
            found["texts_per_image"].add(index)
        if text in shared:
            found["shared_text"].add(index)
        if not 3 <= number <= 20:
            found["token_count"].add(index)
        if not set(tokens_of[index]) <= frequent:
            found["rare_tokens"].add(index)
        if row["phash"] is not None:
            near = min((row["phash"] ^ h).bit_count() for h in test_hashes)
            if near <= 3:
                found["near_duplicate"].add(index)
            if text:
                if (row["phash"], text) in seen_pairs:
                    found["repeated_pairs"].add(index)
                seen_pairs.add((row["phash"], text))
        if (row["language"] or "").lower() != "en":
            found["language"].add(index)
        raw = unicodedata.normalize("NFC", row["text"] or "")
        if not 6 <= len(raw) <= 100:
            found["character_count"].add(index)
        unigrams = text.split()
        repeated = len(unigrams) - len(set(unigrams))
        if unigrams and repeated > 0.2 * len(unigrams):
            found["repeated_tokens"].add(index)
        if any(occurrences[word] < 5 for word in unigrams):
            found["rare_words"].add(index)
        if {"w97", "w211", "日本"} & set(unigrams):
            found["forbidden_words"].add(index)
        if row["score"] is None or not 0.2 < row["score"] < 0.9:
            found["number"].add(index)
    return dict(found)


def most_frequent(occurrences, keep, ties):
    """Tokens of the first ranks, by sorting them all."""
    ranked = sorted(occurrences.values(), reverse=True)
    if keep >= len(ranked):
        return set(occurrences)
    last = ranked[keep - 1]
    if ties == "drop" and ranked[keep] == last:
        last += 1
    return {token for token, count in occurrences.items() if count >= last}
