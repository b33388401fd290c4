"""Reading files into rows: every layout, every message, and the real files with their known row counts."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from onebase.data.remarks import remarks
from onebase.data.selection import drop_unusable, split_by_prompt
from onebase.errors import DataError
from onebase.reading.formats import detect, read_files, read_rows
from onebase.records import Message, Row


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def written(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def only(folder: Path, row: dict[str, Any]) -> Row:
    (read,) = read_rows(written(folder, [row]))
    return read


def refusal(folder: Path, *rows: Any) -> str:
    """The message for a file of these rows, without the name of the file and the last row."""
    path = written(folder, list(rows))
    with pytest.raises(DataError) as caught:
        read_rows(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}:{len(rows)}: ")
    return message.removeprefix(f"{path}:{len(rows)}: ")


# transcripts


def test_transcripts_share_everything_before_the_last_reply(tmp_path: Path) -> None:
    shared = "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nHuman: How are you?\n\nAssistant:"
    row = only(tmp_path, {"chosen": shared + " Fine, thanks. ", "rejected": shared + " Go\n\naway"})
    assert row.messages == (user("Hi there"), assistant("Hello."), user("How are you?"))
    assert row.answers == ("Fine, thanks.", "Go\n\naway")
    assert row.grades == (1.0, 0.0) and row.margin is None and row.columns == {}


def test_transcripts_that_part_early_keep_the_rest_as_a_transcript(tmp_path: Path) -> None:
    row = only(
        tmp_path,
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "rejected": "\n\nHuman: a\n\nAssistant: x\n\nAssistant: y",
        },
    )
    assert row.messages == (user("a"),)
    assert row.answers == ("b\n\nHuman: c\n\nAssistant: d", "x\n\nAssistant: y")


def test_the_shared_beginning_stops_at_a_user_turn(tmp_path: Path) -> None:
    shared = "\n\nHuman: a\n\nAssistant: b"
    row = only(tmp_path, {"chosen": shared + "\n\nAssistant: c", "rejected": shared + "\n\nHuman: d\n\nAssistant: e"})
    assert row.messages == (user("a"),)
    assert row.answers == ("b\n\nAssistant: c", "b\n\nHuman: d\n\nAssistant: e")


def test_an_answer_that_opens_with_a_user_turn_says_so(tmp_path: Path) -> None:
    row = only(
        tmp_path,
        {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "rejected": "\n\nHuman: a\n\nAssistant: d"},
    )
    assert row.messages == (user("a"),)
    assert row.answers == ("Human: b\n\nAssistant: c", "d")


def test_two_lists_of_messages_are_split_like_transcripts(tmp_path: Path) -> None:
    prompt = {"role": "user", "content": "q"}
    row = only(tmp_path, {key: [prompt, {"role": "assistant", "content": key}] for key in ("chosen", "rejected")})
    assert row.messages == (user("q"),) and row.answers == ("chosen", "rejected")


def test_bad_transcripts_are_named(tmp_path: Path) -> None:
    good = "\n\nHuman: a\n\nAssistant: b"
    assert refusal(tmp_path, {"chosen": "Hello", "rejected": good}).startswith(
        "'chosen' starts with 'Hello'; a transcript"
    )
    message = refusal(tmp_path, {"chosen": good, "rejected": "\n\nHuman: a"})
    assert message == "'rejected' ends in a user turn; end it in an assistant turn"
    message = refusal(tmp_path, {"chosen": good, "rejected": "\n\nHuman: z\n\nAssistant: b"})
    assert message == "'chosen' and 'rejected' share no user turn; give two answers to one prompt"
    assert refusal(tmp_path, {"chosen": good}) == "the key 'rejected' is missing; found chosen"
    message = refusal(tmp_path, {"chosen": 3, "rejected": good})
    assert message == "'chosen' is the number 3; expected a transcript or a list of messages"


# pairs


@pytest.mark.parametrize("key", ["prompt", "query", "question"])
def test_pairs_have_a_prompt_under_three_names(tmp_path: Path, key: str) -> None:
    row = only(tmp_path, {key: "q", "chosen": "a", "rejected": "b", "margin": 2, "source": "x"})
    assert row.messages == (user("q"),) and row.answers == ("a", "b")
    assert row.grades == (1.0, 0.0) and row.margin == 2.0 and row.columns == {"source": "x"}
    assert row.place.endswith("rows.jsonl:1")


def test_a_tie_has_equal_grades(tmp_path: Path) -> None:
    assert only(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b", "tie": True}).grades == (0.0, 0.0)
    assert only(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b", "tie": False}).grades == (1.0, 0.0)


def test_pairs_may_be_messages_with_or_without_the_prompt_in_them(tmp_path: Path) -> None:
    prompt, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    rows = read_rows(
        written(
            tmp_path,
            [
                {"prompt": [prompt], "chosen": [answer], "rejected": answer},
                {"prompt": "q", "chosen": [prompt, answer], "rejected": "a"},
                {"system": "s", "prompt": "q", "chosen": [prompt, answer], "rejected": "a"},
            ],
        )
    )
    assert [row.answers for row in rows] == [("a", "a")] * 3
    assert [row.messages for row in rows] == [(user("q"),), (user("q"),), (Message("system", "s"), user("q"))]


def test_an_instruction_may_carry_a_pair(tmp_path: Path) -> None:
    row = only(tmp_path, {"instruction": "do", "input": "this", "chosen": "a", "rejected": "b"})
    assert row.messages == (user("do\nthis"),) and row.answers == ("a", "b")


def test_bad_pairs_are_named(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    needed = "expected a string or a list of messages"
    assert refusal(tmp_path, {**pair, "chosen": None}) == f"'chosen' is null; {needed}"
    assert refusal(tmp_path, {**pair, "prompt": {"a": 1}}) == f"'prompt' is an object; {needed}"
    assert refusal(tmp_path, {**pair, "rejected": []}) == "'rejected' is an empty list; expected a list of messages"
    needed = "expected a number from 0 to 1000, how much better 'chosen' is"
    assert refusal(tmp_path, {**pair, "margin": "big"}) == f"'margin' is the string \"big\"; {needed}"
    for wrong in (-0.5, 1e300, 10**300, True):
        assert refusal(tmp_path, {**pair, "margin": wrong}).endswith(needed)
    assert (
        refusal(tmp_path, {**pair, "margin": float("nan")}) == "NaN is not a JSON number; use a finite number, or null"
    )
    assert refusal(tmp_path, {**pair, "tie": 1}) == "'tie' is the number 1; expected true or false"
    assert refusal(tmp_path, {"prompt": "q", "chosen": "a"}) == ("the key 'rejected' is missing; found prompt, chosen")
    turns = [{"role": "user", "content": "other"}, {"role": "assistant", "content": "a"}]
    assert refusal(tmp_path, {**pair, "chosen": turns}) == (
        "'chosen' holds the turns user, assistant; expected one assistant turn, alone or after the prompt's own turns"
    )
    assert refusal(tmp_path, {**pair, "prompt": turns}) == (
        "'prompt' ends in an assistant turn; move that turn to the answer, or to 'initial_reason_steps' if the answers "
        "are steps that follow it"
    )


# votes


PREDICTIONS = {f"prediction {number}": f"answer {number}" for number in range(1, 5)}


@pytest.mark.parametrize(
    ("votes", "grades"),
    [
        ([0, 1, 2, 1, 0, 2], (0.0, 1.0, -3.0, 2.0)),
        ([1, 1, 1, 1, 1, 1], (3.0, 1.0, -1.0, -3.0)),
        ([2, 2, 2, 2, 2, 2], (-3.0, -1.0, 1.0, 3.0)),
        ([0, 0, 0, 0, 0, 0], (0.0, 0.0, 0.0, 0.0)),
        ([1, 2, 0, 1, 0, 0], (0.0, 0.0, 0.0, 0.0)),  # 1 over 2 over 3 over 1
    ],
)
def test_votes_on_pairs_become_grades(tmp_path: Path, votes: list[int], grades: tuple[float, ...]) -> None:
    row = only(tmp_path, {"question": "q", "passages": [["p"]], **PREDICTIONS, "preference": votes, "gold": "g"})
    assert row.messages == (user("q"),) and row.answers == tuple(PREDICTIONS.values()) and row.grades == grades
    assert row.columns == {"passages": [["p"]], "gold": "g"}


def test_votes_are_read_for_any_number_of_predictions_and_any_prompt(tmp_path: Path) -> None:
    two = {"prediction 2": "b", "prediction 1": "a", "preference": [2]}
    row = only(tmp_path, {"instruction": "do", "input": "this", **two})
    assert row.messages == (user("do\nthis"),) and row.answers == ("a", "b") and row.grades == (-1.0, 1.0)
    eleven = {f"prediction {number}": str(number) for number in range(1, 12)}
    row = only(tmp_path, {"prompt": "q", **eleven, "preference": [1] * 55})
    assert row.answers == tuple(eleven.values()) and row.grades == tuple(float(g) for g in range(10, -11, -2))


def test_bad_votes_are_named(tmp_path: Path) -> None:
    good = {"question": "q", **PREDICTIONS, "preference": [0, 1, 2, 1, 0, 2]}
    assert refusal(tmp_path, {**good, "preference": [0, 1, 2]}) == (
        "'preference' holds 3 votes, and 4 predictions make 6 pairs, (1, 2), (1, 3) and so on; give one vote per pair"
    )
    needed = "expected 1 (the first is better), 2 (the second) or 0 (a tie)"
    for vote, found in ((3, "number 3"), (-1, "number -1"), (1.0, "number 1.0"), (True, "boolean true")):
        message = refusal(tmp_path, {**good, "preference": [0, 1, vote, 1, 0, 2]})
        assert message == f"'preference[2]' is the {found}; {needed}"
    assert refusal(tmp_path, {**good, "preference": 1}) == "'preference' is the number 1; expected a list of votes"
    assert refusal(tmp_path, {**good, "prediction 3": None}) == "'prediction 3' is null; expected a string"
    for number in (1, 3):
        missing = {key: value for key, value in good.items() if key != f"prediction {number}"}
        assert refusal(tmp_path, missing).startswith(f"the key 'prediction {number}' is missing; found question, ")
    missing = {key: value for key, value in good.items() if key != "prediction 4"}
    assert refusal(tmp_path, missing).startswith("'preference' holds 6 votes, and 3 predictions make 3 pairs")
    alone = {"question": "q", "prediction 1": "a", "preference": [1]}
    assert refusal(tmp_path, alone).startswith("the key 'prediction 2' is missing; found question, prediction 1")
    missing = {key: value for key, value in good.items() if key != "preference"}
    assert "do not match the layout of the file's first row, {prompt" in refusal(tmp_path, good, missing)


# next steps


def test_steps_have_their_beginning_as_a_prefix(tmp_path: Path) -> None:
    """The keys of Math-Step-DPO."""
    step = {
        "dataset": "d",
        "prompt": "1+1?",
        "initial_reason_steps": "Add.\nStep 2:",
        "chosen": " It is 2.",
        "rejected": " It is 3.",
        "full_chosen": "f",
        "full_rejected": "g",
        "answer": "2",
    }
    row = only(tmp_path, step)
    assert row.messages == (user("1+1?"),) and row.prefix == "Add.\nStep 2:"
    assert row.answers == (" It is 2.", " It is 3.") and row.grades == (1.0, 0.0)
    assert row.columns == {"dataset": "d", "full_chosen": "f", "full_rejected": "g", "answer": "2"}
    assert only(tmp_path, {**step, "initial_reason_steps": ""}).prefix == ""
    assert only(tmp_path, {**step, "initial_reason_steps": None}).prefix is None
    assert refusal(tmp_path, {**step, "initial_reason_steps": ["Add."]}) == (
        "'initial_reason_steps' is a list; expected a string"
    )


def test_every_prompt_may_have_a_prefix(tmp_path: Path) -> None:
    prefix, turns = {"initial_reason_steps": "So"}, [{"role": "user", "content": "q"}]
    rows: list[dict[str, Any]] = [
        {"prompt": "q"},
        {"prompt": turns, "completion": "a"},
        {"instruction": "q", "output": ["a", "b"]},
        {"messages": turns},
        {"messages": turns, "chosen": turns[0] | {"role": "assistant"}, "rejected": "b"},
        {"question": "q", "prediction 1": "a", "prediction 2": "b", "preference": [1]},
    ]
    for row in rows:
        read, plain = only(tmp_path, row | prefix), only(tmp_path, row)
        assert read.prefix == "So" and plain.prefix is None and read == replace(plain, prefix="So")
    # A plain text has no prompt to stand behind.
    text = only(tmp_path, {"text": "t", **prefix})
    assert text.prefix is None and text.columns == prefix


# instructions


def test_instructions_join_input_and_history(tmp_path: Path) -> None:
    row = only(
        tmp_path,
        {"system": "s", "instruction": "do", "input": "this", "output": "done", "history": [["q", "a"]], "id": 7},
    )
    assert row.messages == (Message("system", "s"), user("q"), assistant("a"), user("do\nthis"))
    assert row.answers == ("done",) and row.grades is None and row.columns == {"id": 7}


def test_an_instruction_without_input_stands_alone(tmp_path: Path) -> None:
    assert only(tmp_path, {"instruction": "do", "input": "", "output": "done"}).messages == (user("do"),)
    assert only(tmp_path, {"instruction": "do", "input": None, "output": "done"}).messages == (user("do"),)
    assert only(tmp_path, {"instruction": "do", "output": "done", "history": None}).messages == (user("do"),)


def test_a_list_of_outputs_is_ranked_best_first(tmp_path: Path) -> None:
    row = only(tmp_path, {"instruction": "do", "output": ["best", "middle", "worst"]})
    assert row.answers == ("best", "middle", "worst") and row.grades == (2.0, 1.0, 0.0)


def test_bad_instructions_are_named(tmp_path: Path) -> None:
    good = {"instruction": "do", "output": "done"}
    pairs = "expected a list of [user, assistant] pairs"
    assert refusal(tmp_path, {**good, "history": "x"}) == f"'history' is the string \"x\"; {pairs}"
    message = refusal(tmp_path, {**good, "history": [["a", "b"], ["a"]]})
    assert message == "'history[1]' is a list; expected a pair [user, assistant]"
    assert refusal(tmp_path, {**good, "history": [["a", 1]]}) == "'history[0][1]' is the number 1; expected a string"
    assert refusal(tmp_path, {**good, "output": []}) == (
        "'output' is an empty list; expected a string or a list of strings, best first"
    )
    assert refusal(tmp_path, {**good, "output": ["a", None]}) == "'output[1]' is null; expected a string"
    assert refusal(tmp_path, {**good, "instruction": True}) == "'instruction' is the boolean true; expected a string"
    assert refusal(tmp_path, {**good, "system": 4}) == "'system' is the number 4; expected a string"


@pytest.mark.parametrize("grade", [1e16, 10**300, True, "2", None])
def test_grades_are_numbers_that_can_be_told_apart(tmp_path: Path, grade: object) -> None:
    ranked = {"instruction": "q", "output": ["a", "b"], "grades": [grade, 1.0]}
    message = refusal(tmp_path, ranked)
    assert message.startswith("'grades' is ") and "a list of 2 numbers, one per answer" in message


# conversations


def test_the_last_assistant_message_is_the_answer(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    row = only(tmp_path, {"messages": turns, "label": True})
    assert row.messages == (Message("system", "s"), user("q")) and row.answers == ("a",)
    assert row.columns == {"label": True} and row.grades is None
    assert only(tmp_path, {"messages": turns[:2]}).answers == ()


@pytest.mark.parametrize("key", ["conversations", "messages"])
def test_a_conversation_may_carry_a_pair(tmp_path: Path, key: str) -> None:
    pair = {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}
    row = only(tmp_path, {key: [{"from": "human", "value": "q"}], **pair})
    assert row.messages == (user("q"),) and row.answers == ("a", "b") and row.grades == (1.0, 0.0)


def test_bad_conversations_are_named(tmp_path: Path) -> None:
    def message_of(turns: Any) -> str:
        return refusal(tmp_path, {"messages": turns})

    assert message_of([]) == "'messages' is an empty list; expected a list of messages"
    assert message_of("hi") == "'messages' is the string \"hi\"; expected a list of messages"
    needed = "expected a message {role, content} or {from, value}"
    assert message_of([{"role": "user"}]) == f"'messages[0]' is an object; {needed}"
    assert message_of(["hi"]) == f"'messages[0]' is the string \"hi\"; {needed}"
    message = message_of([{"role": "robot", "content": "x"}])
    assert message.startswith("'messages[0].role' is the string \"robot\"; expected one of system, user")
    message = message_of([{"role": "user", "content": None}])
    assert message == "'messages[0].content' is null; expected a string"
    message = message_of([{"role": "assistant", "content": "x"}])
    assert message == "'messages' holds only an answer; add the turn that it answers before it"
    turns = [{"role": "user", "content": "x"}]
    message = refusal(tmp_path, {"messages": turns, "label": "good"})
    assert message == "'label' is the string \"good\"; expected 0, 1, true or false"
    half = refusal(tmp_path, {"messages": [{"role": "user", "content": "ab\ud83d"}]})
    assert half == "'messages[0].content' holds half of a surrogate pair, U+D83D at character 2; remove it"


# text, prompts, SQuAD


def test_text_rows_have_no_messages(tmp_path: Path) -> None:
    row = only(tmp_path, {"text": "Once.", "id": 1})
    assert row.messages == () and row.answers == ("Once.",) and row.grades is None and row.columns == {"id": 1}


@pytest.mark.parametrize(("label", "grade"), [(1, 1.0), (0, 0.0), (True, 1.0)])
def test_labelled_text_is_graded(tmp_path: Path, label: int, grade: float) -> None:
    row = only(tmp_path, {"text": "good", "label": label})
    assert row.grades == (grade,) and row.columns == {"label": label}


def test_a_label_that_is_not_binary_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, {"text": "x", "label": 2}) == "'label' is the number 2; expected 0, 1, true or false"


def test_paragraphs_of_a_text_file_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes("\ufeffOne day.\r\nTwo lines.\r\n\r\n \t\r\n\r\n  第二段。\r\n".encode())
    rows = read_rows(path)
    assert [row.answers for row in rows] == [("One day.\nTwo lines.",), ("第二段。",)]
    assert [row.place for row in rows] == [f"{path}:1", f"{path}:2"]
    assert len(read_rows(path, limit=1)) == 1


def test_prompts_may_stand_alone_or_with_an_answer(tmp_path: Path) -> None:
    row = only(tmp_path, {"prompt": "q", "completion": " a", "label": False, "id": 3})
    assert row.messages == (user("q"),) and row.answers == (" a",) and row.columns == {"label": False, "id": 3}
    assert only(tmp_path, {"prompt": "q", "completion": None, "kind": "x"}).answers == ()
    row = only(tmp_path, {"question": "1+1", "answer": "#### 2"})
    assert row.answers == ("#### 2",) and row.columns == {"answer": "#### 2", "gold": "2"}
    turns = [{"role": "user", "content": "q"}]
    row = only(tmp_path, {"prompt": turns, "completion": [{"role": "assistant", "content": "a"}]})
    assert row.messages == (user("q"),) and row.answers == ("a",)


def squad(**question: Any) -> dict[str, Any]:
    asked = {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}], **question}
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "Ann was.", "qas": [asked]}]}]}


def test_squad_questions_are_prompts_with_columns(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad()), encoding="utf-8")
    (row,) = read_rows(path)
    assert row.messages == (user("Ann was.\n\nWho?"),) and row.answers == () and row.place == f"{path}:1"
    assert row.columns == {"title": "t", "id": "1", "context": "Ann was.", "question": "Who?", "gold": ["Ann"]}


def test_bad_squad_files_are_named_down_to_the_question(tmp_path: Path) -> None:
    def message_of(whole: dict[str, Any]) -> str:
        path = tmp_path / "squad.json"
        path.write_text(json.dumps(whole), encoding="utf-8")
        with pytest.raises(DataError) as caught:
            read_rows(path)
        return str(caught.value).removeprefix(str(path))

    where = ":1: data[0].paragraphs[0].qas[0]"
    assert message_of(squad(question=None)) == f"{where}: 'question' is null; expected a string"
    assert message_of(squad(answers={})) == (
        f"{where}: 'answers' is an empty object; expected a list of objects with the key 'text'"
    )
    assert message_of(squad(answers=[{"text": 5}])) == f"{where}: 'answers' is the number 5; expected a string"
    broken = squad()
    broken["data"].append({"title": "no paragraphs"})
    assert message_of(broken).startswith(": data[1]: the key 'paragraphs' is missing; found title")
    broken["data"][1] = "x"
    assert message_of(broken) == ': data[1] is the string "x"; expected an object'


# telling the layout


def test_detect_names_the_layout_of_a_row() -> None:
    assert detect({"chosen": "", "rejected": ""}) == "transcript"
    assert detect({"prompt": "", "chosen": "", "rejected": ""}) == "pair"
    assert detect({"instruction": "", "input": "", "output": ""}) == "instruction"
    assert detect({"conversations": []}) == "messages"
    assert detect({"conversations": [], "chosen": {}, "rejected": {}}) == "conversation_pair"
    assert detect({"messages": [], "label": True}) == "messages"
    assert detect({"text": ""}) == "text"
    assert detect({"question": "", "prediction 1": "", "preference": []}) == "votes"
    assert detect({"input": "", "output": ""}) == "input_output"
    assert detect({"question": "", "prediction": "", "preference": []}) == "prompt"
    assert detect({"question": "", "prediction 1": ""}) == "prompt"
    assert detect({"question": "", "chosen": "", "prediction 1": "", "preference": []}) == "pair"
    assert detect({"question": "", "answer": ""}) == "prompt"
    assert detect({"problem": "", "solution": ""}) == detect({"problem": "", "answer": 1}) == "math"
    assert (
        detect({"Body": "", "Question": "", "Answer": 1.0}) == detect({"question": "", "golden": ""}) == "word_problem"
    )
    assert detect({"question": "", "answer": 3}) == detect({"question_concat": "", "Answer": ""}) == "word_problem"
    assert detect({"question": "", "options": [], "correct": ""}) == "choice"
    assert detect({"question": "", "options": [], "completion": "", "label": True}) == "prompt"
    assert detect({"text": "", "code": "", "test_list": []}) == "tested_code"
    assert detect({"prompt": "", "code": "", "test_list": []}) == "tested_code"
    assert detect({"text": "", "code": ""}) == "text"
    assert detect({"prompt": "", "canonical_solution": "", "test": "", "entry_point": ""}) == "function"


def test_unknown_keys_are_listed_beside_the_usual_layouts(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"context": "", "reward": 1})
    assert message.startswith("no known layout has the keys context, reward; usual ones are {prompt, completion}, ")
    with pytest.raises(DataError, match=r"the first row: no known layout has the keys \(none\)"):
        detect({})


def test_a_row_of_another_layout_names_the_keys_expected(tmp_path: Path) -> None:
    assert refusal(tmp_path, {"prompt": "q"}, {"messages": []}) == (
        "the keys messages do not match the layout of the file's first row, {prompt | query | question}; "
        "complete this row, or move rows of another layout to their own file"
    )
    assert "do not match the layout" in refusal(
        tmp_path, {"prompt": "q"}, {"prompt": "q", "chosen": "", "rejected": ""}
    )


# files


def test_json_files_hold_a_list_or_an_object_with_one_list(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for whole in ([{"text": "a"}], {"version": 1, "rows": [{"text": "a"}]}):
        path.write_text(json.dumps(whole, indent=1), encoding="utf-8-sig")
        (row,) = read_rows(path)
        assert row.answers == ("a",) and row.place == f"{path}:1"


def test_gzipped_files_are_read_like_plain_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n'))
    assert read_rows(str(path))[0].answers == ("a",)


def test_line_numbers_count_empty_lines_and_strings_may_hold_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "a\u2028b"}\r\n\r\n{"text": "c"}'.encode())
    rows = read_rows(path)
    assert [row.answers[0] for row in rows] == ["a\u2028b", "c"]
    assert [row.place for row in rows] == [f"{path}:1", f"{path}:3"]


def test_a_limit_stops_before_later_rows_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\nnot json\n')
    assert len(read_rows(path, limit=2)) == 2
    with pytest.raises(AssertionError, match="limit is 0"):
        read_rows(path, limit=0)


def test_several_files_are_read_in_order_up_to_one_limit(tmp_path: Path) -> None:
    first = written(tmp_path, [{"text": "a"}, {"text": "b"}], "a.jsonl")
    second = written(tmp_path, [{"prompt": "c"}, {"prompt": "d"}], "b.jsonl")
    assert [row.place for row in read_files([first, str(second)], limit=3)] == [
        f"{first}:1",
        f"{first}:2",
        f"{second}:1",
    ]
    assert len(read_files([first, second])) == 4
    assert len(read_files([first, second], limit=2)) == 2


def test_every_fault_of_a_file_is_one_line(tmp_path: Path) -> None:
    def message_of(name: str, content: bytes | None = None) -> str:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_rows(path)
        message = str(caught.value)
        assert message.startswith(str(path)) and "\n" not in message
        return message.removeprefix(str(path))

    assert message_of("train.json", b"[]") == " holds an empty list; at least one row is needed"
    assert message_of("trian.json") == " does not exist; did you mean train.json?"
    assert message_of("zzzz.txt") == f" does not exist; check the path (nothing in {tmp_path} has a similar name)"
    assert message_of("none/a.json") == f" does not exist, nor does its folder {tmp_path / 'none'}; check the path"
    assert message_of("x" * 300 + ".txt").startswith(" does not exist; check the path")
    (tmp_path / "empty folder").mkdir()
    assert message_of("empty folder").startswith(" is a folder without data files (.json, .jsonl, ")
    assert message_of("a.pdf", b"%PDF-1.4").startswith(": unsupported file type; use .json, .jsonl, ")
    assert message_of("*.parquet") == " matches no file; check the pattern"
    assert message_of("empty.jsonl", b"\n \n") == " is empty; at least one row is needed"
    message = message_of("bad.jsonl.gz", b'{"text": "a"}')
    assert message.startswith(" is not a complete gzip file (Not a gzipped file") and message.endswith(
        "compress it again"
    )
    assert "is not a complete gzip file" in message_of("cut.jsonl.gz", gzip.compress(b'{"text": "a"}' * 99)[:-9])
    assert message_of("latin.txt", "caf\u00e9".encode("latin-1")) == ":1 is not UTF-8: byte 3 is 0xe9; save it as UTF-8"
    message = message_of("bad.jsonl", b'{"text": "a"}\n{"text": }\n')
    assert message == ":2: invalid JSON at column 10: Expecting value; correct the file there"
    message = message_of("bad.json", b'[\n{"text": "a"},\n{"text": "b",}]\n')
    assert message.startswith(":2: invalid JSON at line 3, column ")
    assert message_of("deep.json", b"[" * 200_000) == ":1: JSON is nested too deeply; flatten it"
    assert message_of("number.json", b"[1]") == ":1: the row is the number 1; expected an object"
    assert message_of("text.json", b'"%s"' % (b"x" * 99)).endswith("...; expected a list of objects")
    message = message_of("two.json", b'{"a": [], "b": [], "c": 1}')
    assert message.startswith(" holds one object with the keys a, b, c, and 2 of them hold lists; expected a list")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, [{"text": "a"}])
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read: Permission denied; check the disk and the permissions"):
        read_rows(path)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file whose first byte cannot be read")
def test_a_file_the_disk_does_not_give_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match="cannot be read: .*; check the disk and the permissions"):
        read_rows(path)


def test_a_path_below_a_file_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, [{"text": "a"}]) / "a.txt"
    with pytest.raises(DataError, match="nor does its folder"):
        read_rows(path)


# real files


REAL = [
    ("hh_rlhf/harmless-base-test.jsonl.gz", 2312, {2}),
    ("oasst1_zh/oaast_rm_zh.json.gz", 775, {2, 3, 4, 5, 6, 8, 10}),
    ("fine_grained_rlhf/dev_feedback.json.gz", 500, {4}),
    ("oasst1_zh/oaast_sft_zh.json.gz", 689, {1}),
    ("pandalm/testset-v1.json.gz", 999, {2}),
    ("taskmaster_sft/tm4_data_07.json.gz", 210, {1}),
    *((f"taskmaster_reward/tm4_reward_0{n}.json.gz", 228 if n == 6 else 500, {1}) for n in range(7)),
    ("llamafactory_demo/dpo_en_demo.json.gz", 300, {2}),
    ("llamafactory_demo/dpo_zh_demo.json.gz", 300, {2}),
    ("llamafactory_demo/kto_en_demo.json.gz", 300, {1}),
    ("llamafactory_demo/identity.json", 91, {1}),
    ("fastchat/dummy_conversation.json.gz", 500, {1}),
    ("xquad/xquad.en.json.gz", 1190, {0}),
    ("cmrc2018/cmrc2018_trial.json.gz", 1002, {0}),
    ("gsm8k/train.jsonl.gz", 7473, {1}),
    ("gsm8k/test.jsonl.gz", 1319, {1}),
    ("mbpp/mbpp.jsonl.gz", 974, {1}),
    ("sentiment/sentence_polarity.jsonl.gz", 10662, {1}),
    ("text_en/tinystories_sample.txt.gz", 1230, {1}),
    ("text_en/tinyshakespeare.txt.gz", 7222, {1}),
    ("text_en/grimms_fairy_tales.txt.gz", 969, {1}),
    ("text_en/wikitext2_test.txt.gz", 1320, {1}),
    ("text_en/wikitext2_valid.txt.gz", 1160, {1}),
    ("text_zh/hongloumeng.txt.gz", 2654, {1}),
    ("text_zh/xiyouji.txt.gz", 3311, {1}),
    ("text_zh/tang_poems_300.json.gz", 366, {1}),
    ("text_zh/song_ci_300.json.gz", 280, {1}),
]


@pytest.mark.parametrize(("name", "count", "answers"), REAL)
def test_real_files_are_read_whole(shared: Path, name: str, count: int, answers: set[int]) -> None:
    rows = read_rows(shared / "data" / name)
    assert len(rows) == count
    assert {len(row.answers) for row in rows} == answers
    assert len({row.place for row in rows}) == count
    assert all(row.grades is None or len(row.grades) == len(row.answers) for row in rows)
    assert all(not row.messages or row.messages[-1].role == "user" for row in rows)
    train, held_out = split_by_prompt(rows, 0.1, 0)
    assert abs(len(held_out) - count / 10) <= count / 50 and len(train) + len(held_out) == count


def test_real_transcripts_part_where_they_are_known_to(shared: Path) -> None:
    rows = read_rows(shared / "data/hh_rlhf/harmless-base-test.jsonl.gz")
    kept, dropped = drop_unusable(rows)
    assert len(kept) == 2308 and [len(places) for places in dropped.values()] == [4]
    assert all(answer == answer.strip() for row in rows for answer in row.answers)
    early = {int(row.place.rpartition(":")[2]) for row in rows if any("\n\nAssistant:" in text for text in row.answers)}
    assert early == {1255, 1689, 1951, 1953, 2037}
    # What was taken apart is the transcript again, but for the blanks around its turns.
    raw = gzip.open(shared / "data/hh_rlhf/harmless-base-test.jsonl.gz", "rt", encoding="utf-8").read().split("\n")
    names = {"user": "Human", "assistant": "Assistant"}
    for row, line in zip(rows, raw, strict=False):
        prompt = "".join(f"\n\n{names[turn.role]}: {turn.content}" for turn in row.messages)
        for answer, key in zip(row.answers, ("chosen", "rejected"), strict=True):
            assert f"{prompt}\n\nAssistant: {answer}".split() == json.loads(line)[key].split()


def test_real_rankings_and_labels_are_those_of_the_files(shared: Path) -> None:
    ranked = read_rows(shared / "data/oasst1_zh/oaast_rm_zh.json.gz")
    assert sum(len(row.answers) * (len(row.answers) - 1) // 2 for row in ranked) == 1809
    assert max(len(row.messages) for row in ranked) == 5
    labels = [row.columns["label"] for row in read_rows(shared / "data/llamafactory_demo/kto_en_demo.json.gz")]
    assert labels.count(True) == labels.count(False) == 150
    grades = [row.grades for row in read_rows(shared / "data/sentiment/sentence_polarity.jsonl.gz")]
    assert grades.count((1.0,)) == grades.count((0.0,)) == 5331
    systems = [
        row
        for row in read_rows(shared / "data/llamafactory_demo/dpo_zh_demo.json.gz")
        if row.messages[0].role == "system"
    ]
    assert len(systems) == 64
    for row in read_rows(shared / "data/xquad/xquad.en.json.gz"):
        assert row.columns["gold"] and all(text in row.columns["context"] for text in row.columns["gold"])


def test_real_votes_are_kept_by_the_order_of_their_grades(shared: Path) -> None:
    """The figures of the module's docstring."""
    file = shared / "data/fine_grained_rlhf/dev_feedback.json.gz"
    votes = [row["preference"] for row in json.loads(gzip.decompress(file.read_bytes()))]
    stated = contradicted = ties = ordered = 0
    for row, listed in zip(read_rows(file), votes, strict=True):
        assert row.grades is not None and row.columns.keys() == {"passages", "gold", "feedback"}
        for (first, second), vote in zip(combinations(row.grades, 2), listed, strict=True):
            stated += vote != 0
            contradicted += first <= second if vote == 1 else first >= second if vote == 2 else 0
            ties += vote == 0
            ordered += vote == 0 and first != second
    assert (stated, contradicted, ties, ordered) == (2616, 0, 384, 54)


# answers that did not end


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "output": "a"},
        {"text": "a"},
    ],
)
def test_a_row_says_that_its_answer_did_not_end(tmp_path: Path, row: dict[str, Any]) -> None:
    assert only(tmp_path, row).ended is None and only(tmp_path, {**row, "ended": True}).ended is None
    cut = only(tmp_path, {**row, "ended": False})
    assert cut.ended == (False,) and "ended" not in cut.columns
    assert refusal(tmp_path, {**row, "ended": "no"}) == "'ended' is the string \"no\"; expected true or false"


def test_pairs_and_lists_say_it_for_each_answer(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "rejected_ended": False}
    assert only(tmp_path, pair).ended == (True, False)
    assert refusal(tmp_path, {**pair, "chosen_ended": 1}) == "'chosen_ended' is the number 1; expected true or false"
    ranked = {"instruction": "q", "output": ["a", "b", "c"], "ended": [True, False, True]}
    assert only(tmp_path, ranked).ended == (True, False, True)
    assert only(tmp_path, ranked).only([1, 0]).ended == (False, True)
    needed = "'ended' is a list; expected a list of 3 times true or false, one per answer"
    assert refusal(tmp_path, {**ranked, "ended": [True, False]}) == needed


# nothing of a row is lost in silence


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def test_what_stands_beside_the_content_of_a_message_is_refused(tmp_path: Path) -> None:
    thought = {"messages": [said("user", "q"), said("assistant", "a", reasoning_content="so")]}
    assert "'messages[1].reasoning_content' would be lost" in refusal(tmp_path, thought)
    weighted = {"messages": [said("user", "q"), said("assistant", "a", weight=0)]}
    assert refusal(tmp_path, weighted).startswith("'messages[1].weight' is the number 0; expected no weight")
    assert only(tmp_path, {"messages": [said("user", "q"), said("assistant", "a", tool_calls=None, weight=1)]}).answers


def test_what_a_tool_returned_needs_a_call_before_it(tmp_path: Path) -> None:
    for turns in (["tool", "assistant"], ["user", "tool", "assistant"]):
        message = refusal(tmp_path, {"messages": [said(role, "x") for role in turns]})
        assert message.startswith(f"'messages[{len(turns) - 2}]' is a tool's result, but no assistant turn before")


@pytest.mark.parametrize(
    "options", [["4", "five"], {"text": ["4", "five"], "label": ["A", "B"]}, {"A": "4", "B": "five"}]
)
def test_options_that_are_not_in_the_question_are_refused(tmp_path: Path, options: Any) -> None:
    row = {"question": "2 + 2 is?", "choices": options, "completion": "4"}
    assert refusal(tmp_path, row) == (
        "'choices' is beside the prompt and would not be part of it; move it into the prompt, or rename 'choices' if "
        "the model should not see it"
    )
    assert only(tmp_path, {**row, "question": "2 + 2 is?\nA. 4\nB. five"}).columns["choices"] == options


def test_a_second_prompt_beside_the_prompt_is_refused(tmp_path: Path) -> None:
    for key in ("question", "context", "input"):
        assert f"'{key}' is beside the prompt" in refusal(tmp_path, {"prompt": "p", key: "q", "completion": "a"})
    assert only(tmp_path, {"prompt": "c\n\nq", "context": "c", "question": "q"}).columns["context"] == "c"


def test_a_text_that_something_else_answers_is_refused(tmp_path: Path) -> None:
    for more in ({"code": "def f(): pass"}, {"solution": "x"}, {"anything": "two\nlines"}):
        (key,) = more
        assert refusal(tmp_path, {"text": "Write a function.", **more}) == (
            f"'text' is read as a whole text, but could be a prompt that '{key}' answers; rename 'text' to 'prompt' "
            f"and '{key}' to 'completion', or remove '{key}' if the text alone is to be learned"
        )
    assert only(tmp_path, {"text": "t", "title": "A title", "url": "http://x", "n": 3, "code": " "}).answers == ("t",)


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (["user", "assistant", "assistant"], "two assistant turns in a row"),
        (["user", "assistant", "assistant", "user", "assistant"], "two assistant turns in a row"),
        (["user", "system", "assistant"], "a system turn after others"),
    ],
)
def test_turns_out_of_order_are_counted_and_said(tmp_path: Path, roles: list[str], reason: str) -> None:
    good = {"messages": [said("system", "s"), said("user", "q"), said("assistant", "a")]}
    path = written(tmp_path, [{"messages": [said(role, f"{n}") for n, role in enumerate(roles)]}] + [good] * 19)
    rows = read_rows(path)
    assert remarks(rows[:2], []) == [f"{reason}: 1 row ({path}:1)"] and remarks(rows[1:2], []) == []


# which files


def test_a_pipe_or_a_device_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    for name in ("rows.jsonl", "zero.jsonl"):
        with pytest.raises(DataError, match=f"{name} is a pipe, socket or device; save its content to a file"):
            read_rows(tmp_path / name)


def test_a_file_named_twice_is_refused_by_whatever_name(tmp_path: Path) -> None:
    path = written(tmp_path, [{"prompt": "q", "completion": "a"}])
    (tmp_path / "link.jsonl").symlink_to(path)
    for second in (path, tmp_path / "." / "rows.jsonl", tmp_path / "link.jsonl"):
        with pytest.raises(DataError, match="are the same file$") as caught:
            read_files([path, str(second)])
        assert caught.value.remedy == "file-named-twice"


def test_a_missing_file_is_named_though_the_limit_never_comes_to_it(tmp_path: Path) -> None:
    path = written(tmp_path, [{"prompt": "q", "completion": "a"}] * 3)
    with pytest.raises(DataError, match="nosuch.jsonl does not exist"):
        read_files([path, tmp_path / "nosuch.jsonl"], limit=2)


def test_names_of_files_reach_no_terminal_raw(tmp_path: Path) -> None:
    written(tmp_path, [{"prompt": "q"}], "ro\x1b[2Jws.jsonl")
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / "rows.jsonl")
    assert str(caught.value).endswith(r"did you mean ro\x1b[2Jws.jsonl?")
