from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

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
    return FunctionReward(f"{module}:score").score(request(list(completions)))


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
    scores = source.score(request(["4", "5"], answer=["4", "4"], level=[(1,), None], unit=["m", "s"]))
    assert source.name == f"{module}:score" and scores.tolist() == [1.0, 0.0]
    assert sys.modules[module].seen == {
        "prompts": ["prompt 0", "prompt 1"], "completions": ["4", "5"], "answer": ["4", "4"], "level": [(1,), None],
        "others": {"unit": ["m", "s"]},
    }  # fmt: skip


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
    module = write("greedy", "def score(prompts, completions, answer):\n    n = len(completions)\n    prompts.clear(); "
                   "completions.clear(); answer.clear()\n    return [1.0] * n\n")  # fmt: skip
    asked = request(["a", "b"], answer=[1, 2])
    assert FunctionReward(f"{module}:score").score(asked).tolist() == [1.0, 1.0]
    assert list(asked.prompts) == ["prompt 0", "prompt 1"] and asked.columns["answer"] == [1, 2]


def test_a_method_inside_a_class_and_a_callable_object_are_found(write: Write) -> None:
    module = write("classes", "class Rewards:\n    @staticmethod\n    def score(prompts, completions):\n        return "
                   "[2.0] * len(prompts)\n    def __call__(self, prompts, completions):\n        return [3.0] * "
                   "len(prompts)\nscorer = Rewards()\n")  # fmt: skip
    assert FunctionReward(f"{module}:Rewards.score").score(request(["a"])).tolist() == [2.0]
    assert FunctionReward(f"{module}:scorer").score(request(["a"])).tolist() == [3.0]


def test_a_wrong_count_is_said(write: Write) -> None:
    assert "gave 2 scores for 3 completions" in failure(write, "return [0.0, 1.0]")
    assert "gave 4 scores for 3 completions" in failure(write, "return [0.0] * 4")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("math.nan", "nan"), ("-math.inf", "-inf"), ("'high'", "'high'"), ("None", "None"), ("[1.0]", "[1.0]"),
        ("1e300", "1e+300"), ("10 ** 400", "1000000"), ("1j", "1j"),
    ],
)  # fmt: skip
def test_what_is_no_finite_number_is_shown_with_its_completion(write: Write, given: str, shown: str) -> None:
    message = failure(write, f"return [0.0, {given}, 1.0]")
    assert f"gave {shown}" in message and "for the completion 'bb'" in message
    assert "a finite number is needed" in message


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
        f"reward.callable {module}:score gave no scores for 2 completions within 0.2 seconds; look at what it waits "
        "for, or raise reward.timeout"
    )


def test_within_a_time_limit_scores_and_errors_are_those_without_one(write: Write) -> None:
    body = "def score(prompts, completions, **columns):\n    return [len(c) for c in completions]\n\n"
    module = write("rewards", body + "def fails(prompts, completions, **columns):\n    return [1 / 0]\n")
    for timeout in (None, 60.0):
        assert FunctionReward(f"{module}:score", timeout=timeout).score(request(["a", "bb"])).tolist() == [1, 2]
        with pytest.raises(RewardError, match=rf"{module}:fails failed at .*{module}.py:5: ZeroDivisionError"):
            FunctionReward(f"{module}:fails", timeout=timeout).score(request(["a"]))
