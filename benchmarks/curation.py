"""Curation beside hand-written DuckDB SQL and Polars, on generated rows.

    python benchmarks/curation.py --rows 1000000 --workdir /tmp/curation \
        --polars-python /tmp/polars/bin/python

Each job runs in its own process on the same normalised rows, and all jobs must
keep the same ids. The script prints, for each job, the CPU seconds of the
process and its children, the wall seconds, and their peak memory in total.
`audit` in a name means that every rule judges every row and that the verdicts
are stored, as `align-keras curate` does; the other jobs only find the
survivors. With `--only`, the configuration has only that rule, and only our
jobs run. The cost of a rule is the difference from `--only token_count`, which
costs almost nothing. With `--keep`, rows in the directory are reused and left
there, so that a long measurement can be split into several calls.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

WORDS = 1_000_000
FILES = 8
TEST_HASHES = 10_000
LISTED = 100_000


# === Rows ===


def generate(folder, count, seed=0):
    """Write raw rows with Zipf words, repeated texts and addresses."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    words = pa.array([f"w{number:x}" for number in range(WORDS)])
    # Zipf's law by inverting its distribution function.
    chance = np.cumsum(1 / np.arange(1, WORDS + 1))
    chance /= chance[-1]
    tests = draw.integers(-(2**63), 2**63, TEST_HASHES)
    lines = "\n".join(f"{int(t) % 2**64:016x}" for t in tests)
    (folder / "hashes.txt").write_text(lines)
    (folder / "words.txt").write_text("\n".join(words[:LISTED].to_pylist()))
    part = -(-count // FILES)
    for file in range(FILES):
        size = min(part, count - file * part)
        # Three in ten texts and addresses are repeats, some very frequent.
        texts = _repeating(draw, size, count, file * part)
        urls = _repeating(draw, size, count, file * part)
        lengths = texts * 7919 % 23 + 1
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        numbers = _text_words(np, texts, lengths, offsets, chance)
        chosen = words.take(pa.array(numbers))
        lists = pa.ListArray.from_arrays(pa.array(offsets, "int32"), chosen)
        width = draw.integers(50, 1200, size)
        near = draw.choice(tests, size) ^ (1 << draw.integers(0, 63, size))
        far = draw.integers(-(2**63), 2**63, size)
        table = pa.table(
            {
                "url": pc.binary_join_element_wise(
                    "https://example.org/",
                    pc.cast(pa.array(urls), "string"),
                    "",
                ),
                "text": pc.binary_join(lists, " "),
                "width": width,
                "height": (width * draw.uniform(0.2, 2.5, size)).astype(int),
                "phash": np.where(draw.random(size) < 0.005, near, far),
            }
        )
        pq.write_table(table, folder / f"{file}.parquet")


def _text_words(np, texts, lengths, offsets, chance):
    """Return the word numbers of all texts, determined by the text's number.

    The first word is drawn by Zipf's law, and so is one more word in four of
    ten texts. Each other word is one of two successors of the word before it,
    so that bigrams recur as they do in a language.
    """

    def uniform(key):
        key = key.astype("uint64") * np.uint64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
        return (key ^ (key >> np.uint64(27))) / 2.0**64

    def drawn(key):
        return np.searchsorted(chance, uniform(key))

    numbers = np.empty(offsets[-1], "int64")
    words = drawn(texts)
    strange = np.where(uniform(texts + 2**40) < 0.4, texts % lengths, -1)
    for place in range(int(lengths.max())):
        there = place < lengths
        if place:
            choice = uniform(texts * 32 + place + 2**41) < 0.5
            words = drawn(words * 2 + choice + 2**42)
        words = np.where(place == strange, drawn(texts + 2**43), words)
        numbers[offsets[:-1][there] + place] = words[there]
    return numbers


def _repeating(draw, size, count, first):
    import numpy as np

    own = np.arange(first, first + size)
    # Ranks from a power law: the first few occur thousands of times.
    shared = (count / 20 * draw.random(size) ** 6).astype("int64")
    return np.where(draw.random(size) < 0.7, own, shared)


ALONE = ("token_count", "rare_tokens", "balanced", "balanced-listed")


def rules(folder, count, only=None):
    """Return the paper's rules, with K scaled to the rows, or one rule."""
    rare = {"rare_tokens": {"keep": count // 10}}
    most = {"at_most": count // 1000}
    words = {"metadata": [str(folder / "words.txt")]}
    alone = {
        "token_count": {"token_count": {"at_least": 3}},
        "rare_tokens": rare,
        "balanced": {"balanced": most},
        "balanced-listed": {"balanced": {**most, **words}},
    }
    if only:
        return {"rules": [alone[only]]}
    return {
        "rules": [
            {"shorter_side": {"above": 200}},
            {"aspect_ratio": {"below": 3}},
            {"texts_per_image": {"at_most": 1000}},
            {"near_duplicate": {"test_images": [str(folder / "hashes.txt")]}},
            {"shared_text": {"at_most": 10}},
            {"token_count": {"at_least": 3, "at_most": 20}},
            rare,
        ]
    }


# === Jobs, each in a process of its own ===


def job_read(args):
    """Run ours: raw files to normalised rows."""
    from align_keras.curation.config import parse_config
    from align_keras.curation.engine import open_engine
    from align_keras.curation.execute import describe_inputs
    from align_keras.curation.execute import read_rows
    from align_keras.curation.input_files import find_inputs
    from align_keras.curation.stages import Stages
    from align_keras.curation.storage import Storage

    raw = args.workdir / "raw"
    config = parse_config(rules(raw, args.rows))
    stages = Stages(Storage(args.workdir / "stages"), open_engine("duckdb"))
    files, _ = find_inputs([str(raw)])
    read_rows(config, files, describe_inputs(config, files), stages)


def job_ours(args, engine="duckdb", master=None):
    """Run ours: rules, audit and kept rows, from normalised rows."""
    from align_keras.curation import curate
    from align_keras.curation.config import parse_config

    raw = args.workdir / "raw"
    curate(
        [str(raw)],
        args.workdir / f"ours-{engine}",
        parse_config(rules(raw, args.rows, args.only)),
        engine=engine,
        master=master,
        memory=args.memory,
        stages=args.workdir / "stages",
    )


def job_ours_spark(args):
    """Run `job_ours` on Spark."""
    job_ours(args, "spark", "local[2]")


def job_duckdb_audit(args):
    """Run hand-written DuckDB that applies every rule to every row."""
    _by_hand(args, True)


def job_duckdb(args):
    """Run hand-written DuckDB that only finds the survivors."""
    _by_hand(args, False)


GRAMS = """
    SELECT row_id, unnest(str_split(tokens, ' ')) AS gram FROM {rows}
    WHERE num_tokens > 0
    UNION ALL
    SELECT row_id, unnest(list_transform(u[2:], lambda w, i:
        u[i] || ' ' || w)) AS gram
    FROM (SELECT row_id, str_split(tokens, ' ') AS u FROM {rows}
          WHERE num_tokens > 0)
"""


def _by_hand(args, audit):
    import duckdb

    output = args.workdir / ("duckdb-audit" if audit else "duckdb")
    output.mkdir()
    con = duckdb.connect()
    limit = int(float(args.memory.removesuffix("GiB")) * 0.75 * 1024)
    con.execute(f"SET memory_limit = '{limit}MiB'")
    con.execute(f"SET temp_directory = '{output}/spill'")
    con.execute("SET preserve_insertion_order = false")
    con.execute("SET disabled_optimizers = 'build_side_probe_side'")
    (stage,) = (args.workdir / "stages").glob("rows-*/")
    con.execute(f"CREATE VIEW rows AS FROM read_parquet('{stage}/*.stage')")
    hashes = (args.workdir / "raw" / "hashes.txt").read_text().split()
    signed = [int(h, 16) - (int(h, 16) >> 63 << 64) for h in hashes]
    con.execute("CREATE TEMP TABLE tests (hash BIGINT)")
    con.execute("INSERT INTO tests SELECT unnest(?)", [signed])
    con.execute(
        "CREATE TEMP TABLE counts AS SELECT gram, count(*) AS n FROM "
        f"({GRAMS.format(rows='rows')}) GROUP BY gram"
    )
    con.execute(
        f"""CREATE TEMP TABLE frequent AS SELECT gram FROM counts WHERE n >=
        (SELECT min(n) FROM (SELECT n, sum(count(*)) OVER (ORDER BY n DESC)
         - count(*) AS before FROM counts GROUP BY n)
         WHERE before < {args.rows // 10})"""
    )
    con.execute(
        """CREATE TEMP TABLE crowded AS SELECT image_key FROM rows
        SEMI JOIN (SELECT image_key FROM rows GROUP BY image_key
                   HAVING count(*) > 1000) USING (image_key)
        GROUP BY image_key HAVING count(DISTINCT text_key) > 1000"""
    )
    con.execute(
        """CREATE TEMP TABLE shared AS SELECT text_key FROM rows
        SEMI JOIN (SELECT text_key FROM rows GROUP BY text_key
                   HAVING count(*) > 10) USING (text_key)
        GROUP BY text_key HAVING count(DISTINCT image_key) > 10"""
    )
    near = " UNION ".join(
        f"""SELECT row_id FROM (SELECT row_id, phash, phash & {mask} AS band
        FROM rows) JOIN (SELECT hash, hash & {mask} AS band FROM tests)
        USING (band) WHERE bit_count(xor(phash, hash)) <= 3"""
        for mask in (0xFFFF, 0xFFFF << 16, 0xFFFF << 32, -(1 << 48))
    )
    con.execute(f"CREATE TEMP TABLE near AS {near}")
    (_hand_audit if audit else _hand_survivors)(con, output)


def _hand_survivors(con, output):
    """Write SQL in which costly rules see only what cheap rules leave."""
    con.execute(
        """CREATE TEMP TABLE left_over AS SELECT row_id FROM rows
        ANTI JOIN crowded USING (image_key) ANTI JOIN shared USING (text_key)
        ANTI JOIN near USING (row_id)
        WHERE width > 200 AND height > 200 AND width < 3 * height
        AND height < 3 * width AND num_tokens BETWEEN 3 AND 20"""
    )
    some = "(SELECT * FROM rows SEMI JOIN left_over USING (row_id))"
    con.execute(
        f"""CREATE TEMP TABLE rare AS SELECT DISTINCT row_id FROM
        ({GRAMS.format(rows=some)}) ANTI JOIN frequent USING (gram)"""
    )
    con.execute(
        f"""COPY (SELECT row_id, url, text, width, height, phash FROM rows
        SEMI JOIN (SELECT row_id FROM left_over ANTI JOIN rare USING (row_id))
        USING (row_id)) TO '{output}/kept.parquet'"""
    )


def _hand_audit(con, output):
    con.execute(
        f"""CREATE TEMP TABLE rare AS SELECT DISTINCT row_id FROM
        ({GRAMS.format(rows="rows")}) ANTI JOIN frequent USING (gram)"""
    )
    con.execute(
        """CREATE TEMP TABLE masks AS SELECT row_id,
        (NOT coalesce(width > 200 AND height > 200, false))::BIGINT
        + 2 * (NOT coalesce(width < 3 * height AND height < 3 * width,
                            false))::BIGINT
        + 4 * (c.image_key IS NOT NULL)::BIGINT
        + 8 * (n.row_id IS NOT NULL)::BIGINT
        + 16 * (s.text_key IS NOT NULL)::BIGINT
        + 32 * (NOT num_tokens BETWEEN 3 AND 20)::BIGINT
        + 64 * (r.row_id IS NOT NULL)::BIGINT AS mask
        FROM rows LEFT JOIN crowded c USING (image_key)
        LEFT JOIN near n USING (row_id) LEFT JOIN shared s USING (text_key)
        LEFT JOIN rare r USING (row_id)"""
    )
    con.execute("SELECT mask, count(*) FROM masks GROUP BY mask").fetchall()
    con.execute(
        f"""COPY (SELECT row_id, mask FROM masks WHERE mask > 0)
        TO '{output}/dropped.parquet'"""
    )
    con.execute(
        f"""COPY (SELECT row_id, url, text, width, height, phash FROM rows
        ANTI JOIN (SELECT row_id FROM masks WHERE mask > 0) USING (row_id))
        TO '{output}/kept.parquet'"""
    )


def job_polars(args):
    """Run hand-written Polars, streaming, that only finds the survivors."""
    import polars as pl

    output = args.workdir / "polars"
    output.mkdir()
    (stage,) = (args.workdir / "stages").glob("rows-*/")
    rows = pl.scan_parquet(sorted(stage.glob("*.stage")))

    def collect(frame):
        return frame.collect(engine="streaming")

    # Polars can neither shift nor window a list, so pair words by position.
    words = rows.filter(pl.col("num_tokens") > 0).select(
        "row_id", gram=pl.col("tokens").str.split(" ")
    )
    unigrams = words.explode("gram")
    first = words.with_columns(gram=pl.col("gram").list.slice(0, None))
    pairs = first.with_columns(
        other=pl.col("gram").list.slice(1),
        gram=pl.col("gram").list.head(pl.col("gram").list.len() - 1),
    ).filter(pl.col("other").list.len() > 0)
    bigrams = pairs.explode("gram", "other").select(
        "row_id", gram=pl.concat_str("gram", "other", separator=" ")
    )
    grams = pl.concat([unigrams, bigrams])
    counts = collect(grams.group_by("gram").agg(n=pl.len()))
    levels = counts.group_by("n").agg(c=pl.len()).sort("n", descending=True)
    before = levels["c"].cum_sum() - levels["c"]
    lowest = levels.filter(before < args.rows // 10)["n"].min()
    frequent = counts.filter(pl.col("n") >= lowest).select("gram")
    del counts

    def crowded(key, member, most):
        return collect(
            rows.group_by(key)
            .agg(n=pl.col(member).n_unique())
            .filter(pl.col("n") > most)
            .select(key)
        ).lazy()

    hashes = (args.workdir / "raw" / "hashes.txt").read_text().split()
    signed = [int(h, 16) - (int(h, 16) >> 63 << 64) for h in hashes]
    tests = pl.LazyFrame({"hash": signed}, {"hash": pl.Int64})
    near = []
    for mask in (0xFFFF, 0xFFFF << 16, 0xFFFF << 32, -(1 << 48)):
        bits = pl.lit(mask, pl.Int64)
        near.append(
            rows.select("row_id", "phash", band=pl.col("phash") & bits)
            .join(tests.with_columns(band=pl.col("hash") & bits), on="band")
            .filter(
                (pl.col("phash") ^ pl.col("hash")).bitwise_count_ones() <= 3
            )
            .select("row_id")
        )
    left = (
        rows.filter(
            (pl.col("width") > 200)
            & (pl.col("height") > 200)
            & (pl.col("width") < 3 * pl.col("height"))
            & (pl.col("height") < 3 * pl.col("width"))
            & pl.col("num_tokens").is_between(3, 20)
        )
        .join(
            crowded("image_key", "text_key", 1000), on="image_key", how="anti"
        )
        .join(crowded("text_key", "image_key", 10), on="text_key", how="anti")
        .join(pl.concat(near).unique(), on="row_id", how="anti")
    )
    rare = grams.join(frequent.lazy(), on="gram", how="anti")
    kept = left.join(rare.select("row_id").unique(), on="row_id", how="anti")
    kept.select(
        "row_id", "url", "text", "width", "height", "phash"
    ).sink_parquet(output / "kept.parquet")


JOBS = {
    "read": job_read,
    "ours-duckdb": job_ours,
    "duckdb-audit": job_duckdb_audit,
    "duckdb": job_duckdb,
    "polars": job_polars,
    "ours-spark": job_ours_spark,
}


# === Measuring ===


def measure(name, args):
    """Run a job; return its CPU and wall seconds and peak memory in MiB."""
    python = args.polars_python if name == "polars" else sys.executable
    command = [python, __file__, "--job", name, "--rows", str(args.rows)]
    command += ["--workdir", str(args.workdir), "--memory", args.memory]
    command += ["--only", args.only] if args.only else []
    begin = time.perf_counter()
    process = subprocess.Popen(command, start_new_session=True)
    peak, cpu = [0], {}
    done = threading.Event()

    def watch():
        while not done.wait(0.2):
            resident = 0
            for stat in Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = stat.read_text().rpartition(")")[2].split()
                    if int(fields[3]) != process.pid:
                        continue
                    seconds = int(fields[11]) + int(fields[12])
                    cpu[stat.parent.name] = seconds
                    resident += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
                except (OSError, IndexError, ValueError):
                    continue
            peak[0] = max(peak[0], resident)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, used = os.wait4(process.pid, 0)
    done.set()
    watcher.join()
    if status:
        raise SystemExit(f"{name} failed with status {status}")
    # CPU time of the process and the children that it waited for. It does not
    # wait for Spark's processes, so these were sampled while they ran.
    exact = used.ru_utime + used.ru_stime
    seen = sum(cpu.values()) / os.sysconf("SC_CLK_TCK")
    return {
        "job": name,
        "cpu_seconds": round(max(exact, seen), 2),
        "wall_seconds": round(time.perf_counter() - begin, 1),
        "peak_mib": peak[0] // 2**20,
    }


def clear(workdir, name):
    """Remove the output of an earlier run of a job."""
    shutil.rmtree(workdir / name, ignore_errors=True)
    if name.startswith("ours"):
        for path in (workdir / "stages").glob("*"):
            if path.name.startswith("rows-"):
                continue
            (shutil.rmtree if path.is_dir() else os.remove)(path)


def kept_ids(folder):
    """Return the sorted ids that a job keeps."""
    import numpy as np
    import pyarrow.parquet as pq

    kept = folder / "kept"
    files = sorted(kept.glob("*")) if kept.is_dir() else [f"{kept}.parquet"]
    ids = [pq.read_table(file, columns=["row_id"])["row_id"] for file in files]
    return np.sort(np.concatenate([column.to_numpy() for column in ids]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--memory", default="2GiB", help="of each engine")
    parser.add_argument("--polars-python", help="a Python that has polars")
    parser.add_argument("--jobs", nargs="*")
    parser.add_argument("--only", help="one rule, see above", choices=ALONE)
    parser.add_argument("--keep", action="store_true", help="see above")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        JOBS[args.job](args)
        return
    if not args.keep:
        shutil.rmtree(args.workdir, ignore_errors=True)
    if not args.workdir.exists():
        generate(args.workdir / "raw", args.rows)
    ours = ["read", "ours-duckdb", "ours-spark"]
    reference = None
    for name in args.jobs or (ours if args.only else list(JOBS)):
        if name == "polars" and not args.polars_python:
            continue
        clear(args.workdir, name)
        result = measure(name, args)
        if name != "read":
            ids = kept_ids(args.workdir / name)
            reference = ids if reference is None else reference
            result["kept"] = len(ids)
            same = len(ids) == len(reference) and (ids == reference).all()
            result["same_ids"] = bool(same)
        print(json.dumps(result), flush=True)
    if not args.keep:
        shutil.rmtree(args.workdir)


if __name__ == "__main__":
    main()
