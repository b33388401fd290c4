"""`onebase deploy render`: every file parsed by its own parser, names that need quotes, and nothing overwritten."""

from __future__ import annotations

import json
import os
import py_compile
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

import onebase
from onebase.cli.main import main
from onebase.config.files import load_config
from onebase.config.serving import ServeConfig
from onebase.deploying import versions
from onebase.deploying.render import COMMANDS, PLACES, Target, render
from onebase.deploying.service import read_service, way
from onebase.deploying.versions import WHEEL, constraints
from onebase.errors import ConfigError
from onebase.files import write_atomically
from onebase.models.role_card import ADAPTER_FILE, CARD_FILE, RoleCard

AWKWARD = """it's a "run" $HOME `id` # ü"""
ROOT = Path(__file__).resolve().parents[2]
TARGETS: tuple[Target, ...] = ("docker", "systemd", "skypilot", "sagemaker")


def write_role(folder: Path, kind: str, base: Path, quantization: str = "none") -> Path:
    """A role's folder as far as rendering reads it: its card, and that its files are there."""
    folder.mkdir(parents=True)
    card = RoleCard.model_validate(
        {
            "kind": kind,
            "base": str(base),
            "base_fingerprint": "a",
            "tokenizer_fingerprint": "b",
            "quantization": quantization,
        }
    )
    (folder / CARD_FILE).write_text(card.model_dump_json())
    for name in ("adapter_config.json", ADAPTER_FILE):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a base, two roles and serve.yaml, below a name full of characters with a meaning."""
    folder = tmp_path / AWKWARD
    (folder / "base").mkdir(parents=True)
    (folder / "base" / "config.json").write_text("{}")
    write_role(folder / "runs" / "dpo's $A" / "policy", "policy", folder / "base")
    write_role(folder / "runs" / "rm" / "reward", "reward", folder / "base")
    (folder / "serve.yaml").write_text(
        "roles:\n"
        """  judge: runs/rm/reward\n"""
        """  helpful: {role: "runs/dpo's $A/policy", temperature: 0.7, system: "Say \\"it's $5\\": {{ 1 }}\\n#no"}\n"""
        "limits: {seconds: 90.5}\n"
    )
    monkeypatch.chdir(folder)
    return folder


def rendered(work: Path, target: Target, more: str = "") -> dict[str, str]:
    (work / "other.yaml").write_text((work / "serve.yaml").read_text() + more)
    config = load_config(ServeConfig, work / "other.yaml")
    into = work / "out put"
    return {file.name: file.text for file in render(read_service(config, into), target, into)}


def written(work: Path, target: Target, more: str = "") -> Path:
    into = work / "out put"
    for name, text in rendered(work, target, more).items():
        write_atomically(into / name, text)
    return into


def failing(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    capsys.readouterr()
    assert main(["deploy", "render", *words]) == code
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("error: "), said.err
    return said.err.removeprefix("error: ").strip()


@pytest.mark.parametrize("target", TARGETS)
def test_the_config_there_names_the_folders_there(target: Target, work: Path) -> None:
    files = rendered(work, target)
    (work / "there.yaml").write_text(files["serve.yaml"])
    there = load_config(ServeConfig, work / "there.yaml")
    here = load_config(ServeConfig, work / "serve.yaml")
    models = PurePosixPath(PLACES[target].models)
    assert there.model == str(models / "base")
    assert {name: role.role for name, role in there.roles.items()} == {
        "judge": str(models / "roles/judge"),
        "helpful": str(models / "roles/helpful"),
    }
    assert "top_p" not in files["serve.yaml"] and there.roles["judge"].samples_as_usual
    assert there.roles["helpful"].system == here.roles["helpful"].system == 'Say "it\'s $5": {{ 1 }}\n#no'
    assert there.limits == here.limits
    assert there.port == (8080 if target == "sagemaker" else 8000)
    assert there.host == ("127.0.0.1" if target == "systemd" else "0.0.0.0")


def test_compose_mounts_every_folder_by_a_relative_path(work: Path) -> None:
    into = written(work, "docker")
    compose = yaml.safe_load((into / "compose.yaml").read_text())
    (service,) = compose["services"].values()
    places = {}
    for volume in service["volumes"]:
        assert volume["type"] == "bind" and volume["read_only"] and volume["source"].startswith((".", ".."))
        source = into / volume["source"].replace("$$", "$")  # compose puts variables in for single ones
        assert source.exists() and "$" not in volume["source"].replace("$$", "")
        places[volume["target"]] = source.resolve()
    assert places == {
        "/srv/onebase/serve.yaml": into / "serve.yaml",
        "/srv/onebase/base": work / "base",
        "/srv/onebase/roles/helpful": work / "runs/dpo's $A/policy",
        "/srv/onebase/roles/judge": work / "runs/rm/reward",
    }
    assert service["ports"] == [{"target": 8000, "published": "8000", "host_ip": "127.0.0.1"}]
    assert service["stop_grace_period"] == "121s"
    assert service["environment"]["ONEBASE_API_KEY"].startswith("${ONEBASE_API_KEY:?")
    assert "deploy" not in service and "volumes" not in compose
    public = yaml.safe_load(rendered(work, "docker", "host: 0.0.0.0\nport: 9000\ndevice: cuda\n")["compose.yaml"])
    assert public["services"]["serve"]["ports"] == [{"target": 9000, "published": "9000", "host_ip": "0.0.0.0"}]
    (device,) = public["services"]["serve"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_the_image_runs_the_wheel_as_another_user_than_root(work: Path) -> None:
    files = rendered(work, "docker")
    dockerfile = files["Dockerfile"].splitlines()
    assert f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim" in dockerfile
    assert "USER 10001" in dockerfile
    (entry,) = [line for line in dockerfile if line.startswith("ENTRYPOINT ")]
    assert json.loads(entry.removeprefix("ENTRYPOINT ")) == ["onebase", "serve", "--config", "/srv/onebase/serve.yaml"]
    (copied,) = [line.split()[1:-1] for line in dockerfile if line.startswith("COPY ")]
    kept = [line[1:] for line in files[".dockerignore"].splitlines() if line.startswith("!")]
    assert copied == kept == ["constraints.txt", WHEEL]
    assert "whl/cpu torch==" in files["Dockerfile"] and "gcc" not in files["Dockerfile"]
    gpu = rendered(work, "docker", "device: cuda\n")["Dockerfile"]
    assert "whl/cpu" not in gpu and "gcc" in gpu


def test_ways_from_one_folder_to_another_begin_with_a_dot(tmp_path: Path) -> None:
    assert way(tmp_path / "-f" / "g", tmp_path) == "./-f/g"
    assert way(tmp_path, tmp_path / "a" / "b") == "../.."
    assert way(tmp_path / "..c", tmp_path) == "./..c"
    (tmp_path / "link").symlink_to(tmp_path / "-f")
    assert way(tmp_path / "link" / "g", tmp_path) == "./-f/g"


def test_a_server_on_any_free_port_gets_a_known_one_there(work: Path) -> None:
    files = rendered(work, "docker", "port: 0\nhost: localhost\n")
    assert yaml.safe_load(files["serve.yaml"])["port"] == 8000
    (port,) = yaml.safe_load(files["compose.yaml"])["services"]["serve"]["ports"]
    assert port == {"target": 8000, "published": "8000", "host_ip": "127.0.0.1"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_systemd_takes_the_unit_and_calls_it_well_guarded(work: Path, device: str) -> None:
    unit = written(work, "systemd", f"device: {device}\n") / "onebase.service"
    # It checks that the program is there, which is so only after install.sh.
    text = unit.read_text()
    assert "ExecStart=/opt/onebase/venv/bin/onebase serve --config /opt/onebase/serve.yaml\n" in text
    unit.write_text(text.replace("/opt/onebase/venv/bin/onebase", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit.name], cwd=unit.parent, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit.name]
    rated = subprocess.run(words, cwd=unit.parent, capture_output=True, text=True)
    assert rated.returncode == 0, rated.stdout.splitlines()[-1]  # 2.5 of 10, where 10 is unguarded
    assert "TimeoutStopSec=121\n" in text
    assert ("PrivateDevices=yes" in text) == (device == "cpu") and ("char-nvidia" in text) == (device == "cuda")


def test_the_shell_scripts_read_and_copy_the_right_folders(work: Path) -> None:
    into = written(work, "systemd")
    for name in ("install.sh", "remove.sh"):
        subprocess.run(["sh", "-n", name], cwd=into, check=True)
    there = into / "there"
    (there / "roles").mkdir(parents=True)
    copies = [line for line in (into / "install.sh").read_text().splitlines() if line.startswith("cp ")]
    for line in copies:
        subprocess.run(["sh", "-c", line.replace("/opt/onebase/models.new/", "there/")], cwd=into, check=True)
    assert len(copies) == 3 and (there / "base" / "config.json").is_file()
    assert json.loads((there / "roles" / "judge" / CARD_FILE).read_text())["kind"] == "reward"
    assert json.loads((there / "roles" / "helpful" / CARD_FILE).read_text())["kind"] == "policy"


def test_skypilot_sends_the_folders_and_requires_the_key(work: Path) -> None:
    into = written(work, "skypilot")
    task = yaml.safe_load((into / "sky.yaml").read_text())
    assert task["secrets"] == {"ONEBASE_API_KEY": None} and task["resources"]["ports"] == 8000
    sent = {place: (into / source).resolve() for place, source in task["file_mounts"].items()}
    assert sent == {
        "~/onebase/serve.yaml": into / "serve.yaml",
        "~/onebase/constraints.txt": into / "constraints.txt",
        f"~/onebase/{WHEEL}": into / WHEEL,
        "~/onebase/base": work / "base",
        "~/onebase/roles/judge": work / "runs/rm/reward",
        "~/onebase/roles/helpful": work / "runs/dpo's $A/policy",
    }
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", task[part]], check=True)
    assert "accelerators" not in task["resources"]
    assert yaml.safe_load(rendered(work, "skypilot", "device: cuda:0\n")["sky.yaml"])["resources"]["accelerators"]


def test_package_py_writes_the_layout_that_the_config_there_reads(work: Path) -> None:
    into = written(work, "sagemaker")
    for name in ("adapter.py", "package.py", "endpoint.py"):
        py_compile.compile(str(into / name), doraise=True)
    subprocess.run([sys.executable, into / "package.py"], check=True, capture_output=True, cwd=work)
    with tarfile.open(into / "model.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"serve.yaml", "base/config.json", f"roles/helpful/{CARD_FILE}", f"roles/judge/{ADAPTER_FILE}"} <= names
    assert not (into / "model.tar.gz.part").exists()


@pytest.mark.parametrize("target", TARGETS)
def test_the_commands_can_be_pasted_into_a_shell_and_end_with_deleting(target: Target, work: Path) -> None:
    commands = rendered(work, target)[COMMANDS]
    subprocess.run(["bash", "-n", "-c", commands], check=True)
    (wheel,) = [line for line in commands.splitlines() if line.startswith("pip wheel ")]
    assert (work / "out put" / shlex.split(wheel)[-1]).resolve() == ROOT
    assert commands.index("# Create") < commands.index("# Try") < commands.index("# Delete")
    assert '"model": "helpful"' in commands


def test_a_price_is_said_only_if_it_was_given(work: Path) -> None:
    assert "aws.amazon.com/sagemaker/ai/pricing" in rendered(work, "sagemaker")[COMMANDS]
    for target in TARGETS:
        said = rendered(work, target, "price_per_hour: 1.25\n")[COMMANDS]
        assert "1.25 an hour (price_per_hour in serve.yaml) is 30.00 a day" in said and "pricing" not in said
    assert "price" not in rendered(work, "docker")[COMMANDS]


def test_the_versions_are_those_that_are_installed() -> None:
    lines = constraints("quant").splitlines()
    found = dict(line.split("==") for line in lines)
    assert list(found) == sorted(found) and "onebase" not in found
    assert {"torch", "bitsandbytes", "pydantic", "jinja2"} <= set(found)
    assert not {"pytest", "pyarrow", "pre-commit"} & set(found)
    assert all("+" not in version for version in found.values())


def test_without_an_installation_the_versions_are_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "PACKAGE", "onebase-elsewhere")
    with pytest.raises(ConfigError, match="^onebase is not installed here, .*; install it with pip, and render again$"):
        constraints("serve")


def test_a_role_in_four_bits_brings_the_extra_it_needs(work: Path) -> None:
    assert f"{WHEEL}[serve]" in rendered(work, "docker")["Dockerfile"]
    write_role(work / "nf4", "policy", work / "base", quantization="nf4")
    (work / "serve.yaml").write_text("roles: {small: nf4}\n")
    assert f"{WHEEL}[serve,quant]" in rendered(work, "docker")["Dockerfile"]


def test_a_base_from_the_hub_is_fetched_there(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = work / "hub" / "models--some--model" / "snapshots" / "1"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}")
    refs = work / "hub" / "models--some--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(work / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(work / "hub"), raising=False)
    files = rendered(work, "docker", "model: some/model\n")
    compose = yaml.safe_load(files["compose.yaml"])
    assert yaml.safe_load(files["serve.yaml"])["model"] == "some/model"
    assert compose["volumes"] == {"downloads": None}
    assert "HF_HUB_OFFLINE" not in compose["services"]["serve"]["environment"]
    assert "HF_HUB_OFFLINE" not in rendered(work, "systemd", "model: some/model\n")["onebase.service"]


def test_without_write_nothing_is_written_and_everything_is_shown(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(work.rglob("*"))
    for words in ([], ["--dry-run"]):
        assert main(["deploy", "render", "serve.yaml", "--target", "docker", "--into", "out", *words]) == 0
        out = capsys.readouterr().out
        assert out.startswith("6 files for out; --write writes them\n")
        assert "\nDockerfile  " in out and " bytes, new\n    # The server, without weights" in out
        assert "docker compose up" in out and "docker compose down" in out
    assert sorted(work.rglob("*")) == before


def test_a_file_with_other_contents_is_replaced_only_with_force(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("serve.yaml", "--target", "docker", "--into", "out")
    assert main(["deploy", "render", *words, "--write"]) == 0
    capsys.readouterr()
    assert main(["deploy", "render", *words, "--write"]) == 0
    assert capsys.readouterr().out.count("bytes, unchanged") == 6
    (work / "out" / "Dockerfile").write_text("FROM mine\n")
    (work / "out" / "compose.yaml").unlink()
    assert failing(capsys, *words, "--write") == (
        "out: Dockerfile is there with other contents; add --force to replace, or name another folder with --into"
    )
    assert not (work / "out" / "compose.yaml").exists() and (work / "out" / "Dockerfile").read_text() == "FROM mine\n"
    assert main(["deploy", "render", *words]) == 0
    assert " bytes, differs\n" in capsys.readouterr().out
    assert main(["deploy", "render", *words, "--write", "--force"]) == 0
    assert (work / "out" / "Dockerfile").read_text() == rendered(work, "docker")["Dockerfile"]
    (work / "out" / "serve.yaml").unlink()
    (work / "out" / "serve.yaml").mkdir()
    assert failing(capsys, *words, "--write", "--force") == (
        "out/serve.yaml is a folder; remove it, or name another with --into"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("roles: {a: nowhere}\n", "nowhere: no such folder; a role is the folder `policy` or `reward` inside a run"),
        ("roles: {a: base, b: base2}\n", "roles.b: base2 and base are two models; name roles on one base"),
        (
            "model: base\nallow_role_changes: true\n",
            "allow_role_changes is true, but only the roles that the config names go along; take it out, and render "
            "again when roles change",
        ),
        ("model: base\nprot: 1\n", "serve.yaml: 'prot' is unknown; did you mean 'port'?"),
    ],
)
def test_a_config_that_cannot_be_deployed_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    shutil.copytree(work / "base", work / "base2")
    (work / "serve.yaml").write_text(change)
    assert failing(capsys, "serve.yaml", "--target", "docker", "--into", "out", "--write") == message
    assert not (work / "out").exists()


def test_a_file_instead_of_a_folder_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = failing(capsys, "serve.yaml", "--target", "docker", "--into", "serve.yaml")
    assert said == "serve.yaml is a file; name a folder with --into"


def test_the_config_itself_is_never_replaced(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (work / "serve.yaml").read_text()
    for into in (".", "", str(work)):
        said = failing(capsys, "serve.yaml", "--target", "docker", f"--into={into}", "--write", "--force")
        assert said == "serve.yaml would be replaced by the one for docker; name another folder with --into"
    assert (work / "serve.yaml").read_text() == before


def test_a_link_out_of_a_folder_is_refused_where_it_would_lead_nowhere(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "weights").write_text("w")
    os.symlink("../weights", work / "base" / "model.safetensors")
    said = failing(capsys, "serve.yaml", "--target", "skypilot", "--into", "out")
    assert said.endswith(
        "base/model.safetensors is a link out of its folder, which would lead nowhere there; copy the folder with "
        "'cp -RL' and name the copy, or name the model by its hub name"
    )
    assert main(["deploy", "render", "serve.yaml", "--target", "systemd", "--into", "out"]) == 0  # copies what it is


def test_rendering_needs_neither_torch_nor_a_connection(work: Path) -> None:
    program = (
        "import socket, sys\n"
        "def refuse(*args, **options): raise AssertionError('a connection')\n"
        "socket.socket.connect = refuse\n"
        "from onebase.cli.main import main\n"
        "code = main('deploy render serve.yaml --target sagemaker --into out --write'.split())\n"
        "sys.exit(code or ('torch' in sys.modules and 'torch was imported'))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (work / "out" / "adapter.py").is_file()


def test_the_version_in_the_files_is_this_one(work: Path) -> None:
    assert WHEEL == f"onebase-{onebase.__version__}-py3-none-any.whl"
    compose: Any = yaml.safe_load(rendered(work, "docker")["compose.yaml"])
    assert compose["services"]["serve"]["image"] == f"onebase:{onebase.__version__}"
