r"""Readers for published tasks whose answers can be checked: word problems, multiple choice, code with tests.

The column `gold` is the final answer alone, as a text. The row's answer is the worked solution; without one it is the
bare final answer. Code has no gold answer but the columns `tests` (a list of programs, each fails by raising) and
`setup` (what runs before them).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from onebase.reading.fields import Fields
from onebase.reading.layouts import prompt_key
from onebase.records import Message, Row
from onebase.shown import number_of

_BOXED = re.compile(r"\\(?:boxed|fbox)(?=[\s{])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
"""A brace, or an escaped character, which may be one."""
_BARE_KEYS = ("golden", "answer_number")
_CHOSEN_KEYS = ("correct", "answerKey", "answer_idx", "answer", "label")
_OPTION = re.compile(r"(?:options?|choices?|opt?)?[ _-]?([A-H]|(?<=.)[a-h1-8])")
"""A key that holds one option: `A`, `option_b`, `opa`, `choice 1`."""
_LETTERED = re.compile(r"\A\s*\(?([A-Z])[).:]\s*(.*?)\s*\Z", re.DOTALL)
"""An option behind its letter."""


def last_boxed(solution: str) -> str | None:
    r"""The content of the last `\boxed{..}`, also written `\fbox{..}` or `$\boxed 2$`; None if there is none."""
    found = list(_BOXED.finditer(solution))
    if not found:
        return None
    start = found[-1].end()
    if solution[start : start + 1] != "{":
        return solution[start:].partition("$")[0].strip() or None
    depth = 0
    for brace in _BRACE.finditer(solution, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return solution[start + 1 : brace.start()].strip() or None
    return None


def read_math(fields: Fields) -> Row:
    """A problem of MATH: the gold answer is `answer`, or what the solution boxes."""
    prompt, solution = fields.prompt("problem"), fields.text("solution", "")
    if fields.values.get("answer") is not None or not solution:
        return _with_gold(fields, prompt, _bare(fields, "answer"), solution)
    gold = last_boxed(solution)
    if gold is None:
        fields.notes.append("no \\boxed{..} in 'solution' to read the gold answer from")
    return _with_gold(fields, prompt, gold, solution)


def word_problem_keys(row: Mapping[str, Any]) -> tuple[tuple[str, ...], str] | None:
    """The keys of a word problem's question and of its number, as in SVAMP (in any case), CMATH or MGSM."""
    written = {key.lower(): key for key in row}
    for parts in (("body", "question"), ("question_concat",)):
        if "answer" in written and all(part in written for part in parts):
            return tuple(written[part] for part in parts), written["answer"]
    key = prompt_key(row) or ("problem" if "problem" in row else None)
    number = next((name for name in _BARE_KEYS if name in row), None)
    if number is None and type(row.get("answer")) in (int, float):
        number = "answer"
    return None if key is None or number is None else ((key,), number)


def read_word_problem(fields: Fields) -> Row:
    """A word problem as in SVAMP, CMATH or MGSM: gold is its number; a worked answer, if any, is the row's answer."""
    keys = word_problem_keys(fields.values)
    assert keys is not None, "the layout was told by these keys"
    asked, number = keys
    if len(asked) == 1:
        prompt = fields.prompt(asked[0])
    else:
        text = " ".join(fields.text(key).strip() for key in asked)
        prompt = (*fields.system(), Message("user", text))
    fields.notes.append(f"question read from {' and '.join(map(repr, asked))}, gold from '{number}'")
    worked = fields.values.get("answer") if number in _BARE_KEYS else None
    return _with_gold(fields, prompt, _bare(fields, number), worked if isinstance(worked, str) else "")


def is_choice(row: Mapping[str, Any]) -> bool:
    """Whether a row has a question, its options and the right one, and no answer written out."""
    options = "options" in row or "choices" in row or bool(option_keys(row))
    return options and prompt_key(row) is not None and "completion" not in row and any(k in row for k in _CHOSEN_KEYS)


def option_keys(row: Mapping[str, Any]) -> dict[str, str]:
    """The keys that hold an option each, by their letter or number, if these count on from A, a or 1."""
    found = {match[1]: key for key in row if (match := _OPTION.fullmatch(key))}
    for first in "Aa1":
        names = [name for n in range(8) if (name := chr(ord(first) + n)) in found]
        if len(names) > 1 and names[0] == first and ord(names[-1]) - ord(first) == len(names) - 1:
            return {name: found[name] for name in names}
    return {}


def read_choice(fields: Fields) -> Row:
    """Multiple choice as in AQuA, MMLU or ARC: the options end the prompt, one per line; gold is the right letter."""
    prompt = fields.prompt(str(prompt_key(fields.values)))
    labels, texts = _options(fields)
    letters = list(ascii_uppercase[: len(texts)])
    found = [_LETTERED.match(text) for text in texts]
    lettered = [match[1] if match else "" for match in found] == letters
    lines = texts if lettered else [f"{letter}) {text}" for letter, text in zip(letters, texts, strict=True)]
    if not _lists(prompt[-1].content, lines):
        prompt = (*prompt[:-1], replace(prompt[-1], content="\n".join([prompt[-1].content, *lines])))
    right = _chosen(fields, labels or letters, texts)
    return _with_gold(fields, prompt, letters[right], fields.text("rationale", ""))


def _lists(question: str, lines: list[str]) -> bool:
    """Whether the question already shows every option behind its letter."""
    options = [part for line in lines for part in _LETTERED.findall(line)]
    return all(re.search(rf"\b{letter}\W{{1,3}}{re.escape(text)}(?!\w)", question) for letter, text in options)


def _options(fields: Fields) -> tuple[list[str], list[str]]:
    """The options' own labels, if they have any, and their texts: from a list, `{label, text}` or `{A: .., B: ..}`."""
    key = next((key for key in ("options", "choices") if key in fields.values), "")
    if not key:
        keys = option_keys(fields.values)
        given = [fields.checked(name, fields.values[name]) for name in keys.values()]
        return list(keys), given
    value = fields.untaken(key)
    labels: Any = []
    if isinstance(value, dict):
        labels, value = (value.get("label", []), value["text"]) if "text" in value else (list(value), [*value.values()])
    needed = f"2 to {number_of(len(ascii_uppercase), 'text')}, one per option"
    if not isinstance(value, list) or not 2 <= len(value) <= len(ascii_uppercase):
        raise fields.wrong(key, value, needed)
    texts = [fields.checked(key, text, needed) for text in value]
    if not isinstance(labels, list) or len(labels) not in (0, len(texts)):
        raise fields.wrong(f"{key}.label", labels, f"a list of {number_of(len(texts), 'label')}, one per option")
    return [str(label) for label in labels], texts


def _chosen(fields: Fields, labels: list[str], texts: list[str]) -> int:
    """Which option is right: named by its label, its place from 0, or its text."""
    key = next(key for key in _CHOSEN_KEYS if key in fields.values)
    value, letters = fields.untaken(key), list(ascii_uppercase[: len(texts)])
    if type(value) is int and str(value) in labels:
        value = str(value)
    if isinstance(value, str):
        if (label := value.strip(" ().:")) in labels:
            if labels != letters:
                fields.notes.append(f"the label in '{key}' read as its option's letter, so A for {labels[0]}")
            return labels.index(label)
        if texts.count(value) == 1:
            fields.notes.append(f"the text in '{key}' read as its option's letter")
            return texts.index(value)
    elif type(value) is int and 0 <= value < len(texts):
        fields.notes.append(f"the number in '{key}' read as its option's letter, so A for 0")
        return value
    needed = f"one of {', '.join(labels)}, a place from 0 to {len(texts) - 1}, or the text of one option"
    raise fields.wrong(key, value, needed)


def read_tested_code(fields: Fields) -> Row:
    """MBPP, also sanitized: the prompt shows the tests, whose calls tell the function's name."""
    asked = fields.text("text" if "text" in fields.values else "prompt")
    tests = [_code(fields, "test_list", test) for test in fields.items("test_list", "a list of tests")]
    imports = fields.take("test_imports", [])
    if not isinstance(imports, list):
        raise fields.wrong("test_imports", imports, "a list of import lines")
    setup = [_code(fields, "test_imports", line) for line in imports]
    setup += [_code(fields, "test_setup_code", fields.take("test_setup_code", ""))]
    prompt = "\n".join([asked, "Your code should pass these tests:", *tests])
    row = fields.row((*fields.system(), Message("user", prompt)), (_code(fields, "code", fields.take("code")),))
    return replace(row, columns={**row.columns, "tests": tests, "setup": "\n".join(filter(None, setup))})


def read_function(fields: Fields) -> Row:
    """HumanEval: the prompt is the beginning of a function, and the answer its body."""
    start, body, test = (_code(fields, key, fields.take(key)) for key in ("prompt", "canonical_solution", "test"))
    name = fields.text("entry_point")
    row = fields.row((*fields.system(), Message("user", start)), (body,))
    checked = {"tests": [f"{test}\ncheck({name})"], "setup": "", "code_prompt": start, "entry_point": name}
    return replace(row, columns={**row.columns, **checked})


def _code(fields: Fields, key: str, value: Any) -> str:
    return fields.checked(key, value).replace("\r\n", "\n").replace("\r", "\n")


def _bare(fields: Fields, key: str) -> str:
    """A final answer as a text; a number without needless decimals. The key stays a column."""
    value = fields.values.get(key)
    if isinstance(value, str) and value.strip():
        return value.strip()
    if type(value) not in (int, float):
        raise fields.wrong(key, value, "the final answer, a text or a number")
    return f"{value:.0f}" if float(value).is_integer() else repr(value)  # type: ignore[arg-type]


def _with_gold(fields: Fields, prompt: tuple[Message, ...], gold: str | None, solution: str) -> Row:
    answers = (solution,) if solution else (gold,) if gold else ()
    row = fields.row(prompt, answers)
    return row if gold is None else replace(row, columns={**row.columns, "gold": gold})
