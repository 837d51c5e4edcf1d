"""What is launched on clusters can be read, and names commands that exist."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from align_keras.cli import make_parser
from align_keras.training import make_strategy
from align_keras.training.strategies import _tf_config

LAUNCH = Path(__file__).parents[2] / "examples" / "launch"
DOCS = LAUNCH.parents[1] / "docs" / "cluster.md"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def commands(text):
    """The commands of this package within a file."""
    text = re.sub(r"\\\n\s*", " ", text)
    for found in re.findall(r"align-keras (?:train|plan) --[^\n`]*", text):
        yield shlex.split(found)[1:]


@pytest.mark.parametrize(
    "path", [*SCRIPTS, LAUNCH / "kubernetes.yaml", DOCS], ids=lambda p: p.name
)
def test_commands_exist(path):
    found = list(commands(path.read_text()))
    assert found
    for words in found:
        args = make_parser().parse_args(words)
        assert args.preset == "align_b7_bert_base" and args.workdir


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_valid(path):
    subprocess.run(["bash", "-n", path], check=True)


def config_of(script, **environment):
    """Run a worker's script up to its command; the cluster it has made."""
    script = script.replace("exec align-keras", 'printf %s "$TF_CONFIG"; exit ')
    result = subprocess.run(
        ["bash", "-c", script.partition("exit ")[0]],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def test_each_pod_is_a_worker(monkeypatch):
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    assert service["metadata"]["name"] == pod["subdomain"]
    (container,) = pod["containers"]
    (workers,) = (e["value"] for e in container["env"])
    for index in range(spec["completions"]):
        config = config_of(
            container["args"][0],
            WORKERS=workers,
            JOB_COMPLETION_INDEX=str(index),
        )
        monkeypatch.setenv("TF_CONFIG", config)
        cluster = _tf_config()
        assert cluster["task"] == {"type": "worker", "index": index}
        names = [f"align-{n}.align:12345" for n in range(spec["completions"])]
        assert cluster["cluster"]["worker"] == names
    assert make_strategy("one-device").num_replicas_in_sync == 1


def run_slurm(folder, command, restarts=0):
    """Run the script of Slurm with a stand-in for the command."""
    nodes = "printf 'node0\\nnode1\\n'"
    for name, said in (
        ("scontrol", f'[ $1 = show ] && {nodes} || echo "$@"'),
        ("srun", '"$@"'),
        ("align-keras", command),
    ):
        (folder / name).write_text(f"#!/bin/bash\n{said}\n")
        (folder / name).chmod(0o755)
    return subprocess.run(
        ["bash", LAUNCH / "slurm.sh"],
        env={
            "PATH": f"{folder}:/usr/bin:/bin",
            "SLURM_JOB_NODELIST": "node[0-1]",
            "SLURM_JOB_ID": "42",
            "SLURM_PROCID": "1",
            **({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}),
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "status, restarts, ends, said",
    [
        (0, 0, 0, ""),
        (2, 0, 2, ""),
        (75, 0, 0, "requeue 42\n"),
        (75, 19, 0, "requeue 42\n"),
        (75, 20, 75, ""),
    ],
)
def test_slurm_starts_again_what_was_left_alone(
    tmp_path, status, restarts, ends, said
):
    result = run_slurm(tmp_path, f"exit {status}", restarts)
    assert (result.returncode, result.stdout) == (ends, said), result.stderr


def test_each_task_of_slurm_is_a_worker(tmp_path):
    result = run_slurm(tmp_path, 'printf %s "$TF_CONFIG"')
    config = json.loads(result.stdout)
    assert config["cluster"]["worker"] == ["node0:12345", "node1:12345"]
    assert config["task"]["index"] == 1


def test_extras_of_images_exist():
    settings = (LAUNCH.parents[1] / "setup.cfg").read_text()
    for path in LAUNCH.glob("Dockerfile.*"):
        (extras,) = re.findall(r'"\.\[(.*?)\]"', path.read_text())
        for extra in extras.split(","):
            assert f"\n{extra} =\n" in settings
