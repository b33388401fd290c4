from __future__ import annotations

import io
import itertools
import os
import random
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from onebase.errors import ConfigError, RewardError
from onebase.records import Example, ScoreRequest
from onebase.rewards.functions import FunctionReward, load_function

Write = Callable[[str, str], str]
numbers = itertools.count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module in the working directory and gives its name, a new one every time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def module(name: str, text: str) -> str:
        name = f"{name}_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return module


def request(completions: list[str], **columns: list[object]) -> ScoreRequest:
    examples = [Example([1], [[2]]) for _ in completions]
    return ScoreRequest(examples, [f"prompt {i}" for i in range(len(completions))], completions, columns)


def scored(write: Write, body: str, *, completions: tuple[str, ...] = ("a", "bb", "ccc")) -> torch.Tensor:
    module = write("rewards", f"import math\n\ndef score(prompts, completions, **columns):\n    {body}\n")
    return FunctionReward(f"{module}:score").score(request(list(completions))).total


def failure(write: Write, body: str) -> str:
    with pytest.raises(RewardError) as caught:
        scored(write, body)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("reward.callable rewards_") and ":score " in message
    assert caught.value.exit_code == 1
    return message


def test_scores_are_float32_in_the_order_of_the_completions(write: Write) -> None:
    scores = scored(write, "return [len(c) / 2 for c in completions]")
    assert scores.dtype == torch.float32 and scores.tolist() == [0.5, 1.0, 1.5] and scores.device.type == "cpu"


def test_columns_are_handed_over_by_name_as_lists(write: Write) -> None:
    module = write(
        "columns",
        "seen = {}\n"
        "def score(prompts, completions, *, answer, level, **others):\n"
        "    seen.update(prompts=prompts, completions=completions, answer=answer, level=level, others=others)\n"
        "    return [float(a == c) for a, c in zip(answer, completions)]\n",
    )
    source = FunctionReward(f"{module}:score")
    scores = source.score(request(["4", "5"], answer=["4", "4"], level=[(1,), None], unit=["m", "s"])).total
    assert source.name == f"{module}:score" and scores.tolist() == [1.0, 0.0]
    assert sys.modules[module].seen == {
        "prompts": ["prompt 0", "prompt 1"],
        "completions": ["4", "5"],
        "answer": ["4", "4"],
        "level": [(1,), None],
        "others": {"unit": ["m", "s"]},
    }


@pytest.mark.parametrize(
    "body",
    [
        "return (True, 0, -2)",
        "return iter([1.0, 0.0, -2.0])",
        "import numpy; return numpy.array([1, 0, -2], dtype=numpy.float32)",
        "import numpy; return [numpy.float32(1), numpy.int64(0), numpy.float64(-2)]",
        "import torch; return torch.tensor([1.0, 0.0, -2.0])",
    ],
)
def test_any_kind_of_number_is_a_score(write: Write, body: str) -> None:
    assert scored(write, body).tolist() == [1.0, 0.0, -2.0]


def test_a_function_may_change_its_lists_without_changing_the_request(write: Write) -> None:
    module = write(
        "greedy",
        "def score(prompts, completions, answer):\n    n = len(completions)\n    prompts.clear(); "
        "completions.clear(); answer.clear()\n    return [1.0] * n\n",
    )
    asked = request(["a", "b"], answer=[1, 2])
    assert FunctionReward(f"{module}:score").score(asked).total.tolist() == [1.0, 1.0]
    assert list(asked.prompts) == ["prompt 0", "prompt 1"] and asked.columns["answer"] == [1, 2]


def test_a_method_inside_a_class_and_a_callable_object_are_found(write: Write) -> None:
    module = write(
        "classes",
        "class Rewards:\n    @staticmethod\n    def score(prompts, completions):\n        return "
        "[2.0] * len(prompts)\n    def __call__(self, prompts, completions):\n        return [3.0] * "
        "len(prompts)\nscorer = Rewards()\n",
    )
    assert FunctionReward(f"{module}:Rewards.score").score(request(["a"])).total.tolist() == [2.0]
    assert FunctionReward(f"{module}:scorer").score(request(["a"])).total.tolist() == [3.0]


def test_a_wrong_count_is_said(write: Write) -> None:
    assert "returned 2 scores for 3 completions" in failure(write, "return [0.0, 1.0]")
    assert "returned 4 scores for 3 completions" in failure(write, "return [0.0] * 4")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("math.nan", "nan"),
        ("-math.inf", "-inf"),
        ("'high'", "'high'"),
        ("None", "None"),
        ("[1.0]", "[1.0]"),
        ("1e300", "1e+300"),
        ("10 ** 400", "1000000"),
        ("1j", "1j"),
    ],
)
def test_what_is_no_finite_number_is_shown_with_its_completion(write: Write, given: str, shown: str) -> None:
    message = failure(write, f"return [0.0, {given}, 1.0]")
    assert f"returned {shown}" in message and "for the completion 'bb'" in message
    assert "expected a finite number" in message


def test_an_exception_inside_is_named_in_one_line(write: Write) -> None:
    assert re.search(r"failed at .*/rewards_\d+\.py:4: KeyError: 'gold'$", failure(write, "return columns['gold']"))
    message = failure(write, "raise ValueError('first\\nsecond')")
    assert re.search(r"failed at .*/rewards_\d+\.py:4: ValueError: first second$", message)


def test_the_line_that_is_named_is_the_users_own(write: Write) -> None:
    deep = failure(write, "import json; return json.loads('{')")
    assert re.search(r"failed at .*/rewards_\d+\.py:4: JSONDecodeError: ", deep), deep
    # What fails outside the function has no line of it.
    assert "score failed: TypeError: 'NoneType' object is not iterable" in failure(write, "return None")


def test_a_column_the_function_does_not_take_is_said(write: Write) -> None:
    module = write("strict", "def score(prompts, completions):\n    return [0.0] * len(prompts)\n")
    with pytest.raises(RewardError, match="unexpected keyword argument 'answer'"):
        FunctionReward(f"{module}:score").score(request(["a"], answer=[1]))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no_such_module_at_all:score", "No module named 'no_such_module_at_all'"),
        ("math:no_such_function", "has no attribute 'no_such_function'"),
        ("math:pi.real.more", "has no attribute 'more'"),
        ("math", "has no attribute ''"),
        ("math.sqrt", "No module named 'math.sqrt'"),
        (":score", "Empty module name"),
        (".here:score", "relative import"),
        ("", "Empty module name"),
    ],
)
def test_a_function_that_cannot_be_found_is_said(path: str, reason: str, write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        FunctionReward(path)
    message = str(caught.value)
    assert message.startswith(f"reward.callable: {path!r} cannot be imported: ") and reason in message
    assert "write module:function" in message and "\n" not in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def score(:\n", "SyntaxError"),
        ("raise RuntimeError('no licence\\nfound')\n", "RuntimeError: no licence found"),
        ("from math import nothing\n", "ImportError: cannot import name 'nothing'"),
    ],
)
def test_a_module_that_fails_as_it_is_imported_is_said(text: str, reason: str, write: Write) -> None:
    module = write("broken", text)
    with pytest.raises(ConfigError) as caught:
        load_function(f"{module}:score")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_called_is_said(write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        FunctionReward("math:pi")
    assert str(caught.value) == "reward.callable: 'math:pi' is a float, not a function"


def test_a_function_that_hangs_is_given_up_and_named(write: Write) -> None:
    module = write("rewards", "import time\n\ndef score(prompts, completions, **columns):\n    time.sleep(60)\n")
    started = time.monotonic()
    with pytest.raises(RewardError) as caught:
        FunctionReward(f"{module}:score", timeout=0.2).score(request(["a", "b"]))
    assert time.monotonic() - started < 5
    assert str(caught.value) == (
        f"reward.callable {module}:score returned no scores for 2 completions within 0.2 seconds"
    )
    assert caught.value.remedy == "reward-timeout"


def test_within_a_time_limit_scores_and_errors_are_those_without_one(write: Write) -> None:
    body = "def score(prompts, completions, **columns):\n    return [len(c) for c in completions]\n\n"
    module = write("rewards", body + "def fails(prompts, completions, **columns):\n    return [1 / 0]\n")
    for timeout in (None, 60.0):
        assert FunctionReward(f"{module}:score", timeout=timeout).score(request(["a", "bb"])).total.tolist() == [1, 2]
        with pytest.raises(RewardError, match=rf"{module}:fails failed at .*{module}.py:5: ZeroDivisionError"):
            FunctionReward(f"{module}:fails", timeout=timeout).score(request(["a"]))


# ------------------------------------------------------------------------------- what a function may do to the process


@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ("import sys; sys.exit()", "SystemExit"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise type('Own', (BaseException,), {})('x')", "Own: x"),
        ("raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})", "Mute: (Mute without a text:"),
        ("raise ValueError('\\x1b[31mred')", "ValueError: \\x1b[31mred"),
        ("return (1 / 0 for c in completions)", "ZeroDivisionError: division by zero"),
    ],
)
def test_whatever_a_function_raises_is_one_line(body: str, shown: str, timeout: float | None, write: Write) -> None:
    module = write("rewards", f"def score(prompts, completions):\n    {body}\n")
    with pytest.raises(RewardError) as caught:
        FunctionReward(f"{module}:score", timeout=timeout).score(request(["a"]))
    assert f"{module}.py:2: {shown}" in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            "type('Odd', (), {'__repr__': lambda self: 1 / 0})()",
            "returned a Odd whose repr raises ZeroDivisionError for",
        ),
        ("type('Odd', (float,), {'__abs__': lambda self: 1 / 0})(1)", "returned 1.0 for"),
        ("'\\x1b[2J'", "returned '\\x1b[2J' for"),
    ],
)
def test_a_score_that_cannot_even_be_shown_is_refused(given: str, shown: str, write: Write) -> None:
    assert shown in failure(write, f"return [{given}] * 3")


@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize("when", ["import", "call"])
def test_the_process_is_as_before_whatever_a_module_or_function_sets(
    when: str, timeout: float | None, write: Write, tmp_path: Path
) -> None:
    change = [
        "os.chdir(os.path.sep)",
        "torch.set_grad_enabled(False)",
        "torch.set_default_dtype(torch.float64)",
        "torch.set_default_device('meta')",
        "torch.set_num_threads(torch.get_num_threads() + 1)",
        "torch.use_deterministic_algorithms(True)",
        "torch.set_float32_matmul_precision('medium')",
        "warnings.simplefilter('error')",
        "sys.stdout.close(); sys.stderr.close()",
        "sys.stdout = sys.stderr = None",
        "os.umask(0o777)",
        "sys.excepthook = None",
    ]
    lines = "".join(f"    {line}\n" for line in change)
    module = write(
        "rewards",
        "import os, sys, torch, warnings\n\ndef change():\n" + lines + "\n"
        "def score(prompts, completions):\n    change()\n    return [1.0] * len(prompts)\n\n"
        "def good(prompts, completions):\n    return [1.0] * len(prompts)\n"
        + ("change()\n" if when == "import" else ""),
    )

    def umask() -> int:
        os.umask(mask := os.umask(0o077))
        return mask

    def state() -> list[object]:
        return [
            Path.cwd(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            list(warnings.filters),
            sys.stdout,
            sys.stderr,
            sys.stdout.closed,
            sys.stderr.closed,
            list(sys.path),
            sys.excepthook,
            umask(),
        ]

    before = state()
    source = FunctionReward(f"{module}:{'good' if when == 'import' else 'score'}", timeout=timeout)
    scores = source.score(request(["a", "b"])).total
    assert state() == before
    assert scores.dtype == torch.float32 and scores.device.type == "cpu"


def test_importing_a_module_that_seeds_leaves_the_random_states_and_its_calls_draw_anew(write: Write) -> None:
    module = write(
        "rewards",
        "import random, numpy, torch\nrandom.seed(1)\nnumpy.random.seed(1)\n"
        "torch.manual_seed(1)\n"
        "def score(prompts, completions):\n    return [random.random() for _ in prompts]\n",
    )

    def drawn() -> tuple[float, ...]:
        return random.random(), float(numpy.random.rand()), float(torch.rand(()))

    random.seed(5), numpy.random.seed(5), torch.manual_seed(5)
    expected = drawn()
    random.seed(5), numpy.random.seed(5), torch.manual_seed(5)
    source = FunctionReward(f"{module}:score")
    assert drawn() == expected
    assert source.score(request(["a"])).total != source.score(request(["a"])).total


def test_a_stream_closed_behind_our_back_is_said(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    module = write(
        "rewards",
        "import sys\nstream = sys.stdout._stream\n"
        "def score(prompts, completions):\n    stream.close()\n    return [1.0]\n",
    )
    with pytest.raises(RewardError, match=r"a reward function closed sys\.stdout"):
        FunctionReward(f"{module}:score").score(request(["a"]))


def test_a_working_directory_that_is_gone_is_said(write: Write, tmp_path: Path) -> None:
    module = write(
        "rewards",
        "import os\ndef score(prompts, completions):\n    os.chdir('/'); os.removedirs(folder)\n    return [1.0]\n",
    )
    source = FunctionReward(f"{module}:score")
    (tmp_path / "here").mkdir()
    os.chdir(tmp_path / "here")
    sys.modules[module].folder = str(tmp_path / "here")  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match=r"here: the working directory is gone after a reward function ran"):
        source.score(request(["a"]))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
        ("raise GeneratorExit\n", "GeneratorExit"),
        ("raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})\n", "Mute: (Mute without a text"),
    ],
)
def test_a_module_that_ends_the_process_as_it_is_imported_is_said(text: str, reason: str, write: Write) -> None:
    module = write("broken", text)
    with pytest.raises(ConfigError) as caught:
        load_function(f"{module}:score")
    assert f"'{module}:score' cannot be imported: {reason}" in str(caught.value)
    assert module not in sys.modules


def test_a_module_that_hangs_on_import_is_given_up_and_named(write: Write) -> None:
    module = write("slow", "import time\ntime.sleep(60)\ndef score(prompts, completions):\n    return []\n")
    started = time.monotonic()
    with pytest.raises(ConfigError, match=rf"{module}:score' was not imported within 0.2 seconds$") as caught:
        FunctionReward(f"{module}:score", timeout=0.2)
    assert caught.value.remedy == "reward-import-timeout"
    assert time.monotonic() - started < 5


# ------------------------------------------------------------------------------------------------ where it is found


def test_a_file_in_the_working_directory_stands_in_for_no_library(write: Write, tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("raise SystemExit('the wrong one')\n")
    (tmp_path / "beside_it.py").write_text("value = 2.0\n")
    module = write(
        "rewards",
        "import beside_it\n\ndef score(prompts, completions):\n    import colorsys\n    "
        "import beside_it_too\n    return [beside_it.value + beside_it_too.value]\n",
    )
    (tmp_path / "beside_it_too.py").write_text("value = 1.0\n")
    sys.modules.pop("colorsys", None)
    assert FunctionReward(f"{module}:score").score(request(["a"])).total.tolist() == [3.0]
    assert str(tmp_path) not in sys.path


def test_the_module_of_the_working_directory_is_the_one_that_is_meant(write: Write, tmp_path: Path) -> None:
    sys.modules.pop("colorsys", None)
    (tmp_path / "colorsys.py").write_text("def score(prompts, completions):\n    return [5.0]\n")
    try:
        assert FunctionReward("colorsys:score").score(request(["a"])).total.tolist() == [5.0]
    finally:
        del sys.modules["colorsys"]


def test_a_function_in_a_file_is_found_with_what_lies_beside_it(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "my rewards"
    folder.mkdir()
    (folder / "neighbour.py").write_text("value = 4.0\n")
    # Called like a library that is imported already.
    (folder / "random.py").write_text(
        "import dataclasses\nfrom neighbour import value\n\n@dataclasses.dataclass\n"
        "class Rewards:\n    weight: float\n\n"
        "count = 0\ndef score(prompts, completions):\n    global count\n    count += 1\n"
        "    return [Rewards(value).weight * count]\n"
    )
    source = FunctionReward("my rewards/random.py:score")
    assert source.score(request(["a"])).total.tolist() == [4.0]
    assert FunctionReward(f"{folder}/random.py:score").score(request(["a"])).total.tolist() == [8.0]  # the same module
    assert random.__file__ != str(folder / "random.py")
    with pytest.raises(ConfigError, match=r"'nowhere.py:score' cannot be imported: FileNotFoundError: there is no"):
        FunctionReward("nowhere.py:score")


# ----------------------------------------------------------------------------------------------- how it can be called


@pytest.mark.parametrize(
    ("parameters", "rows", "reason"),
    [
        ("completions", [{}], "cannot be called with prompts, completions: got an unexpected keyword"),
        ("prompts, completions", [{"a"}], "cannot be called with prompts, completions, a: got an unexpected"),
        ("prompts, completions", [{}, {"a"}], "cannot be called with prompts, completions, a: got an unexpected"),
        ("prompts, completions, a", [{"a"}, {}], "cannot be called with prompts, completions: missing a required"),
        ("prompts, completions, **more", [{"prompts"}], "the data has a column 'prompts', which is also"),
    ],
)
def test_a_function_that_cannot_take_the_columns_is_said_before_it_is_called(
    parameters: str, rows: list[set[str]], reason: str, write: Write
) -> None:
    module = write("rewards", f"def score({parameters}):\n    return []\n")
    with pytest.raises(ConfigError) as caught:
        FunctionReward(f"{module}:score").check_columns(rows)
    assert reason in str(caught.value) and str(caught.value).startswith("reward.callable: ")


def test_a_function_that_takes_the_columns_may_be_called(write: Write) -> None:
    module = write("rewards", "def score(prompts, completions, a, b=1, **more):\n    return []\n")
    FunctionReward(f"{module}:score").check_columns([{"a"}, {"a", "b"}, {"a", "c"}])
    FunctionReward("builtins:max").check_columns([{"a"}])  # which tells nothing of itself


SOURCE = """
import torch
from onebase.records import Scores

class Checked:
    name = "checked"

    def __init__(self):
        self.calls = 0

    def score(self, request):
        self.calls += 1
        right = torch.tensor([float(text == "4") for text in request.completions])
        return Scores(right - 0.1 * self.calls, {"right": right, "calls": [self.calls] * len(right)}, {1: "no answer"})
"""


def test_a_class_is_a_source_of_its_own_with_parts_failures_and_a_state(write: Write) -> None:
    source = FunctionReward(f"{write('sources', SOURCE)}:Checked")
    source.check_columns([{"prompts"}])  # it sees the request, whatever the columns are called
    first, second = (source.score(request(["4", "5"])) for _ in range(2))
    assert first.total.tolist() == pytest.approx([0.9, -0.1]) and second.total.tolist() == pytest.approx([0.8, -0.2])
    assert {name: part.tolist() for name, part in second.parts.items()} == {"right": [1.0, 0.0], "calls": [2.0, 2.0]}
    assert second.failures == {1: "no answer"}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[1.0, 2.0]", r"returned \[1.0, 2.0\]; its score\(\) has to return Scores"),
        ("Scores(torch.ones(3))", "returned 3 scores for 2 completions"),
        ("Scores(torch.tensor([1.0, torch.nan]))", "returned nan for the completion '5'"),
        ("Scores(torch.ones(2), {'part': torch.ones(1)})", "returned 1 score for 2 completions"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_what_a_source_gives_is_checked(returned: str, message: str, write: Write) -> None:
    text = "import torch\nfrom onebase.records import Scores\nclass Bad:\n    def score(self, request):\n"
    module = write("sources", f"{text}        return {returned}\n")
    with pytest.raises(RewardError, match=message):
        FunctionReward(f"{module}:Bad").score(request(["4", "5"]))
