"""A cluster of Spark's that curates into a store of objects."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ibis", reason="needs the extra `curation`")
pytest.importorskip("pyspark", reason="needs the extra `spark`")

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from align_keras.curation import curate

HELPERS = Path(__file__).parents[1] / "helpers" / "folder_as_bucket"
DEFAULTS = """
spark.master local[2]
spark.driver.extraJavaOptions -XX:TieredStopAtLevel=1 -XX:+UseSerialGC
spark.sql.codegen.wholeStage false
spark.sql.shuffle.partitions 2
spark.ui.enabled false
"""
OUTPUT = "s3a://bucket/within/out"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Environment in which Spark and Python have `s3a://bucket/within`."""
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, which is not on the path")
    buckets = tmp_path_factory.mktemp("buckets")
    (buckets / "bucket" / "within").mkdir(parents=True)
    settings = {
        **os.environ,
        "BUCKETS": str(buckets),
        "SPARK_CONF_DIR": str(buckets),
        "PYTHONPATH": str(HELPERS),
        "CUDA_VISIBLE_DEVICES": "",
        # On a cluster, its own settings say so.
        "PYSPARK_PYTHON": sys.executable,
    }
    printed = subprocess.run(
        [sys.executable, "-c", "import sitecustomize as s; "
         "print(s.SPARK_SETTINGS)"],
        env=settings,
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    (buckets / "spark-defaults.conf").write_text(DEFAULTS + printed.stdout)
    return settings


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Rows in two files, and rules of which one compares embeddings."""
    from tiny_align import tiny_align

    folder = tmp_path_factory.mktemp("inputs")
    tiny_align().save_to_preset(str(folder / "preset"))
    draw = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "test").mkdir()
    for number in range(12):
        pixels = draw.integers(0, 256, (40, 40, 3), "uint8")
        image = Image.fromarray(pixels // (1 + number % 3))
        image.save(folder / "images" / f"{number}.png")
        if number in (3, 8):
            image.save(folder / "test" / f"{number}.png")
    (folder / "rows").mkdir()
    for name, numbers in (("a", range(7)), ("b", range(5, 13))):
        table = {
            "url": [f"{number}.png" for number in numbers],
            "text": [f"text {name} of {number}" for number in numbers],
        }
        table["text"][1] = "short"
        pq.write_table(pa.table(table), folder / "rows" / f"{name}.parquet")
    rule = {
        "test_images": ["test"],
        "images": "images",
        "model": str(folder / "preset"),
        "cosine": 0.9999999,
    }
    rules = [
        {"near_duplicate_embedding": rule},
        {"token_count": {"at_least": 3}},
    ]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"rules": rules}))
    return folder


def run(environment, *command):
    return subprocess.run(
        [sys.executable, "-m", "align_keras.cli", "curate", *command],
        env=environment,
        capture_output=True,
        text=True,
    )


def rows_of(folder):
    table = pq.read_table(folder / "kept")
    order = ["url", "text"]
    return table.sort_by([(n, "ascending") for n in order]).to_pylist()


@pytest.mark.multiprocess
def test_executors_write_all_rows(environment, inputs, tmp_path):
    rows, rules = str(inputs / "rows"), str(inputs / "rules.yaml")
    here = curate([rows], tmp_path / "here", rules)
    assert (here["rows"], here["kept"]) == (15, 11)
    command = [rows, "--config", rules, "--output", OUTPUT, "--json"]
    command += ["--engine", "spark"]
    done = run(environment, *command)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout.splitlines()[-1])
    buckets = Path(environment["BUCKETS"])
    assert rows_of(buckets / "bucket/within/out") == rows_of(tmp_path / "here")
    assert manifest["kept"] == 11
    kept = manifest["files"]["kept"]
    assert kept and all(
        (buckets / "bucket/within/out" / file).is_file() for file in kept
    )
    # The driver, which alone opened the manifest, opened none of the rows.
    opened = [
        line.split(" ", 1)
        for line in (buckets / "opened").read_text().splitlines()
    ]
    drivers = {pid for pid, path in opened if path.endswith("manifest.json")}
    data = [pid for pid, path in opened if path.endswith((".stage", "parquet"))]
    assert len(drivers) == 1 and data
    assert not drivers & set(data)
    # Of a run that was killed while it published, the stages are taken; what
    # an executor left of another attempt is no stage, and is removed.
    stages = buckets / "bucket/within/out/.stages"
    (verdicts,) = stages.glob("verdicts-*.json")
    left = stages / f"{verdicts.stem}.00000000"
    left.mkdir()
    (left / "part-0.parquet").write_text("half a file")
    (stages / "publishing.json").write_text("{}")
    (buckets / "bucket/within/out/manifest.json").unlink()
    (buckets / "bucket/within/out" / kept[0]).write_text("half a file")
    done = run(environment, *command)
    assert done.returncode == 0, done.stderr
    assert rows_of(buckets / "bucket/within/out") == rows_of(tmp_path / "here")
    assert not left.exists()
    again = json.loads(done.stdout.splitlines()[-1])
    assert again["tables"] == manifest["tables"]
    # DuckDB explains what lies in the store.
    done = run(environment, "--output", OUTPUT, "--explain", "1")
    assert "token_count: num_tokens 1 (at_least 3)" in done.stdout, done.stderr


@pytest.mark.multiprocess
def test_without_a_connector_nothing_is_written(environment, inputs):
    rows, rules = str(inputs / "rows"), str(inputs / "rules.yaml")
    output = "s3a://nowhere/out"
    settings = {**environment, "SPARK_CONF_DIR": str(inputs)}
    (inputs / "spark-defaults.conf").write_text(DEFAULTS)
    command = [rows, "--config", rules, "--output", output]
    done = run(settings, *command, "--engine", "spark")
    assert done.returncode == 2, done.stderr
    assert "cannot write to `s3a://nowhere/out" in done.stderr
    assert "hadoop-aws" in done.stderr
    assert not Path(environment["BUCKETS"], "nowhere").exists()
