"""An example in pieces: every token in one piece, what is learned, whose text it is, where answers end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onebase.data.chat import ChatFormat, chat_format
from onebase.data.view import SCORED, Piece, first_lines, plain, view_of, visible
from onebase.records import Message, Prompt, Row, ToolCall
from tests.data.test_chat import TEXTS, byte_level, chat, row
from tests.data.test_tools import ASKED, CALL, TOOLS

MARKS = ("<|im_start|>", "<|im_end|>")


@pytest.fixture
def chatml() -> ChatFormat:
    return chat_format(byte_level(bos=False, extra=MARKS), "chatml")


def texts(pieces: tuple[Piece, ...], *, said: bool) -> str:
    return "".join(piece.text for piece in pieces if piece.said == said)


def test_pieces_hold_every_token_once_and_spell_the_text(chatml: ChatFormat) -> None:
    for text in TEXTS:
        example = chatml.encode_example(row(text, answers=(text, "a")))
        view = view_of(example, chatml)
        assert [i for piece in view.prompt for i in piece.ids] == list(example.prompt_ids)
        for branch, ids in zip(view.branches, example.completions, strict=True):
            assert [i for piece in branch.pieces for i in piece.ids] == list(ids)
            assert branch.num_tokens == branch.num_learned == len(ids) and branch.ends
        prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        assert "".join(piece.text for piece in view.prompt) == prompt
        assert plain(view.branches[0].pieces) == f"⟦{visible(text)}<|im_end|>⟧"


@pytest.mark.parametrize("name", ["gpt2", "minimind", "phi3_mini"])
def test_a_character_of_several_tokens_is_one_piece(real: Any, name: str) -> None:
    form = chat_format(real(name), "hh")
    example = form.encode_example(row("𝄞", answers=("龘 👩‍👧 ok",)))
    (branch,) = view_of(example, form).branches
    assert "".join(piece.text for piece in branch.pieces).strip().startswith("龘 👩‍👧 ok")
    assert any(len(piece.ids) > 1 for piece in branch.pieces)
    assert all("\ufffd" not in piece.text for piece in branch.pieces)


def test_the_rows_own_text_is_told_from_the_templates(chatml: ChatFormat) -> None:
    turns = (Message("system", "user"), *chat("user", "assistant", " so "))
    view = view_of(chatml.encode_example(Row(turns, ("user",)), train_on="completion"), chatml)
    # Words that the template writes too: each turn's is the one at its own place, the first after the turn before.
    assert [piece.text for piece in view.prompt if piece.said and piece.text.strip()] != []
    assert (
        texts(view.branches[0].pieces, said=True) == "user"
        and texts(view.branches[0].pieces, said=False) == "<|im_end|>"
    )
    plain_turns = view_of(chatml.encode_example(row("Well?", "No.", "Why?", answers=("So.",))), chatml)
    assert texts(plain_turns.prompt, said=True) == "Well?No.Why?"


def test_what_tools_say_is_the_rows_own() -> None:
    form = chat_format(byte_level(bos=False, extra=MARKS), "qwen")
    example = form.encode_example(Row(ASKED, ("",), tools=TOOLS, calls=((CALL,),)), train_on="assistant")
    view = view_of(example, form)
    mine = texts(view.prompt, said=True)
    assert all(word in mine for word in ("weather", "city", "Bern", "Rain?")) and "function signatures" not in mine
    (branch,) = view.branches
    assert [piece.text for piece in branch.pieces if piece.ends] == ["<|im_end|>"] * 2
    assert plain(branch.pieces) == (
        '⟦<tool_call>↵\n{"name": "weather", "arguments": {"city": "Köln"}}↵\n</tool_call><|im_end|>⟧↵\n'
        '<|im_start|>user↵\n<tool_response>↵\n{"rain": true}↵\n</tool_response><|im_end|>↵\n<|im_start|>assistant↵\n'
        '⟦<tool_call>↵\n{"name": "weather", "arguments": {"city": "Köln"}}↵\n</tool_call><|im_end|>⟧'
    )
    assert view.summary.endswith("learned in 1 of 1")


def test_an_answer_that_did_not_end_and_a_step_end_nowhere(chatml: ChatFormat) -> None:
    cut = row("q", answers=("so", "so"), ended=(True, False))
    view = view_of(chatml.encode_example(cut), chatml)
    assert [branch.ends for branch in view.branches] == [True, False]
    assert view.summary == (
        "tokens: prompt 13, answers 3 (all learned), 2 (all learned); end token <|im_end|> learned in 1 of 2"
    )
    step = view_of(chatml.encode_example(row("q", answers=(" then",), prefix="First")), chatml)
    assert not step.branches[0].ends and texts(step.prompt, said=True) == "qFirst"


def test_what_a_reward_role_scores_is_not_learned(chatml: ChatFormat) -> None:
    compared = row("q", answers=("so", "no"), grades=(1.0, 0.0), ended=(False, True))
    example = chatml.encode_example(compared)
    for scored, how in SCORED.items():
        view = view_of(example, chatml, scored=scored)
        assert [branch.num_learned for branch in view.branches] == [0, 0] and view.scored == scored
        assert view.summary == f"tokens: prompt 13, answers 2, 3; end token <|im_end|> at the end of 1 of 2; {how}"
        assert [branch.told for branch in view.branches] == ["grade 1, 2 tokens", "grade 0, 3 tokens"]
        assert not any("⟦" in line for line in first_lines(example, chatml, scored=scored))
    # An answer that did not end says nothing about those after it.
    assert [branch.ends for branch in view_of(example, chatml).branches] == [False, True]


def test_a_prompt_alone_and_plain_text_are_shown_too(chatml: ChatFormat) -> None:
    asked = row("Well?", answers=())
    view = view_of(Prompt(chatml.encode_prompt(asked.messages), asked), chatml)
    assert (
        view.branches == () and view.summary == f"tokens: prompt {len(chatml.encode_prompt(asked.messages))}, no answer"
    )
    text = view_of(chatml.encode_example(Row((), ("once upon",))), chatml)
    assert plain(text.prompt) == "</s>" and plain(text.branches[0].pieces) == "⟦once upon</s>⟧"
    assert "end token </s> learned in 1 of 1" in text.summary


def test_a_text_that_was_cut_is_still_the_rows_own(chatml: ChatFormat) -> None:
    example = chatml.encode_example(row("the answer is here", answers=("there and everywhere",)))
    cut = replace(example, prompt_ids=example.prompt_ids[8:], completions=[example.completions[0][:3]])
    view = view_of(cut, chatml)
    mine = texts(view.prompt, said=True)
    assert mine and "the answer is here".endswith(mine)
    assert "there and everywhere".startswith(texts(view.branches[0].pieces, said=True)) and not view.branches[0].ends


def test_control_characters_of_a_row_do_not_reach_the_terminal(chatml: ChatFormat) -> None:
    view = view_of(chatml.encode_example(row("\x1b[31mred\u202e", answers=("a",))), chatml)
    assert "\\x1b[31mred\\u202e" in plain(view.prompt).replace("⟦", "") and "\x1b" not in plain(view.prompt)


def test_a_plan_shows_an_example_in_short_lines(chatml: ChatFormat) -> None:
    example = chatml.encode_example(row("word " * 200, answers=("yes\nno",), layout="prompt"))
    head, summary, prompt, answer = first_lines(example, chatml)
    assert head == "example     f:1, read as prompt; template chatml" and summary.strip().startswith("tokens: prompt ")
    assert len(prompt) <= 112 and prompt.strip().startswith("<|im_start|>user↵word") and " wo" in prompt
    assert answer == "            ⟦yes↵no<|im_end|>⟧"


def test_calls_alone_have_no_content_to_look_for(tmp_path: Path) -> None:
    form = chat_format(byte_level(bos=False, extra=MARKS), "qwen")
    turn = Message("assistant", "", (ToolCall("f", "{}"),))
    view = view_of(form.encode_example(Row((*chat("q"), turn, Message("tool", "4")), ("Four.",))), form)
    assert texts(view.prompt, said=True) == "qf4"
