"""`onebase submit`: what is rendered, checked by whatever reads it, and what is handed over."""

from __future__ import annotations

import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import onebase
from onebase.cli.main import main
from onebase.config.verbs import VERB_CONFIGS
from onebase.submitting import render as rendering
from onebase.submitting.job import Job, Mount, To
from onebase.submitting.render import render

GOLDEN = Path(__file__).parent / "golden"
ELSEWHERE: tuple[To, ...] = ("slurm", "skypilot", "sagemaker", "kubernetes", "ray")
CONFIG = "output_dir: /runs/ppo\nmodel:\n  quantization: nf4\n"
BUCKET = Mount("s3://bucket/runs", "/opt/ml/checkpoints")
JOBS: dict[To, Job] = {
    "slurm": Job("ppo", CONFIG, "onebase-ppo", 2, 4, True, "gpu"),
    "skypilot": Job("ppo", CONFIG, "onebase-ppo", 2, 4, True, "H100", mounts=(Mount("s3://bucket", "/runs"),)),
    "sagemaker": Job("ppo", CONFIG, "onebase-ppo", 1, 4, True, "ml.g5.12xlarge", "host/onebase:1", (BUCKET,)),
    "kubernetes": Job("ppo", CONFIG, "onebase-ppo", 2, 4, True, "h100", "host/onebase:1", (Mount("claim", "/runs"),)),
    "ray": Job("ppo", CONFIG, "onebase-ppo", 2, 4, True),
}
WITH_MORE: dict[str, object] = {
    "secrets": ("HF_TOKEN",),
    "environment": (("GREETING", """it's "A" $B"""),),
    "price_per_hour": 2.5,
    "hours": 8,
}


def the_job(to: To, **more: object) -> Job:
    fields = {name: getattr(JOBS[to], name) for name in Job.__dataclass_fields__}
    return Job(**{**fields, **WITH_MORE, **more})


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions that do not change with what is installed."""
    monkeypatch.setattr(rendering, "source", lambda: None)
    monkeypatch.setattr(rendering, "constraints", lambda extras: f"torch==2.13.0\n# {extras}\n")
    monkeypatch.setattr(rendering, "PYTHON", "3.12")
    monkeypatch.setattr(rendering, "WHEEL", "onebase-1.0.0-py3-none-any.whl")
    monkeypatch.setattr(onebase, "__version__", "1.0.0")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed: None) -> Path:
    """The folder of the files, two below the one that commands are run in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs" / "ppo").mkdir(parents=True)
    return tmp_path / "jobs" / "ppo"


def written(job: Job, to: To, place: Path) -> dict[str, str]:
    files = {file.name: file.text for file in render(job, to, place)}
    for name, text in files.items():
        (place / name).write_text(text)
    return files


@pytest.mark.parametrize("to", ELSEWHERE)
def test_the_files_are_those_that_were_looked_at(to: To, place: Path) -> None:
    """To accept a change, look at the difference, then copy what was rendered over the golden file."""
    files = written(the_job(to), to, place)
    golden = {path.name.removesuffix(".golden"): path.read_text() for path in (GOLDEN / to).iterdir()}
    assert files == golden, f"rendered in {place}"


@pytest.mark.parametrize("to", ELSEWHERE)
def test_no_file_and_no_line_holds_the_value_of_a_secret(to: To, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf-not-to-be-seen")
    files = written(the_job(to), to, place)
    assert not [name for name, text in files.items() if "not-to-be-seen" in text]
    assert any("HF_TOKEN" in text for text in files.values())


@pytest.mark.parametrize("to", ELSEWHERE)
def test_the_commands_can_be_pasted_into_a_shell_and_end_with_deleting(to: To, place: Path) -> None:
    commands = written(the_job(to), to, place)["COMMANDS.txt"]
    subprocess.run(["bash", "-n", "-c", commands], check=True)
    assert commands.index("# Create") < commands.index("# Watch") < commands.index("# Delete")
    nodes = JOBS[to].nodes
    assert f"# {nodes} machine{'s'[: nodes > 1]} at 2.5 an hour, 8 hours: {20 * nodes:.2f}, if it takes" in commands
    assert "# 1 machine at 2.5 an hour: 2.50 an hour, until" in next(
        file.text for file in render(the_job(to, nodes=1, hours=None), to, place) if file.name == "COMMANDS.txt"
    )
    free = written(the_job(to, price_per_hour=None), to, place)["COMMANDS.txt"]
    assert "an hour," not in free


# ------------------------------------------------------------------------------------------- their own readers


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("more", [{}, {"image": "host/onebase:1", "mounts": (Mount("/data", "/data"),)}, {"nodes": 1}])
def test_shellcheck_finds_nothing_in_the_slurm_script(place: Path, more: dict[str, object]) -> None:
    written(the_job("slurm", allow_code_execution=True, **more), "slurm", place)
    found = subprocess.run(["shellcheck", place / "job.sbatch"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


KUBERNETES = os.environ.get("KUBERNETES_VALIDATE_PYTHON", "")
SKYPILOT = os.environ.get("SKYPILOT_PYTHON", "")
SAGEMAKER = os.environ.get("SAGEMAKER_PYTHON", "")


@pytest.mark.skipif(not KUBERNETES, reason="KUBERNETES_VALIDATE_PYTHON names no python with kubernetes-validate")
@pytest.mark.parametrize("more", [{}, {"secrets": (), "environment": ()}, {"gpus": False, "machine": None, "nodes": 1}])
def test_kubernetes_own_schema_takes_the_job(place: Path, more: dict[str, object]) -> None:
    written(the_job("kubernetes", **more), "kubernetes", place)
    command = [KUBERNETES, "-m", "kubernetes_validate", "--strict", place / "job.yaml"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.count(" passed ") == 2, found.stdout + found.stderr


@pytest.mark.skipif(not SKYPILOT, reason="SKYPILOT_PYTHON names no python with skypilot")
@pytest.mark.parametrize("more", [{}, {"image": "host/onebase:1", "secrets": (), "environment": ()}])
def test_skypilot_reads_the_task(place: Path, more: dict[str, object], tmp_path: Path) -> None:
    files = written(the_job("skypilot", **more), "skypilot", place)
    for name in re.findall(r"\./(\S+\.whl)", files["job.sky.yaml"]):
        (place / name).touch()
    program = (
        "import sky; t = sky.Task.from_yaml('job.sky.yaml'); r = t.resources.copy().pop()\n"
        "print(t.num_nodes, r.accelerators, r.use_spot, r.job_recovery['recover_on_exit_codes'])"
    )
    found = subprocess.run(
        [SKYPILOT, "-c", program], cwd=place, env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert found.stdout.split("\n")[-2] == "2 {'H100': 4} True [75]", found.stdout + found.stderr


SENDS_NOTHING = """
import datetime, json, os, pathlib, runpy, sys
os.environ.update(AWS_DEFAULT_REGION="eu-central-1", AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="y")
settings = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"RemoteFunction": {
    "RoleArn": "arn:aws:iam::123456789012:role/r", "S3RootUri": "s3://bucket/root"}}}}}
pathlib.Path("settings.yaml").write_text(json.dumps(settings))
os.environ["SAGEMAKER_USER_CONFIG_OVERRIDE"] = os.path.abspath("settings.yaml")
from botocore.client import BaseClient
class Sent(BaseException): pass
def answer(self, name, arguments):
    if name == "CreateTrainingJob":
        print(json.dumps(arguments))
        raise Sent
    bucket = {"Name": "sagemaker-eu-central-1-123456789012", "CreationDate": datetime.datetime(2026, 1, 1)}
    who = {"Account": "123456789012", "Arn": "arn:aws:iam::123456789012:user/u"}
    return {"ListBuckets": {"Buckets": [bucket]}, "GetCallerIdentity": who}.get(name, {})
BaseClient._make_api_call = answer
sys.argv = ["job.py"]
try:
    runpy.run_path("job.py", run_name="__main__")
except Sent:
    pass
"""


@pytest.mark.slow
@pytest.mark.skipif(not SAGEMAKER, reason="SAGEMAKER_PYTHON names no python with the SageMaker SDK")
@pytest.mark.parametrize("processes", [1, 4])
def test_the_sagemaker_sdk_asks_for_the_job(place: Path, processes: int) -> None:
    """The SDK itself, up to the request that would cost money; only AWS's answers are made up."""
    written(the_job("sagemaker", processes=processes), "sagemaker", place)
    found = subprocess.run([SAGEMAKER, "-c", SENDS_NOTHING], cwd=place, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    asked = json.loads(found.stdout.splitlines()[-1])  # version 2 prints what it read its settings from before
    assert asked["ResourceConfig"]["InstanceType"] == "ml.g5.12xlarge" and asked["ResourceConfig"]["InstanceCount"] == 1
    assert asked["AlgorithmSpecification"]["TrainingImage"] == "host/onebase:1"
    assert asked["CheckpointConfig"] == {"LocalPath": "/opt/ml/checkpoints/", "S3Uri": "s3://bucket/runs"}
    assert asked["EnableManagedSpotTraining"] and "HF_TOKEN" not in asked["Environment"]
    arguments = asked["AlgorithmSpecification"]["ContainerArguments"]
    assert ("torchrun" in arguments) == (processes > 1)
    if processes > 1:
        assert arguments[arguments.index("--user_nproc_per_node") + 1] == "4"


OF_VERSION_2 = """
import json, sys
class CheckpointLocation:
    def __init__(self, uri): self.uri = uri
def remote(**options):
    print(json.dumps(options), file=sys.stderr)
    codes = [75, 75, 0]
    def decorated(function):
        def called(config, folder, secrets):
            print(json.dumps([config, folder.uri, secrets]))
            return codes.pop(0)
        return called
    return decorated
"""


def test_the_older_sdk_is_found_and_a_job_that_saved_is_started_again(place: Path) -> None:
    written(the_job("sagemaker"), "sagemaker", place)
    py_compile.compile(str(place / "job.py"), doraise=True)
    package = place / "older" / "sagemaker" / "remote_function"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text(OF_VERSION_2)
    environment = {**os.environ, "PYTHONPATH": str(place / "older")}
    done = subprocess.run([sys.executable, "job.py"], cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    starts = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert starts == [[CONFIG, "s3://bucket/runs", ["HF_TOKEN"]]] * 3
    assert json.loads(done.stderr)["nproc_per_node"] == 4


def test_the_slurm_script_asks_for_another_start_after_75_alone(place: Path) -> None:
    """Run by bash, with programs in place of Slurm's that say what they were asked."""
    written(the_job("slurm"), "slurm", place)
    programs = place / "bin"
    programs.mkdir()
    for name, script in {
        "scontrol": '[ "$1" = show ] && printf "a1\\na2\\n"; echo "scontrol $*" >> "$LOG"',
        "srun": 'echo "srun $*" >> "$LOG"; exit "$CODE"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    for code, again in (("75", True), ("0", False), ("3", False)):
        log = place / f"log{code}"
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "LOG": str(log),
            "CODE": code,
            "HF_TOKEN": "t",
            "SLURM_JOB_ID": "20017",
            "SLURM_JOB_NODELIST": "a[1-2]",
            "SLURM_SUBMIT_DIR": str(place),
        }
        done = subprocess.run(["bash", place / "job.sbatch"], env=environment, capture_output=True, text=True)
        assert done.returncode == int(code), done.stderr
        lines = log.read_text().splitlines()
        assert ("scontrol requeue 20017" in lines) == again
        assert "--machines 2 --processes 4 --meet a1:20017" in lines[1]
        assert f" ppo {place}/config.yaml" in lines[1]
    del environment["HF_TOKEN"]
    done = subprocess.run(["bash", place / "job.sbatch"], env=environment, capture_output=True, text=True)
    assert done.returncode not in (0, 75) and "HF_TOKEN is not set; export it before sbatch" in done.stderr


# ------------------------------------------------------------------------------------------ the command line

K8S = ("--image", "host/onebase:1", "--mount", "claim:/work")


def failing(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    capsys.readouterr()
    assert main(["submit", *words]) == code
    error = capsys.readouterr().err
    return error[error.index("error: ") :].strip().removeprefix("error: ")


def test_files_are_shown_written_and_replaced_only_by_force(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "--to", "slurm", "sft", "sft.yaml", "--max_steps", "3", "--into", "job", "--nodes", "2"]
    before = sorted(path.name for path in work.iterdir())
    assert main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 files for job; without --dry-run they are written\n") and "sbatch job.sbatch" in out
    assert sorted(path.name for path in work.iterdir()) == before
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("3 files in job\n")
    config = yaml.safe_load((work / "job" / "config.yaml").read_text())
    assert config["max_steps"] == 3 and config["model"]["chat_template"] == "plain"
    (work / "job" / "job.sbatch").write_text("mine\n")
    assert failing(capsys, *words[1:]).startswith("job: job.sbatch is there with other contents; add --force")
    assert main([*words, "--force"]) == 0
    assert "--machines 2" in (work / "job" / "job.sbatch").read_text()


def test_a_run_that_would_be_lost_is_said(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "sft", "sft.yaml", "--dry-run", "--into", "job"]
    for more, said in (
        (["--to", "kubernetes", *K8S], False),
        (["--to", "kubernetes", *K8S, "--output_dir", "/elsewhere"], True),
        (["--to", "skypilot"], True),
        (["--to", "skypilot", "--mount", "s3://b:/runs", "--output_dir", "/runs/sft"], False),
        (["--to", "slurm"], False),
    ):
        assert main([*words, *more]) == 0
        assert ("is below no mount: what is there is gone" in capsys.readouterr().err) == said, more


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("score --to slurm", "score is no verb that leaves a run; those are pretrain, sft, reward, dpo, best-of"),
        ("sft sft.yaml --to slurm", "--into is missing; name a folder for the files"),
        ("sft sft.yaml --to slurm --into sft.yaml", "sft.yaml is a file; name a folder with --into"),
        ("sft sft.yaml --to slurm --into job --go --dry-run", "--go creates the job and --dry-run writes nothing; "),
        ("sft sft.yaml --to slurm --into job --nodes 0", "--nodes is 0; it should be at least 1"),
        ("sft sft.yaml --to slurm --into job --processes-per-node 0", "--processes-per-node is 0; it should be"),
        ("sft sft.yaml --to local --nodes 2", "--nodes is 2, but local starts one machine; leave it out, or"),
        ("sft sft.yaml --to slurm --into job --name Über", "--name is Über; write at most 40 small letters, digits"),
        ("sft sft.yaml --to ray --into job --machine H100", "--machine: ray takes none; leave it out"),
        ("sft sft.yaml --to slurm --into job --machine $(x)", "--machine is $(x); it should be a partition"),
        ("sft sft.yaml --to skypilot --into job --gpus", "--gpus: skypilot rents GPUs by their name; add --machine"),
        ("sft sft.yaml --to skypilot --into job --machine H100", "--machine is a GPU there; add --gpus"),
        ("sft sft.yaml --to kubernetes --into job", "--image is missing; kubernetes needs a container's image with"),
        ("sft sft.yaml --to kubernetes --into job --image i", "--mount is missing: a persistent volume claim, then a"),
        ("sft sft.yaml --to sagemaker --into job", "--machine is missing; sagemaker needs an instance type, as in "),
        (
            "sft sft.yaml --to sagemaker --into job --machine ml.x --image i --mount s3://b:/data",
            "--mount: sagemaker mounts one folder, /opt/ml/checkpoints; name it after the place in S3",
        ),
        ("sft sft.yaml --to ray --into job --mount a:/b", "--mount: ray mounts nothing; leave it out"),
        ("sft sft.yaml --to slurm --into job --mount a:/b", "--mount: without --image a Slurm job sees the cluster's"),
        ("sft sft.yaml --to slurm --into job --mount here", "--mount is here; write what is mounted, a colon and the"),
        ("sft sft.yaml --to slurm --into job --mount a;b:/c", "--mount: a;b has characters that no place takes"),
        ("sft sft.yaml --to slurm --into job --mount a:/b --mount c:/b", "--mount: /b is named twice; name it once"),
        ("sft sft.yaml --to slurm --into job --env A", "--env is A; write NAME=VALUE"),
        ("sft sft.yaml --to slurm --into job --env A=1 --env A=2", "--env A is given twice; give it once"),
        (
            "sft sft.yaml --to slurm --into job --env HF_TOKEN=hf",
            "--env HF_TOKEN: its value would be in the files; name it with --secret HF_TOKEN, without the value",
        ),
        ("sft sft.yaml --to slurm --into job --secret A=b", "--secret is A=...; name the variable alone: its value"),
        ("sft sft.yaml --to slurm --into job --hours 0", "--hours is 0; it should be above 0, or left out"),
        ("sft sft.yaml --to slurm --into job --price-per-hour -1", "--price-per-hour is -1; it should be above 0"),
        ("sft sft.yaml --to slurm --into job --max_step 1", "command line: 'max_step' is unknown; did you mean"),
        ("sft none.yaml --to slurm --into job", "no config file 'none.yaml'; did you mean 'sft.yaml'?"),
    ],
)
def test_what_a_place_cannot_do_is_one_line(
    work: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert failing(capsys, *words.split()).startswith(message)
    assert not (work / "job").exists()


def test_a_line_break_in_a_variable_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = failing(capsys, "sft", "sft.yaml", "--to", "slurm", "--into", "job", "--env", "A=1\n#SBATCH")
    assert said == "--env A: the value has a line break or a control character; take it out"


def test_the_config_itself_is_not_replaced(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("sft.yaml", "config.yaml")
    said = failing(capsys, "sft", "config.yaml", "--to", "slurm", "--into", ".", "--force")
    assert said == "config.yaml would be replaced by the resolved one; name another folder with --into"


def test_a_run_that_waits_for_a_person_is_not_submitted(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--reward.callable", "tests.recipes.conftest:count_vowels", "--on_finding", "pause"]
    more += ["--evaluation.every_steps", "1", "--output_dir", "runs/x"]
    more += ["--model.model_name_or_path", "base", "--model.chat_template", "plain", "--data.train", "rows.jsonl"]
    said = failing(capsys, "ppo", "--to", "slurm", "--into", "job", *more)
    assert said.startswith("on_finding is pause, which waits for a person, but a job that stops is started again; set ")


def test_no_option_is_also_a_key_of_a_verb() -> None:
    """Else an override could not be given."""
    options = {"to", "into", "name", "nodes", "processes_per_node", "gpus", "machine", "image", "mount", "env"}
    options |= {"secret", "price_per_hour", "hours", "go", "dry_run", "force"}
    assert not {key for config in VERB_CONFIGS.values() for key in config.model_fields} & options


# ---------------------------------------------------------------------------------------------- handing over


def test_without_the_client_it_says_what_to_install(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(work))
    monkeypatch.setattr(rendering, "find_spec", lambda name: None)
    for to, more, said in (
        ("slurm", (), "sbatch is not installed, which would take this job: run this on a machine of the cluster"),
        ("skypilot", (), "sky is not installed, which would take this job: pip install skypilot; or take the files"),
        ("kubernetes", K8S, "kubectl is not installed, which would take this job: see https://kubernetes.io/docs/"),
        ("ray", (), 'ray is not installed, which would take this job: pip install "onebase[ray]"; or take the files'),
    ):
        assert failing(capsys, "sft", "sft.yaml", "--to", to, "--into", "job", "--go", *more, code=6).startswith(said)
    assert not (work / "job").exists()


def test_go_runs_the_client_in_the_folder_of_the_files_and_keeps_its_failure(
    work: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = work / "bin" / "sbatch"
    client.parent.mkdir()
    refuses = '[ "$HF_TOKEN" = refuse ] && { echo no such partition >&2; exit 7; }'
    client.write_text(f'#!/bin/sh\necho "$PWD $*"\n{refuses}\nexit 0\n')
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}:{os.environ['PATH']}")
    words = ["sft", "sft.yaml", "--to", "slurm", "--into", "job", "--go", "--secret", "HF_TOKEN"]
    monkeypatch.delenv("HF_TOKEN", raising=False)
    said = "--secret HF_TOKEN: it is not in the environment, where the job finds it; export it"
    assert main(["submit", *words]) == 2 and said in capfd.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "t")
    assert main(["submit", *words]) == 0
    assert f"{work / 'job'} job.sbatch\n" in capfd.readouterr().out
    monkeypatch.setenv("HF_TOKEN", "refuse")
    assert main(["submit", *words]) == 7
    error = capfd.readouterr().err
    assert "no such partition" in error
    assert "error: sbatch job.sbatch ended with exit code 7; its own lines are above" in error
