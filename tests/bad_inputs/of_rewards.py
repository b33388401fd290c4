"""Reward functions: what they return, raise, print and change behind the run's back. Verifiers, and rft around them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from tests.bad_inputs.case import Case
from tests.bad_inputs.prepared import BEST_OF, CALLABLE, COMMANDS, PPO, RFT, files_for, questions

HEAD = "import os, sys, time, math, threading\n"
DEF = "def score(prompts, completions, **columns):\n    "
GIVE = "return [float(len(text)) for text in completions]\n"


def rew(name: str, body: str, command: str = PPO, head: str = "", **more: Any) -> Case:
    """A function with this body; `head` stands before it, at import."""
    files = {**files_for("ppo"), "rew.py": HEAD + head + DEF + body}
    return Case(f"rew_{name}", command, files, **{"codes": {1}, "says": r"rew(:score|\.py)|reward\.callable", **more})


def odd(name: str, body: str, why: str, **more: Any) -> Case:
    """Something it may do: the run fails in one line, or stands as if it had not."""
    return rew(name, body, codes={1, 2}, fine=why, **more)


NO_TIMEOUT = f"{PPO} --reward.timeout null"
EXITS = ("sys.exit()", "sys.exit(0)", "sys.exit(3)", "sys.exit('gone')", "raise SystemExit", "exit(0)", "quit()")
RETURNS = {
    "none": "None", "number": "1.0", "text": "'abc'", "dict": "{0: 1.0}", "set": "{1.0, 2.0}", "strings": "['1'] * N",
    "nones": "[None] * N", "one_none": "[1.0] * (N - 1) + [None]", "bools_as_text": "['true'] * N",
    "lists": "[[1.0]] * N",
    "nan": "[math.nan] * N", "inf": "[math.inf] * N", "minus_inf": "[-math.inf] * N", "too_large": "[1e39] * N",
    "bigint": "[10 ** 400] * N", "complex": "[1j] * N", "one_less": "[1.0] * (N - 1)", "one_more": "[1.0] * (N + 1)",
    "empty": "[]", "twice": "[1.0] * 2 * N", "objects": "[object()] * N", "functions": "[len] * N",
    "bytes": "[b'1'] * N",
    "matrix": "__import__('torch').ones(N, 2)", "scalar_tensor": "__import__('torch').ones(())",
    "nan_tensor": "__import__('torch').full((N,), math.nan)", "numpy_text": "__import__('numpy').array(['a'] * N)",
    "numpy_object": "__import__('numpy').array([None] * N)", "type": "float", "coroutine": "(x for x in [1.0])",
    "decimals_nan": "[__import__('decimal').Decimal('NaN')] * N", "raising_iterator": "(1 / 0 for _ in range(N))",
    "ellipsis": "...", "range_short": "range(1)", "complex_tensor": "__import__('torch').ones(N) * 1j",
    "meta_tensor": "__import__('torch').ones(N, device='meta')", "escape": "['\\x1b[31m'] * N",
}  # fmt: skip
FINE = {
    "bools": "[True] * N", "ints": "[3] * N", "tuple": "tuple([1.0] * N)", "generator": "(1.0 for _ in range(N))",
    "numpy": "__import__('numpy').arange(N)", "tensor_with_grad": "__import__('torch').ones(N, requires_grad=True)",
    "float16": "__import__('torch').ones(N).half()", "constant": "[1.0] * N",
    "fractions": "[__import__('fractions').Fraction(1, 3)] * N", "large": "[1e30] * N",
}  # fmt: skip
RAISES = {
    "value": "ValueError('x')", "key": "KeyError(3)", "lines": "ValueError('a\\nerror: fake\\nb')",
    "unicode": "ValueError('\\ud83d')",
    "escape": "ValueError('\\x1b[2Jx')", "long": "ValueError('x' * 100000)", "memory": "MemoryError()",
    "os": "OSError(28, 'x')",
    "broken_pipe": "BrokenPipeError()", "interrupted": "InterruptedError()", "stop": "StopIteration()",
    "recursion": "RecursionError()",
    "assertion": "AssertionError()", "timeout": "TimeoutError()", "import": "ImportError('nosuch')",
    "eof": "EOFError()",
    "group": "ExceptionGroup('a', [ValueError('b')])", "read_only": "OSError(30, 'x', 'y')",
    "warning": "UserWarning('w')",
    "torch_memory": "__import__('torch').OutOfMemoryError('x')",
    "unpickling": "__import__('pickle').UnpicklingError('x')",
}  # fmt: skip
BASES = {
    "baseexc": "class B(BaseException): pass\n", "genexit": "B = GeneratorExit\n",
    "keyboard": "B = KeyboardInterrupt\n",
    "cancelled": "from asyncio import CancelledError as B\n",
}  # fmt: skip


def _cases() -> Iterator[Case]:
    yield rew("sysexit0", "sys.exit(0)\n")
    yield rew("sysexit0_notimeout", "sys.exit(0)\n", NO_TIMEOUT)
    yield rew("sysexit0_bestof", "sys.exit(0)\n", BEST_OF)
    yield rew("sysexit0_iterate", "sys.exit(0)\n", COMMANDS["iterate"])
    yield rew("import_sysexit", GIVE, head="sys.exit(0)\n", codes={1, 2})
    yield rew("import_sysexit_dry", GIVE, f"{PPO} --dry-run", head="sys.exit(0)\n", codes={1, 2})
    for number, stop in enumerate(EXITS):
        yield rew(f"exit_{number}", f"{stop}\n", NO_TIMEOUT)
        yield rew(f"import_exit_{number}", GIVE, head=f"{stop}\n", codes={1, 2})
    for name, head in BASES.items():
        for command, more in ((PPO, ""), (NO_TIMEOUT, "_notimeout")):
            yield rew(
                name + more,
                "raise B('x')\n",
                command,
                head,
                codes={1, 130} if name == "keyboard" else {1},
                says="interrupted|rew" if name == "keyboard" else "rew",
            )
        yield rew(f"import_{name}", GIVE, head=head + "raise B('x')\n", codes={1, 2, 130}, says="interrupted|rew")
    for name, error in RAISES.items():
        yield rew(f"raises_{name}", f"raise {error}\n")
        yield rew(f"import_raises_{name}", GIVE, head=f"raise {error}\n", codes={1, 2})
    for name, value in RETURNS.items():
        yield rew(f"returns_{name}", f"N = len(completions); return {value}\n")
    for name, value in FINE.items():
        yield odd(
            f"returns_{name}",
            f"N = len(completions); return {value}\n",
            "numbers, one for each completion",
            says="" if name == "large" else "rew",
        )
    for name in ("none", "nan", "one_less", "strings"):
        yield rew(f"bestof_returns_{name}", f"N = len(completions); return {RETURNS[name]}\n", BEST_OF)
        yield rew(f"iterate_returns_{name}", f"N = len(completions); return {RETURNS[name]}\n", COMMANDS["iterate"])
    yield rew(
        "exc_no_str", "raise E()\n", head="class E(Exception):\n    def __str__(self): raise RuntimeError('no str')\n"
    )
    yield rew("exc_str_not_text", "raise E()\n", head="class E(Exception):\n    def __str__(self): return 3\n")
    yield rew("exc_exiting_str", "raise E()\n", head="class E(Exception):\n    def __str__(self): sys.exit(0)\n")
    yield rew(
        "score_repr_raises",
        "return [S()] * len(completions)\n",
        head="class S:\n    def __repr__(self): raise RuntimeError('x')\n",
    )
    yield rew(
        "score_float_raises",
        "return [S()] * len(completions)\n",
        head="class S(float):\n    def __abs__(self): raise RuntimeError('x')\n",
    )
    yield rew("len_raises", "return L()\n", head="class L(list):\n    def __iter__(self): raise RuntimeError('x')\n")
    yield from _signatures()
    yield from _behind_the_back()


def _signatures() -> Iterator[Case]:
    texts = {
        "no_function": "x = 1\n", "not_callable": "score = 3\n", "no_arguments": "def score(): return []\n",
        "no_columns": "def score(prompts, completions): return [1.0] * len(completions)\n",
        "other_names": "def score(a, b, **c): return [1.0] * len(b)\n", "class": "class score:\n    pass\n",
        "async": "async def score(prompts, completions, **c): return [1.0] * len(completions)\n",
        "generator": "def score(prompts, completions, **c):\n    yield 'a'\n", "syntax": "def score(:\n",
        "tabs": "\tx = 1\n",
        "nul": "x = '\0'\n", "import_missing": "import nosuch_module\n", "import_self": "import rew; rew.nosuch\n",
        "import_hangs": "import time; time.sleep(1000)\n", "import_spins": "while True: pass\n",
        "utf16": "x", "latin1": "x", "module_getattr": "def __getattr__(name): raise RuntimeError('x')\n",
    }  # fmt: skip
    coded: dict[str, bytes] = {"utf16": "x = 1\n".encode("utf-16"), "latin1": b"x = '\xe9'\n"}
    for name, text in texts.items():
        for dry in ("", " --dry-run"):
            needs_a_call = name in ("no_arguments", "other_names", "class", "async", "generator", "no_columns")
            yield Case(
                f"rew_module_{name}{'_dry' if dry else ''}",
                (PPO if "hangs" not in name and "spins" not in name else f"{PPO} --reward.timeout 3") + dry,
                {**files_for("ppo"), "rew.py": coded.get(name, text)},
                {1, 2},
                says="rew",
                limit=20,
                fine="only a call shows it"
                if dry and needs_a_call
                else "the rows have no further columns"
                if name == "no_columns"
                else "",
            )
    for name, value in {
        "no_colon": "rew",
        "missing_module": "nosuch:score",
        "dots": "...:score",
        "path": "/nowhere.py:f",
        "missing_function": "rew:nosuch",
        "deep": "rew:score.a.b",
        "builtin": "os:abort",
        "empty": "''",
        "keyword": "class:def",
        "digits": "1:2",
        "torch": "torch:nosuch",
        "escape": "'re\x1bw:score'",
    }.items():
        for dry in ("", " --dry-run"):
            if name == "builtin" and not dry:
                continue
            yield Case(
                f"rew_named_{name}{'_dry' if dry else ''}",
                PPO.replace("rew:score", value) + dry,
                files_for("ppo"),
                {2},
                says="reward.callable|callable|nosuch",
                fine="only a call shows it" if name == "builtin" else "",
                lines=None if name == "escape" else 1,
            )
    yield Case("rew_judge_missing_dry", f"{PPO} --evaluation.judge nosuch:f --dry-run", files_for("ppo"), says="judge")
    yield Case("rew_judge_missing", f"{PPO} --evaluation.judge nosuch:f", files_for("ppo"), says="judge")
    shadow = {
        name: "open('owned', 'w')\nraise RuntimeError('the wrong one')\n"
        for name in ("matplotlib.py", "json.py", "torch.py", "transformers.py", "random.py", "peft.py")
    }
    yield Case("rew_shadows", PPO, {**files_for("ppo"), **shadow}, {0}, fine="ours and the libraries' come first")


def _behind_the_back() -> Iterator[Case]:
    stands = "the run stands as it did before the call"
    yield rew("hangs", f"time.sleep(1000); {GIVE}", f"{PPO} --reward.timeout 2", says="reward.timeout|2 seconds")
    yield rew("spins", "while True: pass\n", f"{PPO} --reward.timeout 2", says="reward.timeout|2 seconds")
    yield odd("closes_stdout", f"sys.stdout.close(); {GIVE}", stands)
    yield odd("closes_stderr", f"sys.stderr.close(); {GIVE}", stands, lines=None)
    yield odd("closes_fd1", f"os.close(1); {GIVE}", stands)
    yield odd("stdout_none", f"sys.stdout = None; {GIVE}", stands)
    yield odd("stderr_none", f"sys.stderr = None; {GIVE}", stands, lines=None)
    yield odd("prints", f"print('\\x1b[2J' if False else 'hello'); {GIVE}", "its own words are its own")
    yield odd("reads_stdin", f"sys.stdin.read(); {GIVE}", stands)
    yield odd(
        "rm_out", f"import shutil; shutil.rmtree('out', ignore_errors=True); {GIVE}", "it is made anew", says="out"
    )
    yield odd(
        "rm_out_metrics", f"os.path.exists('out/metrics.jsonl') and os.remove('out/metrics.jsonl'); {GIVE}", stands
    )
    yield odd(
        "out_is_file",
        "import shutil; shutil.rmtree('out', ignore_errors=True); open('out', 'w').close(); " + GIVE,
        "",
        says="out",
    )
    yield odd("chdir", f"os.makedirs('/tmp/x', exist_ok=True); os.chdir('/tmp'); {GIVE}", stands)
    yield odd("import_chdir", GIVE, stands, head="os.chdir('/tmp')\n")
    yield odd("nograd_global", f"import torch; torch.set_grad_enabled(False); {GIVE}", stands)
    yield odd("import_nograd", GIVE, stands, head="import torch\ntorch.set_grad_enabled(False)\n")
    yield odd("inference_mode", f"import torch; torch.inference_mode().__enter__(); {GIVE}", stands)
    yield odd("default_dtype", f"import torch; torch.set_default_dtype(torch.float64); {GIVE}", stands)
    yield odd("import_default_dtype", GIVE, stands, head="import torch\ntorch.set_default_dtype(torch.float16)\n")
    yield odd("default_device", f"import torch; torch.set_default_device('meta'); {GIVE}", stands)
    yield odd("deterministic", f"import torch; torch.use_deterministic_algorithms(True); {GIVE}", stands)
    yield odd("seeds", f"import torch, random; torch.manual_seed(0); random.seed(0); {GIVE}", stands)
    yield odd("threads", f"import torch; torch.set_num_threads(2); {GIVE}", stands)
    yield odd("env", f"os.environ.clear(); {GIVE}", stands)
    yield odd("locale", f"import locale; locale.setlocale(locale.LC_ALL, 'C'); {GIVE}", stands)
    yield odd(
        "signal_ignored",
        f"import signal; threading.current_thread() is threading.main_thread() and "
        f"signal.signal(signal.SIGINT, signal.SIG_IGN); {GIVE}",
        stands,
    )
    yield odd("recursion_limit", f"sys.setrecursionlimit(100); {GIVE}", stands)
    yield odd("umask", f"os.umask(0o777); {GIVE}", stands)
    yield odd(
        "changes_its_arguments",
        "prompts.clear(); found = [1.0] * len(completions); completions.clear(); return found\n",
        "the lists are its own",
    )
    yield odd("changes_columns", f"[value.clear() for value in columns.values()]; {GIVE}", "the lists are its own")
    yield odd(
        "daemon_thread", f"threading.Thread(target=time.sleep, args=(1000,), daemon=True).start(); {GIVE}", stands
    )
    yield rew("recursion", "return score(prompts, completions)\n")
    yield rew("memory", "return [0.0] * 10 ** 12\n")
    yield odd("warns", f"import warnings; warnings.warn('look'); {GIVE}", "its own words are its own")
    yield odd("warnings_as_errors", f"import warnings; warnings.simplefilter('error'); {GIVE}", stands)
    yield odd("logging", f"import logging; logging.basicConfig(level=0); {GIVE}", stands)
    yield odd("gc_off", f"import gc; gc.disable(); {GIVE}", stands)
    yield odd("excepthook", f"sys.excepthook = None; {GIVE}", stands)
    yield odd("sys_path_cleared", f"sys.path.clear(); {GIVE}", stands)
    yield odd("modules_cleared", f"sys.modules.pop('json', None); {GIVE}", stands)


def ver(name: str, words: str, says: str, rows: list[dict[str, object]] | None = None, **more: Any) -> Case:
    """A run of rft with these words in place of its reward function; the rows have a number as their gold answer."""
    rows = [{**row, "gold": str(i)} for i, row in enumerate(questions())] if rows is None else rows
    command = shlex.split(RFT.replace(CALLABLE, words))
    return Case(f"ver_{name}", command, {"d.jsonl": rows, **more.pop("files", {})}, says=says, **more)


def _verifiers() -> Iterator[Case]:
    numeric = "--reward.verifiers numeric"
    yield ver("unknown", "--reward.verifiers numeri", "reward.verifiers.* no verifier 'numeri'")
    yield ver("no_name", "--reward.verifiers '{tolerance: 1}'", "reward.verifiers.* has no name")
    yield ver("option_unknown", "--reward.verifiers '{name: numeric, tol: 1}'", "numeric has no option 'tol'")
    yield ver("option_wrong", "--reward.verifiers '{name: numeric, tolerance: 2}'", "numeric: tolerance = 2")
    yield ver(
        "option_all", "--reward.verifiers '{name: numeric, tolerance: 1}'", "it should be less than 1"
    )
    yield ver("option_missing", "--reward.verifiers '{name: pattern}'", "pattern needs its option 'pattern'")
    yield ver("pattern_broken", "--reward.verifiers '{name: pattern, pattern: \"(\"}'", "not a regular expression")
    yield ver("function_missing", "--reward.verifiers nosuch:score", "reward.verifiers.*nosuch")
    yield ver("weight_nan", "--reward.verifiers '{name: numeric, weight: .nan}'", "numeric: weight")
    yield ver("none", "--reward.verifiers '[]'", "'reward' needs 'reward.verifiers'")
    yield ver("weight_alone", f"{numeric} --reward.weight 2", "reward.weight")
    yield ver("gold_without_verifiers", f"{CALLABLE} --reward.gold gold", "reward.gold")
    yield ver("code_without_leave", "--reward.verifiers code", "verifier code runs programs.*--allow-code-execution")
    allowed = {"dotted": "reward.allow_code_execution: true\n", "group": "reward: {allow_code_execution: true}\n"}
    for form, text in allowed.items():
        yield Case(
            f"ver_code_allowed_by_a_file_{form}",
            ["rft", "c.yaml", *RFT.replace(CALLABLE, "--reward.verifiers code").split()[1:]],
            {**files_for("rft"), "c.yaml": text},
            says="allow_code_execution",
        )
    yield ver("no_gold", numeric, r"24 of 24 rows.*d\.jsonl:1: no gold answer.*reward\.gold", questions(), codes={3})
    says = r"d\.jsonl:\d+: there is no column 'nosuch'"
    yield ver("gold_column_missing", f"{numeric} --reward.gold nosuch", says, codes={3})
    for name, gold in {"word": "four", "root": "3\\sqrt{2}", "pair": "(1, 2)", "list": [1, 2], "blank": " "}.items():
        rows = [{**row, "gold": gold if i == 5 else "4"} for i, row in enumerate(questions())]
        yield ver(f"gold_{name}", numeric, r"1 of 24 rows.*d\.jsonl:6: .*gold answer", rows, codes={3})
    yield ver("choice_without_options", "--reward.verifiers choice", "lists no options", codes={3})
    yield ver("code_without_tests", "--reward.verifiers code --allow-code-execution", r"d\.jsonl:\d+.*tests", codes={3})
    for name, words, says in (
        ("advantage_unknown", "--advantage grpo", "advantage"),
        ("k1_group", "--generation.samples_per_prompt 1", "'advantage' = group compares.*samples_per_prompt"),
        ("k1_rloo", "--generation.samples_per_prompt 1 --advantage rloo", "'advantage' = rloo compares"),
        ("k1_skips", "--rft.dynamic_sampling true --generation.samples_per_prompt 1 --advantage gae", "dynamic"),
        ("a2c_two_epochs", "--rft.policy_loss a2c --rft.num_epochs 2", "'rft.policy_loss' = a2c.*rft.num_epochs"),
        ("a2c_two_minibatches", "--rft.policy_loss a2c --rft.minibatch_prompts 2", "a2c.*rft.minibatch_prompts"),
        ("gspo_gae", "--rft.policy_loss gspo --advantage gae", "gspo.*advantage"),
        ("overlong_beyond", "--rft.overlong_buffer 999", "overlong_buffer.*max_new_tokens"),
        ("lam_without_critic", "--rft.lam 0.5", "'rft.lam' = 0.5 would change nothing"),
    ):
        words_left = RFT.replace("--generation.samples_per_prompt 2 ", "") if "samples_per" in words else RFT
        words_left = words_left.replace("--rft.minibatch_prompts 4 ", "") if "minibatch" in words else words_left
        yield Case(f"ver_{name}", f"{words_left} {words}", files_for("rft"), says=says)


CASES = [*_cases(), *_verifiers()]
