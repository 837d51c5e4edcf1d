"""Spark's executors embed like this process does, from a SavedModel."""

import numpy as np
import pyarrow.parquet
import pytest

from align_keras.embedding import embed
from align_keras.embedding import score
from align_keras.embedding.score_files import score_task

pytest.importorskip("pyspark")


@pytest.fixture(scope="module")
def spark():
    import shutil

    if shutil.which("java") is None:
        pytest.skip("Spark needs Java 17, and there is none")
    from align_keras.embedding.spark import make_session

    session = make_session("local[2]")
    yield session
    session.stop()


def vectors_of(rows):
    return {row["key"]: np.array(row["vector"], "float32") for row in rows}


@pytest.mark.multiprocess
def test_executors_give_the_models_vectors(
    library, spark, saved_model, dual_encoder, tmp_path
):
    from align_keras.embedding.spark import embed_dataframe
    from align_keras.embedding.spark import on_spark

    paths = [str(library.images / name) for name in library.names]
    expected = np.asarray(dual_encoder.encode_image(paths))
    output = tmp_path / "vectors"
    settings = {"batch_size": 8, "images_per_shard": 16}
    manifest = embed(
        library.images,
        output,
        saved_model,
        run_tasks=on_spark(spark),
        **settings,
    )
    assert (manifest["records"], manifest["skipped"]) == (30, 1)
    assert len(manifest["shards"]) == 2
    rows = []
    for path in sorted(output.glob("*.parquet")):
        rows += pyarrow.parquet.read_table(path).to_pylist()
    assert [row["key"] for row in rows] == library.names
    found = np.array([row["vector"] for row in rows], "float32")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)

    output = tmp_path / "scores"
    run_tasks = on_spark(spark, score_task)
    score(library.images, output, saved_model, run_tasks=run_tasks)
    (path,) = output.glob("*.parquet")
    scored = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["key"] for row in scored] == ["02.jpg", "02.jpg"]
    texts = dual_encoder.encode_text([row["text"] for row in scored])
    cosines = np.asarray(texts) @ expected[library.names.index("02.jpg")]
    np.testing.assert_allclose(
        [row["score"] for row in scored], cosines, rtol=0, atol=1e-5
    )

    files = spark.read.format("binaryFile").load(str(library.images))
    files = files.selectExpr("path as key", "content as image")
    frame = embed_dataframe(
        files, saved_model, dim=expected.shape[1], batch_size=8
    )
    by_name = dict(zip(library.names, expected, strict=True))
    rows = frame.collect()
    # Those in the folder itself; the broken one is left out.
    assert len(rows) == 15
    for row in rows:
        name = row["key"].rsplit("/", 1)[1]
        np.testing.assert_allclose(
            row["vector"], by_name[name], rtol=0, atol=1e-5
        )
