"""The verifier code: a completion's program against a row's tests."""

from __future__ import annotations

import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from onebase.config.remedies import with_remedy
from onebase.errors import ConfigError, DataError, VerifierError
from onebase.shown import shown
from onebase.verifiers.code import Code, _program
from onebase.verifiers.verifier import Task

CODE = Code(allowed=True)
TASK = Task("", columns={"tests": ["assert double(2) == 4", "assert double(0) == 0"], "setup": ""}, place="a.jsonl:3")
HUMAN_EVAL = Task(
    "",
    solution="    return [x for x in numbers if x > limit]\n",
    columns={
        "code_prompt": "from typing import List\n\n\ndef above(numbers: List[int], limit: int):\n    '''Doc.'''\n",
        "entry_point": "above",
        "tests": ["METADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 5, 9], 4) == [5, 9]\n"],
    },
)


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("def double(x):\n    return 2 * x", 1.0),
        ("def double(x):\r\n    return 2 * x\r\n", 1.0),
        ("Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone.", 1.0),
        ("```python\ndef double(x): return 0\n```\nno:\n```py\ndef double(x): return x + x\n```", 1.0),
        ("~~~\ndef double(x):\n    return x + x\n~~~", 1.0),
        ("def double(x):\n    return x", 0.1),
        ("x = 1", 0.1),
        ("", 0.1),
        ("I cannot say.", 0.0),
        ("def double(:", 0.0),
        ("\0", 0.0),
        ("(" * 100_000, 0.0),
        ("import os\nos._exit(0)", 0.1),
    ],
)
def test_a_program_is_run_against_every_test(completion: str, score: float) -> None:
    assert CODE.verify(completion, TASK)[:2] == (score, None)


def test_with_partial_a_program_gets_the_share_of_its_tests() -> None:
    partial = Code(partial=True, allowed=True)
    assert partial.verify("def double(x): return x", TASK).score == 0.5
    assert partial.verify("def double(x): return 7", TASK).score == 0.1
    assert partial.verify("def double(x): return 2 * x", TASK).score == 1.0


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("Run it:\n```python\nA\n```\n```bash\npython a.py\n```\n", "A\n"),
        ("```python\nA\n```\nOutput:\n```\n4\n```", "A\n"),
        ("```bash\npip install x\n```\n```\nA\n```", "A\n"),
        ("```\nB\n```\n```\nA\n```", "A\n"),
        ("```Python title='a.py'\nA\n```", "A\n"),
        ("``` py\nB\n```\n  ```python3\nA\n  ```", "A\n"),
        ("````python\nA\n```\nB\n````\n```text\nB\n```", "A\n```\nB\n"),
        ("~~~python\n```\n~~~~\n", "```\n"),
        ("```python\nA\nB", "A\nB\n"),
        ("```js\nB\n```", "```js\nB\n```"),
        ("x = '```python ` '", "x = '```python ` '"),
        ("```python\r\nA\r\n```\r\n", "A\n"),
    ],
)
def test_the_program_is_the_last_block_of_python(completion: str, program: str) -> None:
    assert _program(completion, TASK) == program


def test_blocks_are_found_in_linear_time() -> None:
    start = time.monotonic()
    for text in ("`" * 200_000 + "x`", "```" + " " * 200_000 + "`", "```\n" * 100_000, "~" * 200_000 + "\n`"):
        _program(text, TASK)
    assert time.monotonic() - start < 2.0


def test_a_program_out_of_memory_only_compiles() -> None:
    found = Code(memory_mb=128, allowed=True).verify("x = bytearray(1 << 28)\ndef double(x): return 2 * x", TASK)
    assert (found.score, found.note) == (0.1, "MemoryError")


def test_a_program_out_of_time_is_counted() -> None:
    with pytest.raises(VerifierError, match="^took longer than 0.7 s$"):
        Code(timeout=0.7, allowed=True).verify("while True: pass", TASK)


def test_why_a_program_failed_is_noted() -> None:
    raising = "def double(x): raise ValueError(chr(27) * 999)"
    assert CODE.verify(raising, TASK).note == shown("ValueError: " + "\x1b" * 999, 120)
    assert CODE.verify("def double(x): return 2 * x", TASK).note is None
    assert str(CODE.verify("def double(:", TASK).note).startswith("SyntaxError: ")


def test_no_completion_replaces_a_function_that_checks_it() -> None:
    task = Task(
        "",
        columns={
            "code_prompt": "import math\n\n\ndef poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n\n"
            "class Box:\n    pass\n\n\n@staticmethod\ndef find_zero(xs):\n    'Doc.'\n",
            "entry_point": "find_zero",
            "tests": [
                "def check(candidate):\n    assert math.fabs(poly([1, 2], candidate([1, 2]))) < 1e-4\n    Box()\n"
            ],
        },
    )
    assert CODE.verify("    return -0.5\n", task).score == 1.0
    cheat = "def poly(xs, x):\n    return 0.0\ndef find_zero(xs):\n    return 7.0"
    assert CODE.verify(cheat, task).score == 0.1
    assert CODE.verify(f"    return 7.0\n\n\n{cheat.partition('def find')[0]}", task).score == 0.1


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("    return [x for x in numbers if x > limit]\n", 1.0),
        ("    return numbers\n", 0.1),
        ("```python\ndef above(numbers: List[int], limit):\n    return [x for x in numbers if x > limit]\n```", 1.0),
        ("above = lambda numbers, limit: [x for x in numbers if x > limit]", 1.0),
    ],
)
def test_a_completion_may_continue_the_rows_function_or_write_its_own(completion: str, score: float) -> None:
    assert CODE.verify(completion, HUMAN_EVAL).score == score


def test_the_twins_of_a_row_score_one_and_less() -> None:
    accepted, rejected = CODE.accepted(HUMAN_EVAL), CODE.rejected(HUMAN_EVAL)
    assert accepted is not None and CODE.verify(accepted, HUMAN_EVAL).score == 1
    assert rejected is not None and CODE.verify(rejected, HUMAN_EVAL).score == 0.1
    for solution in (None, "def f(:", "x = 1"):
        assert CODE.rejected(Task("", solution=solution)) is None
    assert CODE.accepted(TASK) is None


def test_a_task_that_redefines_a_builtin_may() -> None:
    task = Task("", solution="def sum(a, b): return a - b", columns={"tests": ["assert sum(5, 3) == 2"]})
    assert CODE.verify("def sum(a, b): return a - b", task).score == 1.0


def test_a_function_may_be_named_like_a_module() -> None:
    task = Task("", columns={"tests": ["assert copy(2) == [2]"]})
    assert CODE.verify("def copy(x): return [x]", task).score == 1.0


def test_no_code_runs_unless_allowed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^the verifier code runs programs that the model writes$") as caught:
        Code().verify("def double(x): return 2 * x", TASK)
    assert with_remedy(caught.value) == (
        "the verifier code runs programs that the model writes; "
        "add --allow-code-execution if the model's programs may run here, in a sandbox"
    )


@pytest.mark.parametrize("tests", [None, [], [1], 7])
def test_a_row_without_tests_is_an_error(tests: object) -> None:
    task = Task("", solution="x = 1", columns={"tests": tests}, place="a.jsonl:3")
    for ask in (lambda: CODE.verify("x = 1", task), lambda: CODE.accepted(task)):
        with pytest.raises(
            DataError, match="^a.jsonl:3: column tests is .*; it has to be a list of statements"
        ) as caught:
            ask()
        assert "correct these rows" in with_remedy(caught.value)


def mbpp(shared: Path) -> list[Task]:
    with gzip.open(shared / "data/mbpp/mbpp.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Task(
            row["text"],
            solution=row["code"],
            columns={"tests": row["test_list"], "setup": row["test_setup_code"]},
            place=f"mbpp:{row['task_id']}",
        )
        for row in rows
    ]


def twins(task: Task, code: Code = CODE) -> tuple[float, float]:
    return code.verify(str(code.accepted(task)), task).score, code.verify(str(code.rejected(task)), task).score


def test_real_solutions_pass_and_their_twins_fail(shared: Path) -> None:
    # 126 redefines sum, 367 has classes in its setup, 533 passes types.
    for task in [task for task in mbpp(shared) if task.place in ("mbpp:11", "mbpp:126", "mbpp:367", "mbpp:533")]:
        assert twins(task) == (1.0, 0.1), task.place


@pytest.mark.slow
def test_every_real_solution_passes_and_its_twin_fails(shared: Path) -> None:
    start, tasks = time.monotonic(), mbpp(shared)
    patient = Code(timeout=30.0, allowed=True)  # mbpp:123 takes five seconds anywhere
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda task: twins(task, patient), tasks))
    print(f"{len(tasks)} pairs in {time.monotonic() - start:.0f} s")
    assert {task.place: pair for task, pair in zip(tasks, found, strict=True) if pair != (1.0, 0.1)} == {}
