from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onebase.config.remedies import with_remedy
from onebase.data.chat import ChatFormat, chat_format
from onebase.data.fit import Cuts, Limits, fit_prompt, fit_row, require_end
from onebase.data.mixing import Source
from onebase.data.prepare import (
    best_answer,
    dropped_line,
    encode_prompts,
    encode_rows,
    read_split,
    with_system,
)
from onebase.data.templates import BUILT_IN_TEMPLATES
from onebase.errors import DataError, ModelError, PromptTooLongError
from onebase.records import Example, Message, Prompt, Row
from tests.tiny_models import BOS, EOS, tiny_tokenizer


@pytest.fixture
def chat() -> ChatFormat:
    """One id per byte; a prompt is the beginning token and the message as it is."""
    return chat_format(tiny_tokenizer(), "plain")


def ids(text: str) -> list[int]:
    return tiny_tokenizer().encode(text, add_special_tokens=False)


def asked(prompt: str, *answers: str, **fields: Any) -> Row:
    return Row((Message("user", prompt),), answers, place=f"asked.jsonl:{len(prompt)}", **fields)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def split_of(
    train: list[str], held_out: list[str], **overrides: Any
) -> tuple[list[Row], list[Row], dict[str, list[str]]]:
    options: dict[str, Any] = {"eval_fraction": 0.25, "limit": None, "seed": 0, "max_dropped_share": 0.5}
    return read_split([Source((path,)) for path in train], held_out, **(options | overrides))


def texts(rows: list[Row]) -> list[str]:
    return [row.messages[0].content for row in rows]


# --------------------------------------------------------------------------------------------------- reading


def test_separate_files_are_held_out_whole_and_nothing_of_the_training_rows(tmp_path: Path) -> None:
    train = [
        write(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}{i}", "completion": "x"} for i in range(4)])
        for name in "ab"
    ]
    held = write(tmp_path / "held.jsonl", [{"prompt": f"h{i}", "completion": "x"} for i in range(3)])
    rows, held_out, dropped = split_of(train, [held])
    assert texts(rows) == [f"a{i}" for i in range(4)] + [f"b{i}" for i in range(4)]
    assert texts(held_out) == ["h0", "h1", "h2"] and dropped == {}
    rows, held_out, _ = split_of(train, [held], limit=5)
    assert texts(rows) == ["a0", "a1", "a2", "a3", "b0"] and len(held_out) == 3  # the limit is of training rows


def test_without_held_out_files_a_part_is_split_off_and_prompts_stay_together(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": f"p{i // 2}", "completion": f"x{i}"} for i in range(40)])
    rows, held_out, _ = split_of([path], [])
    assert len(rows) + len(held_out) == 40 and 6 <= len(held_out) <= 14
    assert not set(texts(rows)) & set(texts(held_out))
    assert split_of([path], [])[1] == held_out != split_of([path], [], seed=1)[1]
    assert split_of([path], [], eval_fraction=0.0)[1] == []


def test_rows_left_out_of_either_side_are_named_with_their_places(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": c} for c in ("x", " ", "y", "")])
    pairs = (("p", ""), (" ", "x"), ("q", "y"), ("r", "z"))
    held = write(tmp_path / "h.jsonl", [{"prompt": p, "completion": c} for p, c in pairs])
    rows, held_out, dropped = split_of([train], [held])
    assert [row.answers for row in rows] == [("x",), ("y",)] and texts(held_out) == ["q", "r"]
    assert dropped == {"empty answer": [f"{train}:2", f"{train}:4", f"{held}:1"], "empty prompt": [f"{held}:2"]}
    assert dropped_line(dropped) == (
        f"left out: 3 with empty answer ({train}:2, {train}:4, {held}:1); 1 with empty prompt ({held}:2)"
    )
    assert dropped_line({}) == ""


def test_too_many_unusable_rows_are_an_error_in_either_file(tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "x"}] * 4)
    bad = write(tmp_path / "b.jsonl", [{"prompt": "p", "completion": c} for c in ("", "", "x")])
    for train, held in ((bad, good), (good, bad)):
        with pytest.raises(DataError, match="2 of 3 rows cannot be used, more than the allowed share of 0.5"):
            split_of([train], [held])


# --------------------------------------------------------------------------------------------------- encoding


def test_rows_become_examples_within_the_limits(chat: ChatFormat) -> None:
    rows = [asked("abc", "12345678", "1"), asked("de", "x")]
    whole = encode_rows(rows, chat, Limits(context=64))
    assert whole[0].prompt_ids == [BOS, *ids("abc")] and whole[0].row is rows[0]
    assert [list(completion) for completion in whole[0].completions] == [[*ids("12345678"), EOS], [*ids("1"), EOS]]
    cut = encode_rows(rows, chat, Limits(context=64, max_completion=3))
    assert [list(completion) for completion in cut[0].completions] == [ids("123"), [*ids("1"), EOS]]


def test_prompt_and_completion_together_fit_the_context(chat: ChatFormat) -> None:
    for context in (10, 11, 12, 14):
        (example,) = encode_rows([asked("abcd", "12345678", "1")], chat, Limits(context=context, max_completion=7))
        longest = max(map(len, example.completions))
        assert len(example.prompt_ids) == 5 and longest == min(7, context - 5)


@pytest.mark.parametrize(("prompt", "answer", "kept"), [(30, 8, (11, 9)), (30, 40, (10, 10)), (6, 40, (7, 13))])
def test_the_prompt_gives_way_to_the_completions_down_to_half_of_the_context(
    chat: ChatFormat, prompt: int, answer: int, kept: tuple[int, int]
) -> None:
    row = asked("p" * prompt, "x" * answer, "x")
    (example,) = encode_rows([row], chat, Limits(context=20))
    assert (len(example.prompt_ids), max(map(len, example.completions))) == kept
    assert [*example.prompt_ids] == [BOS, *ids("p" * (kept[0] - 1))] and [*example.completions[1]] == [*ids("x"), EOS]
    stops = Limits(context=20, truncate_prompt="error")
    if kept[0] == 1 + prompt:
        assert encode_rows([row], chat, stops) == [example]
    else:
        with pytest.raises(
            PromptTooLongError, match=f"the prompt has {1 + prompt} tokens, and only {kept[0]} fit: {kept[1]} "
        ):
            encode_rows([row], chat, stops)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"context": 64, "max_prompt": 4}, "prompts are limited to 4 tokens"),
        ({"context": 6}, "2 of the model's 6 positions are kept for the answer"),
        (
            {"context": 6, "max_prompt": 5},
            "2 of the model's 6 positions are kept for the answer, which leaves less than the 5 tokens allowed",
        ),
    ],
)
def test_a_prompt_that_is_too_long_is_named_with_what_limits_it(
    chat: ChatFormat, limits: dict[str, int], reason: str
) -> None:
    rows = [asked("abc", "x"), asked("abcde", "x")]
    with pytest.raises(PromptTooLongError) as caught:
        encode_rows(rows, chat, Limits(**limits, truncate_prompt="error"))
    assert str(caught.value) == f"asked.jsonl:5: the prompt has 6 tokens, and only 4 fit: {reason}"
    assert caught.value.exit_code == 3 and caught.value.remedy == "prompt-too-long"
    told: list[str] = []
    assert len(encode_rows(rows, chat, Limits(**limits, tell=told.append))) == 2
    assert told == [f"of 2 rows, 1 prompt lost the beginning of its last user turn (asked.jsonl:5); {reason}"]
    dropping = Limits(**limits, truncate_prompt="drop", max_dropped_share=0.5, tell=told.append)
    assert [example.row for example in encode_rows(rows, chat, dropping)] == rows[:1]
    assert told[1] == f"of 2 rows, 1 row with a longer prompt was left out (asked.jsonl:5); {reason}"
    left_out = "1 of 2 rows have prompts that are too long, more than the allowed share of 0.05"
    with pytest.raises(DataError, match=left_out) as too_many:
        encode_rows(rows, chat, Limits(**limits, truncate_prompt="drop"))
    assert too_many.value.remedy == "prompts-dropped"


def conversation(*turns: str, system: str = "") -> Row:
    roles = ("user", "assistant")
    said = tuple(Message(roles[n % 2], turn) for n, turn in enumerate(turns))
    return Row(((Message("system", system), *said) if system else said), ("z",), place="turns.jsonl:1")


@pytest.mark.parametrize("system", ["", "S" * 9])
def test_the_oldest_turns_go_first_and_the_system_and_last_user_turns_stay(system: str) -> None:
    chat, told = chat_format(tiny_tokenizer(), "hh"), []
    row = conversation("a" * 20, "b" * 20, "c" * 20, "d" * 20, "e" * 20, system=system)
    kept = [
        chat.render_prompt([*row.messages[: bool(system)], *row.messages[bool(system) + start :]]).removeprefix("<s>")
        for start in (2, 4)
    ]
    for most, expected in ((1 + len(kept[0]), kept[0]), (len(kept[0]), kept[1]), (1 + len(kept[1]), kept[1])):
        limits = Limits(256, max_prompt=most, tell=told.append)
        (example,) = encode_rows([row], chat, limits)
        assert chat.decode(example.prompt_ids) == expected and example.row is row
        assert encode_prompts([row], chat, limits, max_new_tokens=8, opening_tokens=4)[0].ids == example.prompt_ids
    limit = 1 + len(kept[0])
    assert told[0] == (
        f"of 1 row, 1 prompt lost its oldest turns (turns.jsonl:1); prompts are limited to {limit} tokens"
    )
    # Then the last user turn loses its beginning, and keeps what the template writes around it.
    limits = Limits(256, max_prompt=len(kept[1]) - 4, tell=told.append)
    (example,) = encode_rows([row], chat, limits)
    assert chat.decode(example.prompt_ids) == kept[1].replace("e" * 20, "e" * 15)
    assert example.prompt_ids[0] == BOS and example.row is row
    assert encode_prompts([row], chat, limits, max_new_tokens=8, opening_tokens=4)[0].ids == example.prompt_ids
    both = "prompt lost its oldest turns (turns.jsonl:1); 1 prompt lost the beginning of its last user turn"
    assert f"1 {both}" in told[-1]


@pytest.mark.parametrize("name", ["gpt2", "minimind", "phi3_mini"])
@pytest.mark.parametrize("template", [name for name in BUILT_IN_TEMPLATES if name != "plain"])
def test_a_long_turn_is_shortened_inside_what_the_template_writes(real: Any, name: str, template: str) -> None:
    chat = chat_format(real(name), template)
    words = " ".join(f"word {n} 字" for n in range(300))
    row = Row((Message("system", "Be brief."), Message("user", words)), ("Yes.",), place="long.jsonl:1")
    before, after = chat.render_prompt(row.messages).split(words)
    for most in (128, 250):
        cuts = Cuts(Limits(4096, max_prompt=most))
        example = fit_row(row, chat, cuts)
        assert example is not None and most - 8 < len(example.prompt_ids) <= most
        text = chat.tokenizer.decode(example.prompt_ids, skip_special_tokens=False)
        bare = [chat.tokenizer.decode(chat._ids(part), skip_special_tokens=False).strip() for part in (before, after)]
        assert text.strip().startswith(bare[0]) and text.strip().endswith(bare[1]) and words[-20:] in text
        assert cuts.tokens == ["long.jsonl:1"] and not cuts.turns and not cuts.dropped
        assert fit_prompt(row, chat, cuts, most=most, reason="", opening_tokens=1) == Prompt(example.prompt_ids, row)


def test_a_prompt_without_room_for_its_last_turn_is_left_out_and_counted() -> None:
    chat, told = chat_format(tiny_tokenizer(), "hh"), []
    rows = [conversation("ab", system="S" * 40), *[conversation("ab")] * 3]
    limits = Limits(256, max_prompt=30, max_dropped_share=0.25, tell=told.append)
    assert len(encode_rows(rows, chat, limits)) == 3
    assert len(encode_prompts(rows, chat, limits, max_new_tokens=8, opening_tokens=4)) == 3
    assert "1 row with a longer prompt was left out (turns.jsonl:1); prompts are limited to 30 tokens" in told[0]
    told_only = replace(rows[0], messages=rows[0].messages[:1])
    for unusable in (rows[0], told_only):
        with pytest.raises(DataError, match="1 of 1 rows have prompts that are too long") as caught:
            encode_rows([unusable], chat, limits)
        assert "raise data.max_prompt_tokens" in with_remedy(caught.value)


def test_answers_that_were_cut_are_counted(chat: ChatFormat) -> None:
    told: list[str] = []
    rows = [asked("abc", "12345678", "1"), asked("de", "x")]
    encode_rows(rows, chat, Limits(context=64, max_completion=3, tell=told.append))
    assert told == ["of 2 rows, 1 row had an answer cut at the end, which then teaches no end token (asked.jsonl:3)"]
    encode_rows(rows, chat, Limits(context=64, tell=told.append))
    assert len(told) == 1


def test_a_context_that_holds_nothing_is_refused() -> None:
    for context, words in ((0, "0 tokens"), (1, "1 token")):
        with pytest.raises(
            ModelError, match=f"the model's context of {words} .* has no room for a prompt and an answer"
        ):
            Limits(context)


def test_prompts_cut_on_the_left_keep_their_beginning_token_and_room_to_answer(chat: ChatFormat) -> None:
    limits = Limits(context=64, max_prompt=4)
    (example,) = encode_rows([asked("abcdefgh", "xyz")], chat, limits)
    assert list(example.prompt_ids) == [BOS, *ids("fgh")]
    (example,) = encode_rows([asked("abcdefgh", "xyz")], chat, Limits(context=5))
    assert list(example.prompt_ids) == [BOS, *ids("gh")]
    assert [list(completion) for completion in example.completions] == [ids("xy")]
    with pytest.raises(DataError, match="1 of 1 rows have prompts that are too long"):
        encode_rows([asked("abcdefgh", "xyz")], chat, Limits(context=2))


def test_of_answers_that_are_compared_the_first_of_the_best_is_taken() -> None:
    row = asked("q", "bad", "good", "as good", grades=(0.0, 2.0, 2.0), margin=1.0)
    assert best_answer(row) == asked("q", "good")
    assert best_answer(replace(row, prefix="So")) == asked("q", "good", prefix="So")
    for plain in (asked("q", "a"), asked("q", "a", "b"), Row((), ("text",), (1.0,))):
        assert best_answer(plain) is plain


def test_rows_that_teach_nothing_are_errors(chat: ChatFormat) -> None:
    with pytest.raises(DataError, match="no rows are left to train on$") as caught:
        encode_rows([], chat, Limits(context=64))
    assert caught.value.remedy == "no-rows-left"
    with pytest.raises(DataError, match="asked.jsonl:3: the row has no answer to learn from"):
        encode_rows([asked("abc")], chat, Limits(context=64))


def test_a_conversation_is_cut_together_with_its_mask() -> None:
    chat = chat_format(tiny_tokenizer(), "chatml")
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c" * 40))
    row = Row(turns, ("d",), place="turns.jsonl:7")
    (example,) = encode_rows([row], chat, Limits(context=256), train_on="assistant")
    assert example.counted is not None and any(example.counted[0]) and not all(example.counted[0])
    (cut,) = encode_rows([row], chat, Limits(context=256, max_completion=5), train_on="assistant")
    assert cut.counted == [example.counted[0][:5]] and cut.completions == [example.completions[0][:5]]


# --------------------------------------------------------------------------------------------------- prompts


def prompts_of(rows: list[Row], chat: ChatFormat, limits: Limits | None = None, **overrides: int) -> list[Prompt]:
    options = {"max_new_tokens": 8, "opening_tokens": 4} | overrides
    return encode_prompts(rows, chat, limits or Limits(context=64), **options)


def test_a_question_is_a_prompt_without_its_answers(chat: ChatFormat) -> None:
    row = asked("abc", "the answer", columns={"gold": 1})
    (prompt,) = prompts_of([row], chat)
    assert isinstance(prompt, Prompt) and list(prompt.ids) == [BOS, *ids("abc")] and prompt.row is row


def test_a_prompt_with_a_prefix_is_gone_on_from(chat: ChatFormat) -> None:
    (prompt,) = prompts_of([asked("abc", "the step", prefix="Step 1\n")], chat)
    assert list(prompt.ids) == [BOS, *ids("abcStep 1\n")]
    (cut,) = prompts_of([asked("a" * 40, prefix="bcd")], chat, Limits(context=14))
    assert list(cut.ids) == [BOS, *ids("aabcd")]


def test_a_text_gives_its_first_tokens_and_never_an_end(chat: ChatFormat) -> None:
    (opening,) = prompts_of([Row((), ("abcdefgh",))], chat)
    assert list(opening.ids) == [BOS, *ids("abc")]
    for text in ("abc", "ab", "a"):  # shorter than the opening, or just as long
        (short,) = prompts_of([Row((), (text,))], chat)
        assert list(short.ids) == [BOS, *ids(text)]
    (long,) = prompts_of([Row((), ("a" * 90,))], chat, opening_tokens=80)
    assert len(long.ids) == 64 - 8  # what the context leaves


def test_prompts_leave_room_for_what_is_generated(chat: ChatFormat) -> None:
    row = asked("a" * 20, "x")
    assert len(prompts_of([row], chat, Limits(context=29))[0].ids) == 21
    with pytest.raises(PromptTooLongError) as caught:
        prompts_of([row], chat, Limits(context=28, truncate_prompt="error"))
    assert str(caught.value) == (
        "asked.jsonl:20: the prompt has 21 tokens, and only 20 fit: new tokens take 8 of the model's 28 positions"
    )
    with pytest.raises(
        PromptTooLongError, match="the prompt has 21 tokens, and only 10 fit: prompts are limited to 10 tokens"
    ):
        prompts_of([row], chat, Limits(context=64, max_prompt=10, truncate_prompt="error"))
    (cut,) = prompts_of([row], chat, Limits(context=18))
    assert list(cut.ids) == [BOS, *ids("a" * 9)]


@pytest.mark.parametrize("max_new_tokens", [64, 65, 1000])
def test_a_generation_that_fills_the_context_is_refused(chat: ChatFormat, max_new_tokens: int) -> None:
    with pytest.raises(DataError) as caught:
        prompts_of([asked("a")], chat, max_new_tokens=max_new_tokens)
    assert str(caught.value) == f"{max_new_tokens} new tokens leave no room for a prompt in the model's context of 64"
    assert caught.value.remedy == "no-room-for-prompts"


def test_no_prompts_are_an_error(chat: ChatFormat) -> None:
    with pytest.raises(DataError, match="no prompts are left to sample from$") as caught:
        prompts_of([], chat)
    assert caught.value.remedy == "no-rows-left"


def test_completions_make_an_example_of_a_prompt_of_which_nothing_else_is_known() -> None:
    row = asked("abc", "x", grades=(1.0,), margin=0.5)
    prompt = Prompt([1, 2], row)
    example = prompt.with_completions(([5], [6, 7]))
    assert example == Example([1, 2], [[5], [6, 7]], None, None, None, row)
    assert example.tree is None and example.num_tokens == 5 and example.num_counted == 3
    assert prompt == Prompt([1, 2], row)


# --------------------------------------------------------------------------------------------- ends, system turns


def test_training_is_refused_where_no_answer_s_end_is_learned(chat: ChatFormat) -> None:
    rows = [asked("q", "xxxxxxxx"), asked("r", "yyyyyyyy", "zzzzzzzz", grades=(1.0, 0.0))]
    short = encode_rows(rows, chat, Limits(context=64, max_completion=4))
    with pytest.raises(DataError) as caught:
        require_end(short, chat)
    assert str(caught.value) == (
        "no answer's end token is learned, so the policy would never stop: of 3 answers, 3 are cut at the limit on "
        "their length"
    )
    assert caught.value.remedy == "no-end-learned" and caught.value.exit_code == 3
    unfinished = replace(asked("s", "zz"), ended=(False,))
    with pytest.raises(
        DataError, match=r"of 4 answers, 3 are cut at .* length and 1 are marked as unfinished \(ended: f"
    ):
        require_end([*short, *encode_rows([unfinished], chat, Limits(context=64))], chat)
    # Where the file says so, it is only told.
    told: list[str] = []
    require_end(encode_rows([unfinished], chat, Limits(context=64)), chat, told.append)
    assert told == [
        "warning: no answer's end token is learned: 1 are marked as unfinished (ended: false), which is all of them"
    ]
    # One answer that ends is enough; a text ends too; next steps end no turn.
    require_end([*short, *encode_rows([asked("s", "z")], chat, Limits(context=64))], chat)
    require_end(encode_rows([Row((), ("text",))], chat, Limits(context=64)), chat)
    require_end(encode_rows([asked("q", "a step", prefix="First, ")], chat, Limits(context=64)), chat)
    require_end([Example([1], [[5]])], chat)


def test_only_the_ends_of_better_answers_count_where_answers_are_compared(chat: ChatFormat) -> None:
    def pair(better: str, worse: str, **more: Any) -> Row:
        return replace(asked("q", better, worse, grades=(1.0, 0.0)), **more)

    limits = Limits(context=64, max_completion=4)
    never = encode_rows([pair("xxxxxxxx", "y"), asked("q", "zzzzzzzz")], chat, limits)
    require_end(never, chat)  # the worse answer ends
    with pytest.raises(DataError, match=r"no better answer's end .* of 2 better answers, 2 are cut"):
        require_end(never, chat, preferred=True)
    require_end([*never, *encode_rows([pair("x", "yyyyyyyy")], chat, limits)], chat, preferred=True)
    for label in (True, 1, False, 0.0):
        (single,) = encode_rows([replace(asked("q", "a"), columns={"label": label})], chat, limits)
        if label:
            require_end([*never, single], chat, preferred=True)
        else:
            with pytest.raises(DataError, match="of 2 better answers, 2 are cut"):
                require_end([*never, single], chat, preferred=True)
    told: list[str] = []
    require_end(encode_rows([pair("x", "y", ended=(False, True))], chat, limits), chat, told.append, preferred=True)
    assert told[0].startswith("warning: no better answer's end token is learned: 1 are marked as unfinished")


def test_an_end_token_that_does_not_count_is_not_learned(chat: ChatFormat) -> None:
    (example,) = encode_rows([asked("q", "x")], chat, Limits(context=64))
    with pytest.raises(DataError, match="no answer's end token is learned"):
        require_end([replace(example, counted=[[True, False]])], chat)


def test_a_system_turn_is_put_before_conversations_without_one() -> None:
    own = Row((Message("system", "Mine."), Message("user", "q")), ("a",))
    text, plain = Row((), ("text",)), asked("q", "a")
    added = with_system([own, text, plain], "Be brief.")
    assert added[:2] == [own, text]
    assert added[2] == replace(plain, messages=(Message("system", "Be brief."), Message("user", "q")))
    assert with_system([plain], None) == [plain]
