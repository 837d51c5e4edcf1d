"""Compare images with texts or classes, using TensorFlow Serving over REST.

    python rest_client.py http://localhost:8501 bus.jpg --text "a bus" "a cat"
    python rest_client.py http://localhost:8501 bus.jpg

With texts, this prints the similarity of each. Without texts, it prints the
probabilities from the signature `classify`, if the model was exported with
classes. It needs only Python.
"""

import argparse
import base64
import json
import urllib.error
import urllib.request
from pathlib import Path


def predict(url, model, signature, inputs):
    """Send a request in column format: each input is one list."""
    request = urllib.request.Request(
        f"{url}/v1/models/{model}:predict",
        json.dumps({"signature_name": signature, "inputs": inputs}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["outputs"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{error.code}: {error.read().decode()}") from error


def cosine(first, second):
    """Return the cosine similarity of two vectors of unit length."""
    return sum(a * b for a, b in zip(first, second, strict=True))


def main():
    """Read the command line, query the server, and print the answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url", help="such as http://localhost:8501")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--text", nargs="+")
    parser.add_argument("--model", default="align")
    args = parser.parse_args()

    # JSON cannot hold bytes; {"b64": ...} encodes them.
    files = [
        {"b64": base64.b64encode(path.read_bytes()).decode()}
        for path in args.images
    ]

    def ask(signature, **inputs):
        return predict(args.url, args.model, signature, inputs)

    if args.text:
        # A server with batching refuses images and texts in the same request.
        images = ask("encode_image", image_bytes=files)
        texts = ask("encode_text", texts=args.text)["embeddings"]
        valid, names = images["valid"], [args.text] * len(files)
        scores = [
            [cosine(image, text) for text in texts]
            for image in images["embeddings"]
        ]
    else:
        outputs = ask("classify", image_bytes=files)
        valid, names = outputs["valid"], outputs["labels"]
        scores = outputs["probabilities"]
    rows = zip(args.images, valid, names, scores, strict=True)
    for path, is_valid, row_names, row_scores in rows:
        print(path if is_valid else f"{path}: not a readable image")
        for name, score in zip(row_names, row_scores, strict=True):
            if is_valid:
                print(f"  {score:6.3f}  {name}")


if __name__ == "__main__":
    main()
