"""Strategies by name, and one clear sentence where there is no hardware."""

import json
from pathlib import Path
from types import SimpleNamespace

import keras
import pytest
from colors import write_images
from tiny_align import tiny_align

from align_keras.data import RecordFiles
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.training import load_recipe
from align_keras.training import make_strategy
from align_keras.training import strategies
from align_keras.training.inputs import make_dataset
from align_keras.training.processes import join_processes
from align_keras.training.reports import warn
from align_keras.training.strategies import has_tpu
from align_keras.training.strategies import hosts_of
from align_keras.training.strategies import worker_of

SCRIPT = Path(__file__).with_name("make_strategies.py")

tensorflow_only = pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="the strategies of TensorFlow",
)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("TF_CONFIG", "TPU_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def made():
    """What each strategy is where there are several CPU devices."""
    done = {}

    def make(run_script, backend, devices):
        if backend not in done:
            result = run_script(
                SCRIPT, devices, timeout=120, KERAS_BACKEND=backend
            )
            done[backend] = json.loads(result.stdout.splitlines()[-1])
        return done[backend]

    return make


def refusal(*args):
    with pytest.raises(ValueError) as caught:
        make_strategy(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_name_lists_the_known_ones():
    message = refusal("mirrord")
    assert "strategy='mirrord'" in message
    for name in ("auto", "one-device", "mirrored", "multi-worker", "tpu"):
        assert name in message


def test_one_device_is_one_replica():
    strategy = make_strategy("one-device")
    assert strategy.num_replicas_in_sync == 1
    assert worker_of(strategy) == (0, 1)
    with strategy.scope():
        assert keras.Variable(3.0).numpy() == 3.0


@tensorflow_only
def test_multi_worker_needs_a_cluster(monkeypatch):
    assert "needs the environment variable TF_CONFIG" in refusal("multi-worker")
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}}')
    assert "`task`" in refusal("multi-worker")
    for name in ("multi-worker", "auto"):
        monkeypatch.setenv("TF_CONFIG", "{cluster")
        assert "TF_CONFIG is not valid JSON" in refusal(name)


@tensorflow_only
def test_auto_takes_a_cluster_of_one_for_one_device(monkeypatch):
    config = {"cluster": {"worker": ["localhost:1"]}, "task": {"index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert make_strategy().num_replicas_in_sync == 1


CHIEF = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}


@tensorflow_only
@pytest.mark.parametrize(
    "cluster, kind, index",
    [
        (CHIEF, "chief", 0),
        (CHIEF, "worker", 0),
        (CHIEF, "worker", 1),
        ({"worker": ["a:1", "b:1"]}, "worker", 1),
        ({"chief": ["a:1"]}, "chief", 0),
    ],
)
def test_workers_are_numbered_as_tensorflow_does(cluster, kind, index):
    import tensorflow as tf
    from tensorflow.python.distribute import multi_worker_util

    class Worker(tf.distribute.MultiWorkerMirroredStrategy):
        """Without the connection, for which the others would have to run."""

        def __init__(self):
            pass

        cluster_resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(cluster), task_type=kind, task_id=index
        )

    assert worker_of(Worker()) == (
        multi_worker_util.id_in_cluster(cluster, kind, index),
        multi_worker_util.worker_count(cluster, kind),
    )


@tensorflow_only
def test_auto_joins_a_chief_and_its_worker(monkeypatch):
    """What does not train is refused, as it would train alone."""
    cluster = {"chief": ["a:1"], "worker": ["b:1"], "evaluator": ["c:1"]}
    for task in ({"type": "evaluator", "index": 0}, {"index": 0}):
        config = {"cluster": cluster, "task": task}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        for name in ("auto", "multi-worker"):
            assert repr(task.get("type")) in refusal(name)


def test_the_name_of_a_tpu_is_not_ignored():
    said = refusal("one-device", "grpc://127.0.0.1:1")
    assert "tpu='grpc://127.0.0.1:1', strategy='one-device'" in said
    assert "grpc://127.0.0.1:1" in refusal("auto", "grpc://127.0.0.1:1")


@tensorflow_only
def test_any_chip_is_tried(monkeypatch):
    """Later TPUs are not `/dev/accel0`."""
    monkeypatch.setattr(strategies, "has_tpu", lambda: True)
    for name in ("auto", "tpu"):
        assert "TPU_NAME='local'" in refusal(name)


@pytest.mark.multiprocess
def test_mirrored_takes_all_devices_of_one_kind(made, run_script):
    replicas = made(run_script, "tensorflow", 2)
    assert replicas["mirrored"] == 2
    assert replicas["one-device"] == 1
    # Cores of one CPU are not devices to spread over, unless asked.
    assert replicas["auto"] == 1


@pytest.mark.multiprocess
def test_no_tpu_is_one_sentence_and_no_hanging(made, run_script):
    said = made(run_script, "tensorflow", 2)
    for name in ("tpu", "dead tpu", "auto with TPU_NAME"):
        assert said[name].startswith("The strategy `tpu` found no TPU")
        assert "TPU_NAME" in said[name] and "\n" not in said[name]
    assert "grpc://127.0.0.1:1" in said["dead tpu"]


@pytest.mark.multiprocess
def test_jax_spreads_over_all_devices(made, run_script):
    said = made(run_script, "jax", 4)
    assert said["one-device"] == 1
    assert said["auto"] == said["mirrored"] == 4
    assert "belongs to the TensorFlow backend" in said["tpu"]
    assert said["left"] is None


def attach(root, device, vendor):
    """Make the files by which a device is found."""
    for path, text in (
        (f"dev/{device}", ""),
        ("dev/vfio/vfio", ""),
        ("sys/bus/pci/devices/0000:00:05.0/vendor", f"{vendor}\n"),
        ("sys/bus/pci/devices/0000:00:06.0/vendor", "0x8086\n"),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


@pytest.mark.parametrize(
    "device, vendor, found",
    [
        ("accel0", "0x8086", True),
        ("accel3", "0x8086", True),
        ("vfio/0", "0x1ae0", True),
        ("vfio/12", "0x1ae0", True),
        # A graphics card that was handed over, and no device at all.
        ("vfio/0", "0x10de", False),
        ("null", "0x1ae0", False),
    ],
)
def test_chips_are_found_by_their_devices(tmp_path, device, vendor, found):
    attach(tmp_path, device, vendor)
    assert has_tpu(tmp_path) is found


@tensorflow_only
def test_each_machine_of_a_slice_reads_its_part(tmp_path):
    """A stand-in for two machines, as there is no slice to test on."""
    write_images(tmp_path / "photos")
    pack(tmp_path / "photos", tmp_path / "packed", records_per_shard=4)
    records = open_records(str(tmp_path / "packed"))
    preprocessor = tiny_align().preprocessor
    recipe = load_recipe("small", batch_size=4, steps=2)

    class Slice:
        num_replicas_in_sync = 4
        extended = SimpleNamespace(num_hosts=2)

        def distribute_datasets_from_function(self, function):
            return [function(context(number)) for number in range(2)]

    def context(number):
        return SimpleNamespace(
            num_replicas_in_sync=4,
            num_input_pipelines=2,
            input_pipeline_id=number,
            get_per_replica_batch_size=lambda batch: batch // 4,
        )

    assert hosts_of(Slice()) == 2 and hosts_of(make_strategy("one-device")) == 1
    alone = SimpleNamespace(index=0, count=1)
    parts = make_dataset(records, preprocessor, recipe, 0, Slice(), alone)
    keys = [
        {
            batch["images"].tobytes()
            for batch in part.take(2).as_numpy_iterator()
        }
        for part in parts
    ]
    assert all(keys) and not keys[0] & keys[1]


def test_fewer_files_than_readers_are_told(caplog):
    records = RecordFiles(["a", "b"], {"a": 100, "b": 100})
    recipe = load_recipe("small", batch_size=4, steps=2)
    for readers, told in ((1, False), (2, False), (64, True)):
        caplog.clear()
        warn(recipe, records, "data", 1, readers)
        assert ("2 files cannot be shared out to 64" in caplog.text) is told


@pytest.mark.parametrize(
    "given, said",
    [
        ({"PROCESS_ID": "0"}, "JOB_ADDRESSES is missing; given: .*PROCESS_ID"),
        ({"JOB_ADDRESSES": "a:1,b:1"}, "PROCESS_ID is missing"),
        ({"JOB_ADDRESSES": "a:1", "PROCESS_ID": "0"}, "NUM_PROCESSES is mis"),
        (
            {
                "JOB_ADDRESSES": "a:1",
                "NUM_PROCESSES": "2",
                "PROCESS_ID": "2",
            },
            "process 2 of 2, 1 addresses",
        ),
        (
            {
                "JOB_ADDRESSES": "a:1,b:1,c:1",
                "NUM_PROCESSES": "2",
                "PROCESS_ID": "1",
            },
            "process 1 of 2, 3 addresses",
        ),
        (
            {
                "JOB_ADDRESSES": "a:1",
                "NUM_PROCESSES": "two",
                "PROCESS_ID": "1",
            },
            "whole numbers. Received: 'two'",
        ),
    ],
)
def test_processes_that_are_named_in_part(monkeypatch, given, said):
    pytest.importorskip("jax")
    for name, value in given.items():
        monkeypatch.setenv(f"KERAS_DISTRIBUTION_{name}", value)
    with pytest.raises(ValueError, match=said):
        join_processes()


def test_who_is_not_one_of_several_joins_nobody(monkeypatch):
    jax = pytest.importorskip("jax")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    join_processes()
    assert not jax.distributed.is_initialized()


def test_a_tpu_host_of_its_own_needs_no_others(monkeypatch):
    """A stand-in for a host whose metadata name nobody."""
    jax = pytest.importorskip("jax")

    def initialize(**arguments):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    join_processes(has_tpu=True)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="did not find one another"):
        join_processes()
