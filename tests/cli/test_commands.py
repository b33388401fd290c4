"""The command line as a shell sees it: exit codes, messages, streams."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import onebase
from onebase.cli import commands, modules, preflight
from onebase.cli.main import main
from onebase.config.files import config_keys
from onebase.config.verbs import VERB_CONFIGS
from onebase.errors import DataError, DoesNotFitError, Interrupted, Stopped
from onebase.files import write_atomically
from onebase.tools import doctor
from onebase.verbs import VERBS

SFT = ["output_dir=runs/x", "model.model_name_or_path=base", "data.train=a.jsonl"]


def onebase_command(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "onebase", *words], capture_output=True, text=True, cwd=folder)


def fake_recipe(monkeypatch: pytest.MonkeyPatch, **functions: object) -> None:
    monkeypatch.setattr(modules, "load", lambda verb: SimpleNamespace(first_steps=lambda config: None, **functions))
    monkeypatch.setattr(preflight, "check", lambda config: None)  # there is nothing to read
    monkeypatch.setattr(commands, "check_file", lambda path: None)
    monkeypatch.setattr(preflight, "check_models", lambda config: None)
    monkeypatch.setattr(preflight, "check_roles", lambda roles, model: None)


def failing_with(error: BaseException) -> object:
    def run(*args: object, **kwargs: object) -> None:
        raise error

    return run


def test_help_does_not_import_torch() -> None:
    program = (
        "import sys; from onebase.cli.main import main\n"
        "for line in ('--help', '--version', 'ppo --help', 'chat --help', 'sft seed=1'): main(line.split())\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_takes_less_than_a_second() -> None:
    def seconds() -> float:
        """Of a core: other programs make the answer late, but not longer."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    start = seconds()
    assert onebase_command("--help").returncode == 0
    assert seconds() - start < 1


def test_version_is_printed_by_the_module_and_the_script() -> None:
    assert onebase_command("--version").stdout.strip() == onebase.__version__
    script = Path(sys.executable).with_name("onebase")
    if not script.exists():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, onebase.__version__)


def test_no_verb_shows_the_help_and_is_a_usage_error() -> None:
    done = onebase_command()
    assert done.returncode == 2 and "pretrain" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_training_verb_lists_every_key(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert all((f"--{key} " in out) != bool(field.exclude) for key, field in config_keys(VERB_CONFIGS[verb]))
    assert VERBS[verb].about == VERB_CONFIGS[verb].__doc__


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pppo", "a.yaml"], 'error: Unknown command "pppo". Did you mean "ppo"?'),
        (["ppo", "ppp.yaml"], "error: no config file 'ppp.yaml'; did you mean 'ppo.yaml'?"),
        (["ppo", "--config", "ppp.yaml"], "error: no config file 'ppp.yaml'; did you mean 'ppo.yaml'?"),
        (["ppo", "ppo.yaml"], "error: ppo.yaml: 'ppo.kl_coef' is unknown; did you mean 'ppo.kl_coefficient'?"),
        (["sft", *SFT, "--lora.r", "x"], "error: command line: 'lora.r' = x: it should be a whole number"),
        (["sft", *SFT, "--lora.rr", "1"], "error: command line: 'lora.rr' is unknown; did you mean 'lora.r'?"),
        (
            ["score", "role"],
            "error: Command \"score\" parameter FILE requires an argument. See 'onebase score --help'.",
        ),
        (["chat", "a", "--temperatur", "1"], "error: Unknown option: --temperatur. Did you mean --temperature?"),
        (["chat"], "error: chat needs one role folder, or two after --compare; see 'onebase chat --help'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "ppo.yaml").write_text(
        "output_dir: a\nstart_from: b\nmodel: {model_name_or_path: c}\ndata: {train: d}\nreward: {role: e}\n"
        "ppo: {kl_coef: 0.1}\n"
    )
    done = onebase_command(*words, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(message), done.stderr


def test_every_problem_of_a_config_is_a_line() -> None:
    done = onebase_command("sft", "seed=x", "sead=1", "model.model_name_or_path=a", "data.train=b")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: command line: 'sead' is unknown; did you mean 'seed'?",
        "error: command line: 'output_dir' is missing: folder of the run: resolved config, metrics, checkpoints, roles",
        "error: command line: 'seed' = x: it should be a whole number",
    ]


def test_dry_run_prints_the_config_to_stdout_and_the_plan_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_recipe(monkeypatch, plan=lambda config: f"would train on {config.data.train}")
    assert main(["sft", "--dry-run", *SFT, "--lora.r=4"]) == 0
    printed = capsys.readouterr()
    assert yaml.safe_load(printed.out)["lora"]["r"] == 4
    assert printed.err == "would train on ['a.jsonl']\n"


def test_a_verb_hands_its_config_to_its_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    drawn: list[Path] = []
    fake_recipe(monkeypatch, run=seen.append, leave_pictures=drawn.append)
    path = tmp_path / "a=b.yaml"
    path.write_text("output_dir: a\nmodel: {model_name_or_path: c}\ndata: {train: d}\n")
    for words in (["sft", str(path), "seed=3"], ["sft", "--seed", "3", "--config", str(path)]):
        assert main(words) == 0
    assert [config.seed for config in seen] == [3, 3] and seen[0] == seen[1]
    assert drawn == [Path("a"), Path("a")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["score", "r", "f.jsonl", "--rank"], {"role": "r", "file": Path("f.jsonl"), "rank": True, "model": None}),
        (["chat", "r", "--once", "hi"], {"role": "r", "compare": None, "once": "hi", "max_new_tokens": 128}),
        (["chat", "--compare", "a", "b", "--temperature", "0"], {"compare": ("a", "b"), "temperature": 0.0}),
        (["demo", "--seed", "3"], {"output_dir": Path("runs/demo"), "seed": 3}),
    ],
)
def test_options_reach_the_recipe(
    words: list[str], expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}
    fake_recipe(monkeypatch, run=lambda **options: seen.update(options))
    assert main(words) == 0
    assert {key: seen[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("a.jsonl:3: no prompt"), 3, "error: a.jsonl:3: no prompt\n"),
        (DoesNotFitError("too big"), 4, "error: too big\n"),
        (Stopped("stopped at step 3"), 75, "error: stopped at step 3\n"),
        (Interrupted("saved"), 130, "error: saved\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a"),
            4,
            "error: no space left on the disk for 'runs/a'; free some and run the same command again\n",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "runs/a"),
            1,
            "error: runs/a: Read-only file system; make it writable, and run the same command again\n",
        ),
    ],
)
def test_an_expected_failure_is_one_line_with_its_exit_code(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_recipe(monkeypatch, run=failing_with(error))
    assert main(["sft", *SFT]) == code
    assert capsys.readouterr().err == "sft: starting; the run goes to runs/x\n" + message


class Unsayable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class NotAnException(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("boom\n\x1b[31mred"), 1, r"demo failed: RuntimeError: boom\n\x1b[31mred; the traceback"),
        (RuntimeError("x" * 5000), 1, "demo failed: RuntimeError: xxx"),
        (RuntimeError(), 1, "demo failed: RuntimeError; the traceback"),
        (Unsayable(), 1, "demo failed: Unsayable: (Unsayable without a text: its __str__ raises ValueError); the"),
        (NotAnException("a"), 1, "demo failed: NotAnException: a; the traceback"),
        (SystemExit(0), 1, "demo failed: SystemExit: something called sys.exit(0); the traceback"),
        (GeneratorExit(), 1, "demo failed: GeneratorExit; the traceback"),
        (RecursionError("too deep"), 1, "demo failed: RecursionError: too deep; the traceback"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 1, "PermissionError: a/b: Permission denied; the"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a/b"), 2, "a/b: File name too long; name another file or"),
        (OSError(errno.EFBIG, "File too large"), 1, "demo failed: OSError: File too large; the traceback"),
        (MemoryError(), 4, "demo failed: out of memory (MemoryError); free some"),
        (ImportError("libx.so: failed to map segment from shared object"), 4, "failed: out of memory (ImportError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 4, "demo failed: out of memory (Runtime"),
    ],
)
def test_an_unexpected_failure_is_one_line_and_its_traceback_a_file(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fake_recipe(monkeypatch, run=failing_with(error))
    assert main(["demo"]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1 and len(err) < 600, err
    kept = tmp_path / "onebase-traceback.txt"
    assert kept.exists() == (code == 1)
    if code == 1:
        assert str(kept) in err and "Traceback (most recent call last)" in kept.read_text()


def test_the_traceback_of_a_run_goes_to_its_folder_behind_older_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for what in ("first", "second"):
        fake_recipe(monkeypatch, run=failing_with(RuntimeError(what)))
        assert main(["sft", *SFT[1:], f"output_dir={folder}"]) == 1
        assert f"RuntimeError: {what}; the traceback is in {folder}/traceback.txt; please" in capsys.readouterr().err
    kept = (folder / "traceback.txt").read_text()
    assert kept.index("RuntimeError: first") < kept.index("RuntimeError: second")


def test_a_failure_names_the_function_of_ours_that_it_happened_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fake_recipe(monkeypatch, run=lambda **options: write_atomically(Path("/proc/x/y"), "text"))
    assert main(["demo"]) == 1
    expected = r"error: demo failed in atomic_file \(files.py, line \d+\): FileNotFoundError: /proc/"
    assert re.match(expected, capsys.readouterr().err)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_failure(closed: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n")
    command = f"{sys.executable} -m onebase runs ls {tmp_path} {closed}"
    assert subprocess.run(["sh", "-c", command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode == 0


def test_an_ascii_terminal_shows_other_letters_as_escapes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("output_dir: 猫\n", encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "onebase", "runs", "show", tmp_path], capture_output=True, env=environment
    )
    assert done.returncode == 0 and b"\\u732b" in done.stdout, done.stderr


def test_a_recipe_that_closed_stdout_fails_without_a_complaint_at_exit(tmp_path: Path) -> None:
    program = (
        "import sys; from types import SimpleNamespace; from onebase.cli import modules\n"
        "from onebase.cli.main import main\n"
        "modules.load = lambda verb: SimpleNamespace(run=lambda **options: (sys.stdout.close(), print('x')))\n"
        "sys.exit(main(['demo']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "ValueError: I/O operation on closed file" in done.stderr


def test_a_terminal_escape_in_an_argument_is_not_passed_on() -> None:
    done = onebase_command("\x1b[31mppo")
    assert done.returncode == 2 and "\x1b" not in done.stderr and r"\x1b[31m" in done.stderr


@pytest.mark.parametrize("verb", ["ppo", "score"])  # whose help is our own, and rich's
def test_a_reader_that_stops_early_is_no_complaint(verb: str) -> None:
    # Closing our end before the command writes makes its first write fail.
    process = subprocess.Popen(
        [sys.executable, "-m", "onebase", verb, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    complaint = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), complaint) == (141, "")


def test_doctor_finds_what_works_here(tmp_path: Path) -> None:
    findings = doctor.examine(tmp_path / "runs" / "later")
    assert findings["problems"] == []
    assert findings["disk"]["folder"] == str(tmp_path) and findings["disk"]["free_bytes"] > 0
    assert list(tmp_path.iterdir()) == []
    cpu = findings["devices"][0]
    assert (cpu["device"], cpu["float32"]) == ("cpu", "ok")
    assert cpu["bfloat16"] != "ok" or cpu["bfloat16_speed"] > 0
    if findings["packages"]["bitsandbytes"] is None:
        assert "pip install 'onebase[quant]'" in cpu["nf4"]


def test_doctor_prints_words_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--output-dir", str(tmp_path)]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["onebase"] == onebase.__version__ and findings["cores"] >= 1
    doctor.run(output_dir=tmp_path)
    text = capsys.readouterr().out
    assert f"torch {findings['packages']['torch']}" in text and "device    cpu" in text


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that no one can write to: /proc")
def test_doctor_says_when_runs_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--output-dir", "/proc/self"]) == 1
    assert "error: cannot write to '/proc/self': " in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ answered before torch


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["sft", *SFT], 3, "a.jsonl does not exist"),
        (["sft", *SFT, "--dry-run"], 3, "a.jsonl does not exist"),
        (["sft", *SFT[:2], "--data.train", "there.jsonl", "gone.jsonl"], 3, "gone.jsonl does not exist"),
        (["sft", *SFT[:2], "data.train=there.jsonl", "data.eval=gone.jsonl"], 3, "gone.jsonl does not exist"),
        (["sft", *SFT[:2], "data.train=."], 3, "pipe.jsonl is a pipe, socket or device"),
        (["sft", *SFT[:2], "data.train=a.docx"], 3, "a.docx does not exist"),
        (["sft", *SFT[:2], "data.train=pipe.jsonl"], 3, "pipe.jsonl is a pipe, socket or device"),
        (["sft", *SFT[:2], "data.train=" + "y/" * 150 + "z.jsonl"], 3, "does not exist"),
        (["sft", *SFT[1:2], "data.train=there.jsonl", "output_dir=there.jsonl/x"], 2, "/x: cannot be written (Not a"),
        (["sft", *SFT[1:2], "data.train=there.jsonl", "output_dir=/proc/x", "--dry-run"], 2, "/proc/x: cannot be"),
        (["demo", "--output-dir", "x" * 300], 2, "cannot be written (File name too long); choose another --output-dir"),
        (["score", "role", "gone.jsonl"], 3, "gone.jsonl does not exist"),
        (
            ["score", "role", "there.jsonl", "--microbatch-tokens", "0"],
            2,
            "--microbatch-tokens is 0; it should be at least 1",
        ),
        (
            ["score", "role", "there.jsonl", "--microbatch_tokens=-5"],
            2,
            "--microbatch-tokens is -5; it should be at least 1",
        ),
        (["score", "role", "there.jsonl", "--dtype", "fp16"], 2, "--dtype"),
        (["chat", "role", "--device", "meta"], 2, "--device is meta; it should be auto, cpu, cuda or cuda:1"),
        (["chat", "role", "--top-p", "0"], 2, "--top-p is 0.0; it should be above 0 and at most 1"),
        (["chat", "role", "--temperature", "nan"], 2, "--temperature: nan is not a number"),
        (["chat", "role", "--seed", "-1"], 2, "--seed is -1; it should be between 0 and 9223372036854775807"),
        (["chat", "role", "--once", "hi \udcff"], 2, r"--once is not UTF-8 text: hi \udcff"),
        (["chat", "role", "--system", "\udcff"], 2, "--system is not UTF-8 text"),
        (["demo", "--seed", "-1"], 2, "--seed is -1; it should be between 0 and 4294967295"),
    ],
)
def test_what_is_wrong_in_the_words_is_told_before_torch_is_imported(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def importing(verb: str) -> None:
        raise AssertionError("torch would be imported")

    monkeypatch.setattr(modules, "load", importing)
    monkeypatch.chdir(tmp_path)
    Path("there.jsonl").write_text("{}\n")
    Path("base").mkdir()
    Path("base/config.json").write_text("{}")
    os.mkfifo("pipe.jsonl")
    assert main(words) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1, err


def test_a_wrong_path_is_answered_within_a_second_and_without_torch(tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").write_text("{}\n")
    for file in (tmp_path / "done" / "summary.json", tmp_path / "base" / "config.json"):
        file.parent.mkdir()
        file.write_text("{}")
    program = (
        "import sys, time; from onebase.cli.main import main\n"
        f"words = {SFT[:2]!r}\n"
        "assert main(['sft', *words, 'data.train=gone.jsonl']) == 3 and main(['score', 'role', 'gone.jsonl']) == 3\n"
        "assert main(['sft', *words[1:], 'output_dir=done', 'data.train=there.jsonl']) == 2\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else int(time.process_time() > 1))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "done holds a finished run" in done.stderr


@pytest.mark.parametrize("columns", [60, 100])
def test_the_help_fits_the_terminal(columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        assert not [line for line in capsys.readouterr().out.splitlines() if len(line) > columns]
