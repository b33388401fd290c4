"""What only a process of its own can show: limits, the environment, closed streams, signals."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bad_inputs.case import Case, Copy
from tests.bad_inputs.prepared import COMMANDS, PPO, SFT, files_for

UNICODE = "她说: 好"


def shell(name: str, script: str, command: str = SFT, **more: object) -> Case:
    files = {**files_for(command.split()[0]), **more.pop("files", {})}  # type: ignore[dict-item]
    return Case(f"res_{name}", command, files, shell=script, **{"codes": {1, 2, 4}, "limit": 120.0, **more})  # type: ignore[arg-type]


def _cases() -> Iterator[Case]:
    for size in (100, 400):  # with more, libraries fail inside their C code, each in a way of its own
        yield shell(
            f"ulimit_v_{size}M",
            f"ulimit -v {size}000; {{}}",
            says="memory",
            codes={1, 4, 6},
        )
    for size in (0, 10, 100):
        yield shell(
            f"ulimit_f_{size}k",
            f"ulimit -f {size}; {{}}",
            says="(?i)large|disk|space|limit|written",
            codes={1, 2, 4},
            fine="all files are smaller" if size == 100 else "",
        )
    yield shell(
        "ulimit_n_10", "ulimit -n 10; {}", codes={1, 2, 4}, says="(?i)files|import|open", fine="ten may be enough"
    )
    yield shell("ulimit_t_3s", "ulimit -t 600; {} --dry-run", codes={0}, fine="enough time")
    for value in ("abc", "2", "0", "-1", "1.5", "''"):
        yield shell(
            f"world_size_{value}",
            f"WORLD_SIZE={value} {{}} --dry-run",
            says="WORLD_SIZE|MASTER_ADDR|RANK",
            codes={1, 2},
            fine="one process alone" if value in ("''", "0") else "",
        )
    yield shell("rank_abc", "WORLD_SIZE=1 RANK=abc {} --dry-run", says="RANK", fine="of one process the rank is known")
    yield shell(
        "world_size_2_alone",
        "WORLD_SIZE=2 RANK=0 MASTER_ADDR=localhost MASTER_PORT=99999 {} --dry-run",
        says="LOCAL_RANK",
    )
    yield shell("stdout_closed", "{} --dry-run >&-", codes={0, 1, 2}, fine="nobody reads it")
    yield shell("stdout_closed_run", "{} >&-", codes={0, 1, 2}, fine="nobody reads it")
    yield shell("stderr_closed", "{} --dry-run 2>&-", codes={0, 1, 2}, fine="nobody reads it", lines=None)
    yield shell("stdin_closed", "{} --dry-run <&-", codes={0}, fine="nothing is asked")
    yield shell("all_closed", "{} <&- >&- 2>&-", codes={0, 1}, fine="nobody reads it")
    yield shell("stdout_full", "{} --dry-run >/dev/full", codes={1, 2, 4}, says="(?i)space|disk|stdout|written")
    yield shell(
        "stderr_full", "{} --dry-run 2>/dev/full", codes={0, 1, 4, 120}, fine="the run matters more", lines=0
    )
    yield shell(
        "stdout_read_no_further",
        "{} --dry-run | head -c 1; exit ${PIPESTATUS[0]}",
        codes={0, 141},
        lines=0,
        fine="all of it fits the pipe",
    )
    yield shell(
        "help_read_no_further",
        "onebase sft --help | head -c 1; exit ${PIPESTATUS[0]}",
        codes={0, 141},
        lines=0,
        fine="all of it fits the pipe",
    )
    plain = "LC_ALL=C PYTHONIOENCODING=ascii PYTHONUTF8=0"
    rows = [{"prompt": f"{i} {UNICODE}?", "chosen": f"{i} {UNICODE}", "rejected": "no"} for i in range(12)]
    yield Case(
        "res_ascii_locale",
        "score fix/run_rm/reward z.jsonl --rank",
        {"z.jsonl": rows},
        {0},
        shell=f"{plain} {{}}",
        fine="what the terminal cannot show is written as an escape",
        limit=120,
    )
    questions = {"d.jsonl": [{"prompt": f"{i} {UNICODE}?"} for i in range(24)]}
    yield shell("ascii_locale_ppo_zh", f"{plain} {{}} --lang zh", PPO, files=questions, codes={0}, fine="as above")
    yield shell(
        "ascii_locale_sft",
        f"{plain} {{}}",
        SFT.replace("d.jsonl", "中.jsonl"),
        codes={0},
        fine="as above",
        files={"中.jsonl": files_for("sft")["d.jsonl"]},
    )
    yield shell("ascii_locale_error", f"{plain} {{}}", SFT.replace("d.jsonl", "文.jsonl"), codes={3}, says="jsonl")
    yield Case(
        "res_ascii_locale_runs", "runs ls .", {"跑": Copy("run_sft")}, {0}, shell=f"{plain} {{}}", fine="as above"
    )
    for name, value in {
        "threads_text": "OMP_NUM_THREADS=abc",
        "threads_minus": "OMP_NUM_THREADS=-3",
        "threads_zero": "OMP_NUM_THREADS=0",
        "cuda": "CUDA_VISIBLE_DEVICES=99",
        "columns": "COLUMNS=abc",
        "columns_minus": "COLUMNS=-5",
        "term": "TERM=dumb",
        "home": "HOME=/proc/nowhere",
        "tmp": "TMPDIR=/proc/nowhere",
        "tunables": "GLIBC_TUNABLES=nonsense",
        "hf_home": "HF_HOME=/proc/x",
        "no_path": "PATH=",
        "mpl": "MPLCONFIGDIR=/proc/x",
        "backend": "MPLBACKEND=nosuch",
        "lang": "LANG=xx_YY",
        "hash": "PYTHONHASHSEED=7",
        "force_color": "FORCE_COLOR=1",
    }.items():
        yield shell(
            f"env_{name}", f"{value} {{}}", codes={0, 1, 2}, says=value.split("=")[0], fine="it says nothing of the run"
        )
    stop = "{} & sleep 0.3; kill -%s $!; wait $!"
    yield shell("int_early", "set -m; " + stop % "INT", codes={130}, says="interrupted|stopped|Ctrl")
    yield shell("term_early", stop % "TERM", codes={75, 143}, says="stopped")
    waits = {
        "rew.py": "import time\ndef score(prompts, completions, **c):\n    open('out/called', 'w').close()\n"
        "    time.sleep(30)\n    return [1.0] * len(completions)\n"
    }
    until = "{} & for i in $(seq 300); do [ -e out/called ] && break; sleep 0.2; done; "
    until += "kill -%s $!; sleep 0.5; %s wait $!"
    yield shell(
        "int_in_a_step", "set -m; " + until % ("INT", ""), PPO, files=waits, codes={130}, says="Ctrl-C|interrupt"
    )
    yield shell(
        "int_twice",
        "set -m; " + until % ("INT", "kill -INT $!;"),
        PPO,
        files=waits,
        codes={130},
        says="Ctrl-C|interrupt",
    )
    yield shell("term_in_a_step", until % ("TERM", ""), PPO, files=waits, codes={75, 143}, says="(?i)stopped")
    yield shell("hup", until % ("HUP", ""), PPO, files=waits, codes={75, 129, 130}, lines=None, fine="")
    yield shell(
        "two_in_one_folder",
        "{} & for i in $(seq 300); do [ -e out/called ] && break; sleep 0.2; done; {}; "
        "code=$?; kill -KILL $!; exit $code",
        PPO,
        files=waits,
        codes={2},
        says="another process",
    )
    for verb in ("reward", "ppo"):
        yield shell(
            f"ulimit_f_10k_{verb}",
            "ulimit -f 10; {}",
            COMMANDS[verb],
            says="(?i)large|disk|space|limit|written",
            fine="all files are smaller",
        )


CASES = [*_cases()]
