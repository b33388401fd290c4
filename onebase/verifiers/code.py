"""Code against unit tests: a verifier that runs a completion in a sandbox."""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from onebase.errors import ConfigError, DataError, VerifierError
from onebase.shown import shown
from onebase.verifiers.extract import at
from onebase.verifiers.sandbox import run_tests
from onebase.verifiers.verifier import Task, Verdict

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})([^`]*)")
_PYTHON = ("python", "py", "python3")
COMPILES = 0.1
"""The score of a program that compiles and fails."""


@dataclass(frozen=True, slots=True)
class Code:
    """Score 1 if the program in a completion passes all of the row's tests, 0.1 if it only compiles, else 0.

    The program is the completion's last fenced block tagged as Python, else its last block without a tag, else all of
    it. A row's columns are `tests` (a list of statements that raise if the program is wrong), `setup` (statements
    before them) and, for rows that let the completion continue a function, `code_prompt` (its beginning) and
    `entry_point` (its name). What stands above that function in `code_prompt`, the tests have from the row.

    Program and tests run in two processes (`sandbox.py`), and values cross by what they say. So:

    - Only the standard library can be imported.
    - Arguments are copies: a test does not see that a function changed one in place.
    - A named tuple arrives as a tuple, and every subclass of a plain type as that type.
    - An object of any other class (Fraction, Decimal, deque, ...) never equals one that a test makes.

    A program out of time is a VerifierError, which a run counts.

    Args:
        timeout: seconds for the program and all its tests.
        memory_mb: address space of the program.
        partial: a program that passes some of its tests gets their share, at least 0.1.
        allowed: whether the user has allowed code of a model to run on this machine.
    """

    timeout: float = 10.0
    memory_mb: int = 512
    partial: bool = False
    allowed: bool = False

    name = "code"
    decides = True
    slow = True

    def verify(self, completion: str, task: Task) -> Verdict:
        """Runs the completion's program against the row's tests.

        Raises:
            ConfigError: running code is not allowed, or no sandbox starts here.
            DataError: the row has no tests.
            VerifierError: the program took too long, or its sandbox did not start.
        """
        if not self.allowed:
            raise ConfigError("the verifier code runs programs that the model writes", remedy="code-not-allowed")
        tests, setup = _tests(task), str(task.columns.get("setup") or "")
        program = _program(completion, task)
        outcome = run_tests(
            program,
            tests,
            setup=setup,
            preamble=_helpers(task),
            shadowed=_redefined(task, [*tests, setup]),
            timeout=self.timeout,
            memory_mb=self.memory_mb,
        )
        if not outcome.finished:
            raise VerifierError(outcome.reason)
        share, note = outcome.passed / len(tests), shown(outcome.reason, 120) or None
        if not outcome.compiled:
            return Verdict(0.0, note=note)
        if share == 1:
            return Verdict(1.0)
        return Verdict(max(COMPILES, share) if self.partial else COMPILES, note=note)

    def accepted(self, task: Task) -> str | None:
        """The row's own solution.

        Raises:
            DataError: the row has no tests.
        """
        _tests(task)
        return task.solution

    def rejected(self, task: Task) -> str | None:
        """The row's solution, every function of which returns an object equal to nothing."""
        if task.solution is None:
            return None
        tree = _tree(_program(task.solution, task))
        if tree is None:
            return None
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        for function in functions:
            function.body = ast.parse("return object()").body
        for node in ast.walk(tree):
            # `f = lambda ...` is a function too.
            if isinstance(node, ast.Lambda):
                node.body = ast.parse("object()", mode="eval").body
        return f"```python\n{ast.unparse(tree)}\n```" if functions else None


def _program(completion: str, task: Task) -> str:
    """The completion's program, with the row's beginning of it unless the completion has that itself."""
    text = _code_of(completion.replace("\r\n", "\n"))
    prompt, entry = task.columns.get("code_prompt"), task.columns.get("entry_point")
    if not prompt:
        return text
    # Searched, not parsed: deeply nested code can crash the parser, and this is our own process.
    if entry and re.search(
        rf"^(?:(?:async )?def|class) {re.escape(str(entry))}\b|^{re.escape(str(entry))} *=", text, re.M
    ):
        # What stands above the function, imports and helpers, is the row's.
        return f"{_preamble(str(prompt), str(entry))}\n{text}"
    return f"{prompt}{text}"


def _code_of(text: str) -> str:
    """The text's last block fenced as Python, else its last one without a tag, else all of it.

    The fences are CommonMark's: one closes with its own mark or a longer one, and the last one needs none.
    """
    blocks: list[tuple[str, list[str]]] = []
    mark = ""
    for line in text.split("\n"):
        fence = _FENCE.fullmatch(line)
        tag = "".join(fence[2].lower().split()[:1]) if fence else ""
        if not mark and fence:
            mark = fence[1]
            blocks.append((tag, []))
        elif fence and fence[1].startswith(mark) and not tag:
            mark = ""
        elif mark:
            blocks[-1][1].append(f"{line}\n")
    for tags in (_PYTHON, ("",)):
        found = ["".join(lines) for tag, lines in blocks if tag in tags]
        if found:
            return found[-1]
    return text


def _preamble(prompt: str, entry: str) -> str:
    """What stands in a row's beginning above its function or class, and above that one's decorators."""
    found = re.search(rf"^(?:@.*\n)*(?:(?:async )?def|class) {re.escape(entry)}\b", prompt, re.M)
    return prompt[: found.start()] if found else ""


def _helpers(task: Task) -> str:
    """The row's preamble as the tests run it, so that no completion replaces a function that checks it.

    Without classes: the program's objects are of the program's classes.
    """
    tree = _tree(_preamble(str(task.columns.get("code_prompt") or ""), str(task.columns.get("entry_point") or "")))
    if tree is None:
        return ""
    tree.body = [node for node in tree.body if not isinstance(node, ast.ClassDef)]
    return ast.unparse(tree)


def _tests(task: Task) -> list[str]:
    """The row's tests; a lone definition of `check`, as HumanEval has it, gets its call."""
    tests = task.columns.get("tests")
    if isinstance(tests, str):
        tests = [tests]
    if not isinstance(tests, Sequence) or not tests or not all(isinstance(test, str) for test in tests):
        raise DataError(
            f"{at(task)}column tests is {shown(repr(tests), 60)}; it has to be a list of statements", remedy="no-gold"
        )
    whole = [str(test).replace("\r\n", "\n") for test in tests]
    entry = task.columns.get("entry_point")
    if entry:
        called = re.compile(r"^check\(", re.M)
        if re.search(r"^def check\(", "\n".join(whole), re.M) and not any(called.search(test) for test in whole):
            whole[-1] += f"\n\ncheck({entry})\n"
    return whole


def _redefined(task: Task, statements: Sequence[str]) -> list[str]:
    """Names of builtins and modules that the task is to redefine: those that its own solution or entry point defines.

    Of modules, also those that its tests call: a module cannot be called.
    """
    tree = _tree(_program(task.solution, task)) if task.solution is not None else None
    called = re.findall(r"(?<![\w.])\w+(?=\()", "\n".join(statements))
    names = {task.columns.get("entry_point"), *sys.stdlib_module_names.intersection(called)}
    for node in tree.body if tree is not None else []:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return sorted(name for name in names if name and (hasattr(builtins, name) or name in sys.stdlib_module_names))


def _tree(program: str) -> ast.Module | None:
    """The syntax of a row's own program; None if it does not compile."""
    try:
        return ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
