"""Layouts of published data sets and annotation tools: what becomes prompt, answers and grades."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from onebase.config.remedies import with_remedy
from onebase.errors import DataError
from onebase.reading.formats import detect, read_rows
from onebase.reading.ranked import by_wins
from onebase.records import Message
from tests.reading.test_formats import assistant, only, refusal, said, user, written

# prompts and answers


@pytest.mark.parametrize("key", ["completion", "response", "output", "reply", "answer"])
def test_the_answer_to_a_prompt_has_five_names(tmp_path: Path, key: str) -> None:
    row = only(tmp_path, {"prompt": "q", key: "a", "id": 1})
    assert row.messages == (user("q"),) and row.answers == ("a",)


def test_two_different_answers_are_two_readings(tmp_path: Path) -> None:
    for row, named in (
        ({"prompt": "q", "completion": "a", "response": "b"}, "by 'prompt' and 'completion', or by 'prompt' and"),
        ({"question": "q", "response": "a", "answer": "b"}, "'response' and 'answer' could both be the answer"),
        ({"messages": [said("user", "q")], "conversations": [said("user", "r")]}, "or by 'conversations'; they hold"),
        ({"instruction": "q", "output": "a", "chosen": "b", "rejected": "c"}, "or by 'instruction' and 'output'"),
        ({"text": "t", "response": "r"}, "could be a prompt that 'response' answers"),
    ):
        path = written(tmp_path, [row])
        with pytest.raises(DataError) as caught:
            read_rows(path)
        assert named in str(caught.value) and caught.value.remedy == "two-readings"
        assert "; choose with data.columns, such as {" in with_remedy(caught.value)
    # The same text under both keys has one reading.
    assert only(tmp_path, {"prompt": "q", "completion": "a", "response": "a"}).answers == ("a",)
    talk = [said("user", "q"), said("assistant", "a")]
    pair = {"prompt": "q", "chosen": talk, "rejected": [talk[0], said("assistant", "b")], "messages": talk}
    assert only(tmp_path, pair).answers == ("a", "b")  # ultrafeedback_binarized
    alpaca = {"instruction": "Do.", "input": "", "output": "Done.", "text": "Below is ..\nDo.\n### Response:\nDone."}
    assert only(tmp_path, alpaca).answers == ("Done.",)


def test_input_and_output_are_a_prompt_and_its_answer(tmp_path: Path) -> None:
    row = only(tmp_path, {"input": "q", "output": "a", "system": "s"})
    assert row.messages == (Message("system", "s"), user("q")) and row.answers == ("a",)
    row = only(tmp_path, {"input": "q", "output": "a", "history": [["p", "b"]]})
    assert row.messages == (user("p"), assistant("b"), user("q"))
    assert only(tmp_path, {"instruction": "q", "output": "a", "label": "news"}).columns == {"label": "news"}


def test_an_instruction_may_have_a_context_and_a_response(tmp_path: Path) -> None:
    row = only(tmp_path, {"instruction": "Sum up.", "context": "A story.", "response": "Short.", "category": "x"})
    assert row.messages == (user("Sum up.\nA story."),) and row.answers == ("Short.",)
    row = only(tmp_path, {"system_prompt": "Be kind.", "question": "q", "response": "a"})  # OpenOrca
    assert row.messages == (Message("system", "Be kind."), user("q")) and row.answers == ("a",)


def test_a_question_is_asked_about_its_context(tmp_path: Path) -> None:
    row = only(tmp_path, {"question": "Who?", "context": "Ann was.", "answer": "Ann"})
    assert row.messages == (user("Ann was.\n\nWho?"),) and row.answers == ("Ann",)
    assert row.notes == ("prompt joined from 'context' and 'question'",)
    row = only(tmp_path, {"question": "Is it?", "passage": "It is.", "answer": "yes"})
    assert row.messages == (user("It is.\n\nIs it?"),)
    flat = {"context": "Ann was.", "question": "Who?", "answers": {"text": ["Ann"], "answer_start": [0]}, "id": "x"}
    row = only(tmp_path, flat)
    assert row.messages == (user("Ann was.\n\nWho?"),) and row.columns["gold"] == ["Ann"] and not row.answers


def test_an_output_may_be_a_pair(tmp_path: Path) -> None:
    row = only(tmp_path, {"instruction": "q", "output": {"chosen": "a", "rejected": "b", "why": "c"}})
    assert row.answers == ("a", "b") and row.grades == (1.0, 0.0) and row.notes == ("'output.why' is left out",)
    message = refusal(tmp_path, {"instruction": "q", "output": {"chosen": "a"}})
    assert message == "output: the key 'rejected' is missing; found chosen"


def test_the_label_of_an_answer_may_be_called_kto_tag(tmp_path: Path) -> None:
    row = only(tmp_path, {"instruction": "q", "input": "", "output": "a", "kto_tag": True})
    assert row.columns["label"] is True
    assert only(tmp_path, {"messages": [said("user", "q"), said("assistant", "a")], "kto_tag": False}).columns == {
        "label": False
    }
    assert "'label' is the string" in refusal(tmp_path, {"prompt": "q", "completion": "a", "kto_tag": "good"})


def test_a_prompt_that_is_a_transcript_has_several_turns(tmp_path: Path) -> None:
    asked = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:"
    row = only(tmp_path, {"prompt": asked, "chosen": " b", "rejected": " c"})
    assert row.messages == (user("q"), assistant("a"), user("r")) and row.answers == (" b", " c")
    assert row.notes == ("the transcript in 'prompt' read as turns",)
    for text in ("Human: q", "What does\n\nHuman: mean?\n\nAssistant:", "\n\nHuman: q"):
        assert only(tmp_path, {"prompt": text, "completion": "a"}).messages == (user(text),)


# messages


def test_text_parts_of_a_message_are_read_and_others_refused_by_type(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = only(tmp_path, {"messages": [said("user", parts), said("assistant", [{"type": "text", "text": "c"}])]})
    assert row.messages == (user("ab"),) and row.answers == ("c",)
    assert row.notes == ("the text parts of a message are joined",)
    image = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert refusal(tmp_path, {"messages": [said("user", image)]}) == (
        "'messages[0].content[1]' is a part of the type 'image_url'; only text can be read: leave out the part, or the "
        "row"
    )


def test_roles_are_known_in_any_case_and_by_other_names(tmp_path: Path) -> None:
    turns = [said("Developer", "s"), said("User", "q"), said("MODEL", "a")]
    row = only(tmp_path, {"messages": turns})
    assert row.messages == (Message("system", "s"), user("q")) and row.answers == ("a",)


def test_what_a_message_holds_beside_its_text_is_named(tmp_path: Path) -> None:
    row = only(tmp_path, {"messages": [said("user", "q", name="Ann", id=None), said("assistant", "a", time=3)]})
    assert row.notes == ("'messages[].name' is left out", "'messages[].time' is left out")


def test_pairs_may_be_two_lists_of_sharegpt_turns(tmp_path: Path) -> None:
    turns = {key: [{"from": "human", "value": "q"}, {"from": "gpt", "value": key}] for key in ("chosen", "rejected")}
    row = only(tmp_path, turns)
    assert row.messages == (user("q"),) and row.answers == ("chosen", "rejected")


def test_openai_preferences_are_pairs(tmp_path: Path) -> None:
    row = only(
        tmp_path,
        {
            "input": {"messages": [said("user", "q")], "parallel_tool_calls": True},
            "preferred_output": [said("assistant", "a")],
            "non_preferred_output": [said("assistant", "b")],
        },
    )
    assert row.messages == (user("q"),) and row.answers == ("a", "b") and row.grades == (1.0, 0.0)
    assert row.notes == ("'input.parallel_tool_calls' is left out",)


def test_turns_without_names_are_said_in_turn(tmp_path: Path) -> None:
    row = only(tmp_path, {"id": "0", "data": ["q", "a", "r", "b"]})  # UltraChat
    assert row.messages == (user("q"), assistant("a"), user("r")) and row.answers == ("b",)
    assert only(tmp_path, {"turns": ["q"]}).answers == ()


def test_a_logged_dialogue_ends_in_its_last_answer(tmp_path: Path) -> None:
    log = [{"speaker": "user", "text": "q"}, {"speaker": "assistant", "text": "a", "n": 1}]
    row = only(tmp_path, {"utterances": [*log, {"speaker": "user", "text": "Thanks."}], "scenario": "s"})
    assert row.messages == (user("q"),) and row.answers == ("a",) and row.columns == {"scenario": "s"}
    assert row.notes == ("'utterances[].n' is left out", "'utterances[].text' after the last answer is left out")
    assert only(tmp_path, {"utterances": log[:1]}).answers == ()


def test_a_rated_turn_has_its_calls_as_json(tmp_path: Path) -> None:
    context = [
        {"role": "agent", "text": "Hello."},
        {"role": "user", "text": "q"},
        {"role": "agent", "api": {"find": {"what": "q"}}},
        {"role": "api", "response": {"find": "é"}},
    ]
    row = only(
        tmp_path, {"context": json.dumps(context), "generation": '{"role": "agent", "text": "a"}', "reward": 0.0}
    )
    call = '{"name": "find", "arguments": {"what": "q"}}'
    assert row.messages == (assistant("Hello."), user("q"), assistant(call), user('{"find": "é"}'))
    assert row.answers == ("a",) and row.grades == (0.0,) and row.columns == {"reward": 0.0}
    assert "'generation' is a user turn" in refusal(
        tmp_path, {"context": context, "generation": {"role": "user", "text": "a"}, "reward": 1}
    )
    assert only(tmp_path, {"context": "[]", "generation": {"role": "agent", "text": "a"}, "reward": 1}).messages == (
        user(""),
    )


def test_a_poem_is_one_text(tmp_path: Path) -> None:
    row = only(tmp_path, {"title": "静夜思", "author": "李白", "paragraphs": ["床前明月光，", "疑是地上霜。"]})
    assert row.messages == () and row.answers == ("静夜思\n李白\n\n床前明月光，\n疑是地上霜。",)
    assert only(tmp_path, {"paragraphs": ["a", "b"]}).answers == ("a\nb",)


def test_options_under_keys_of_their_own_end_the_prompt(tmp_path: Path) -> None:
    row = only(tmp_path, {"Question": "x", "question": "Which?", "A": "one", "B": "two", "answer": "B"})
    assert row.messages == (user("Which?\nA) one\nB) two"),) and row.columns["gold"] == "B"
    row = only(tmp_path, {"question": "Which?", "option1": "one", "option2": "two", "answer": 1})
    assert row.messages == (user("Which?\nA) one\nB) two"),) and row.columns["gold"] == "A"
    row = only(tmp_path, {"question": "q", "opa": "x", "opb": "y", "opc": "z", "answer": "c"})
    assert row.columns["gold"] == "C"
    medical = {"question": "q", "options": {"A": "x", "B": "y"}, "answer": "y", "answer_idx": "B"}
    assert only(tmp_path, medical).columns["gold"] == "B"
    # Without a right one they are part of a prompt that has to hold them.
    assert "'option1' is beside the prompt" in refusal(
        tmp_path, {"prompt": "q", "option1": "x", "option2": "y", "completion": "z"}
    )


# graded answers


def test_stack_exchange_pairs_have_the_better_answer_first(tmp_path: Path) -> None:
    row = only(tmp_path, {"qid": 1, "question": "q", "response_j": "a", "response_k": "b"})
    assert row.messages == (user("q"),) and row.answers == ("a", "b") and row.grades == (1.0, 0.0)


@pytest.mark.parametrize(
    ("verdicts", "grades"),
    [([1, 1, 2], (1, -1)), ([2, 2, 2], (-1, 1)), ([0, 0, 1], (0, 0)), ([0, 1, 2], (0, 0)), ([1, 2], (0, 0))],
)
def test_the_verdict_of_most_annotators_decides(tmp_path: Path, verdicts: list[int], grades: tuple[int, int]) -> None:
    row = {"instruction": "do", "input": "this", "response1": "a", "response2": "b"}
    read = only(tmp_path, row | {f"annotator{n}": vote for n, vote in enumerate(verdicts, start=1)})
    assert read.messages == (user("do\nthis"),) and read.answers == ("a", "b") and read.grades == grades
    assert [read.columns[f"annotator{n}"] for n in range(1, len(verdicts) + 1)] == verdicts
    assert refusal(tmp_path, row | {"annotator1": 3}).startswith("'annotator1' is the number 3; expected 1 (the first")


def test_the_real_verdicts_are_counted_as_published(shared: Path) -> None:
    rows = read_rows(shared / "data/pandalm/testset-v1.json.gz")
    assert Counter(row.grades for row in rows) == {(1.0, -1.0): 422, (-1.0, 1.0): 472, (0.0, 0.0): 105}
    assert sum("is no text" in note for row in rows for note in row.notes) == 6  # `true` in place of a text


def test_the_real_rewards_are_counted_as_published(shared: Path) -> None:
    rows = read_rows(shared / "data/taskmaster_reward")
    assert len(rows) == 3228 and Counter(row.grades for row in rows) == {(1.0,): 2775, (0.0,): 453}


def test_scored_completions_are_graded_by_their_scores(tmp_path: Path) -> None:
    completions = [
        {"response": "a", "overall_score": 6.5, "fine-grained_score": 3.0, "critique": "fine", "model": "m"},
        {"response": "b", "overall_score": 8, "fine-grained_score": 4.0, "critique": "good", "model": "n"},
    ]
    row = only(tmp_path, {"source": "x", "instruction": "q", "completions": completions})  # UltraFeedback
    assert row.messages == (user("q"),) and row.answers == ("a", "b") and row.grades == (6.5, 8.0)
    assert row.notes[:2] == (
        "'completions[].fine-grained_score' is left out",
        "'completions[].critique' is left out",
    )
    row = only(tmp_path, {"question": "q", "answers": [{"text": "a", "pm_score": 3}, {"text": "b", "pm_score": 5}]})
    assert row.grades == (3.0, 5.0)
    assert refusal(tmp_path, {"instruction": "q", "completions": [*completions, {"response": "c"}]}).endswith(
        "'completions[2].overall_score' is null; expected a number"
    )


def test_lists_of_answers_have_scores_or_ranks_beside_them(tmp_path: Path) -> None:
    asked = {"prompt": "q", "responses": ["a", "b", "c"]}
    assert only(tmp_path, {**asked, "scores": [1, 3, 2]}).grades == (1.0, 3.0, 2.0)
    assert only(tmp_path, {**asked, "ranks": [2, 1, 2]}).grades == (-2.0, -1.0, -2.0)
    row = only(tmp_path, {**asked, "ranks": [[1, 2, 3], [1, 3, 2], [2, 1, 2]]})
    assert row.grades == (3.0, 0.0, -3.0)
    needed = "expected a list of 3 numbers, one per answer, or a list of such lists, one per annotator"
    assert refusal(tmp_path, {**asked, "ranks": [1, 2]}) == f"'ranks' is a list; {needed}"
    assert refusal(tmp_path, {**asked, "scores": [[1, 2, 3], [1, 2]]}) == f"'scores' is a list; {needed}"


def test_wins_minus_losses_add_up_over_annotators() -> None:
    assert by_wins([[3, 2, 1]]) == (2, 0, -2)
    assert by_wins([[1, 2], [2, 1]]) == (0, 0)
    assert by_wins([[1, 1, 0], [0, 2, 1]]) == (-1, 3, -2)


def test_one_answer_with_a_score_is_graded_by_it(tmp_path: Path) -> None:
    assert only(tmp_path, {"prompt": "q", "response": "a", "reward": 0.25}).grades == (0.25,)
    assert only(tmp_path, {"instruction": "q", "output": "a", "rating": 4}).grades == (4.0,)
    row = only(tmp_path, {"prompt": "q", "completion": "a", "score": "high"})
    assert row.grades is None and row.columns == {"score": "high"}


# annotation tools


def ranker(*orders: Any, **more: Any) -> dict[str, Any]:
    """A task as Label Studio exports it, with one annotation per order."""
    return {
        "id": 7,
        "data": {"prompt": "q", "items": [{"id": "x", "title": "1", "body": "a"}, {"id": "y", "body": "b"}]},
        "annotations": [
            {"completed_by": n, "was_cancelled": False, "result": [
                {"from_name": "rank", "to_name": "results", "type": "ranker", "value": {"ranker": order}}]}
            for n, order in enumerate(orders)
        ],
        **more,
    }  # fmt: skip


def test_an_order_of_label_studio_ranks_the_items(tmp_path: Path) -> None:
    row = only(tmp_path, ranker({"rank": ["y", "x"]}))
    assert row.messages == (user("q"),) and row.answers == ("a", "b") and row.grades == (-1.0, 0.0)
    assert row.columns == {"id": 7, "orders": [["y", "x"]]}
    assert only(tmp_path, ranker(["y", "x"])).grades == (-1.0, 0.0)  # without buckets, in earlier versions
    assert only(tmp_path, ranker({"rank": ["y", "x"]}, {"rank": ["y", "x"]})).grades == (-2.0, 2.0)
    assert only(tmp_path, ranker({"rank": ["y", "x"]}, {"rank": ["x", "y"]})).grades == (0.0, 0.0)
    task = ranker({"rank": ["y", "x"]}, {"rank": ["x", "y"]})
    task["annotations"][1]["was_cancelled"] = True
    assert only(tmp_path, task).grades == (-1.0, 0.0)


def test_a_short_export_of_label_studio_has_an_annotation_per_row(tmp_path: Path) -> None:
    data = ranker()["data"]
    row = only(tmp_path, {**data, "rank": [{"ranker": {"rank": ["y", "x"]}}], "id": 7, "annotator": 1})
    assert row.messages == (user("q"),) and row.answers == ("a", "b") and row.grades == (-1.0, 0.0)
    assert row.columns == {"id": 7, "annotator": 1, "orders": [["y", "x"]]}


def test_orders_that_rank_nothing_are_named(tmp_path: Path) -> None:
    assert "sorts the items into the buckets best, _, which says nothing of their order" in refusal(
        tmp_path, ranker({"best": ["x"], "_": ["y"]})
    )
    at = "'annotations[0].result[0].value.ranker' is a list; expected the 2 ids of the items, best first"
    assert refusal(tmp_path, ranker({"rank": ["y"]})) == at
    assert "no annotation ranks the items" in refusal(tmp_path, ranker({"rank": ["y"]}) | {
        "annotations": [{"was_cancelled": True, "result": []}]})  # fmt: skip
    assert "'annotations[0]' holds no result of the type 'ranker'" in refusal(
        tmp_path, ranker() | {"annotations": [{"result": []}]}
    )
    assert "holds no list of items with the key 'id'" in refusal(
        tmp_path, ranker({"rank": ["x"]}) | {"data": {"prompt": "q", "image": "x.jpg"}}
    )


RANKS = [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 2}]
TIE = [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 1}]
FIELDS = {"prompt": "q", "response-1": "a", "response-2": "b"}


@pytest.mark.parametrize(
    "record",
    [
        # Argilla 2, to_json
        {"id": "1", "fields": FIELDS, "metadata": {}, "responses": {"best": [{"value": RANKS, "user_id": "u"}]}},
        # Argilla 1, records
        {"fields": FIELDS, "responses": [{"values": {"best": {"value": RANKS}}, "status": "submitted"}]},
        # Argilla 1, as datasets store it
        {**FIELDS, "best": [{"user_id": "u", "value": RANKS, "status": "submitted"}]},
        {**FIELDS, "best": {"user_id": ["u"], "status": ["submitted"],
                            "value": [{"value": ["response-2", "response-1"], "rank": [1, 2]}]}},
    ],
)  # fmt: skip
def test_rankings_of_argilla_are_read_from_every_export(tmp_path: Path, record: dict[str, Any]) -> None:
    row = only(tmp_path, record)
    assert detect(record) == "argilla"
    assert row.messages == (user("q"),) and row.answers == ("b", "a") and row.grades == (-1.0, -2.0)


def test_only_submitted_responses_of_argilla_count_and_ties_stay(tmp_path: Path) -> None:
    def record(*responses: tuple[str, Any]) -> dict[str, Any]:
        return {**FIELDS, "best": [{"user_id": "u", "value": value, "status": status} for status, value in responses]}

    row = only(tmp_path, record(("submitted", TIE), ("discarded", RANKS)))
    assert row.grades == (-1.0, -1.0)
    assert "what 'responses' hold that are not submitted, or rank nothing, is left out" in row.notes
    row = only(tmp_path, record(("submitted", TIE), ("submitted", RANKS), ("submitted", RANKS)))
    assert row.grades == (2.0, -2.0) and len(row.columns["orders"]) == 3
    assert "no submitted response ranks the answers" in refusal(tmp_path, record(("draft", RANKS)))
    numbered = [{"value": "2", "rank": 1}, {"value": "1", "rank": 2}]
    assert only(tmp_path, record(("submitted", numbered))).answers == ("b", "a")
    assert "no field is named like the ranked value 'x'" in refusal(
        tmp_path, record(("submitted", [{"value": "x", "rank": 1}]))
    )
