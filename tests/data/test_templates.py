"""Shipped templates: what each writes, byte for byte as published, and which tokens of it are learned."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from onebase.data.chat import ChatFormat, chat_format
from onebase.data.fit import Limits
from onebase.data.prepare import encode_rows
from onebase.data.rendering import Conversation, asked_in
from onebase.data.templates import BUILT_IN_TEMPLATES
from onebase.errors import DataError
from onebase.records import Example, Message, Row, ToolCall
from tests.data.test_chat import byte_level

SYSTEM = Message("system", "Be brief.")
TURNS = (Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Bye"))
ANSWER = "See you."

TOKENS_OF_PHI = {
    # The same, token by token, in the tokenizer of Phi-3: "▁" is a blank, "↵" the byte of a line end, and its marks
    # take the blanks after them.
    "plain": "▁Be ▁brief . ↵ Hi ⟦ Hello . ⟧ ↵ By e ⟦ See ▁you . <|endoftext|> ⟧",
    "hh": (
        "▁ ↵ ↵ System : ▁Be ▁brief . ↵ ↵ H uman : ▁Hi ↵ ↵ Ass istant : ⟦ ▁Hello . ⟧ ↵ ↵ H uman : ▁By e ↵ ↵ Ass "
        "istant : ⟦ ▁See ▁you . <|endoftext|> ⟧"
    ),
    "chatml": (
        "▁< | im _ start | > system ↵ Be ▁brief .< | im _ end | > ↵ < | im _ start | > user ↵ Hi < | im _ end | > "
        "↵ < | im _ start | > ass istant ↵ ⟦ Hello . ⟧ < | im _ end | > ↵ < | im _ start | > user ↵ By e < | im _ "
        "end | > ↵ < | im _ start | > ass istant ↵ ⟦ See ▁you . <|endoftext|> ⟧"
    ),
    "llama-3": (
        "▁< | start _ header _ id | > system < | end _ header _ id | > ↵ ↵ Be ▁brief .< | e ot _ id | >< | start "
        "_ header _ id | > user < | end _ header _ id | > ↵ ↵ Hi < | e ot _ id | >< | start _ header _ id | > ass "
        "istant < | end _ header _ id | > ↵ ↵ ⟦ Hello . ⟧ < | e ot _ id | >< | start _ header _ id | > user < | "
        "end _ header _ id | > ↵ ↵ By e < | e ot _ id | >< | start _ header _ id | > ass istant < | end _ header "
        "_ id | > ↵ ↵ ⟦ See ▁you . <|endoftext|> ⟧"
    ),
    "phi-3": (
        "<|system|> Be ▁brief . <|end|> <|user|> Hi <|end|> <|assistant|> ⟦ Hello . <|end|> ⟧ <|user|> By e "
        "<|end|> <|assistant|> ⟦ See ▁you . <|end|> ⟧"
    ),
    "mistral": (
        "▁Be ▁brief . ↵ ↵ [ INST ] ▁Hi ▁[ / INST ] ⟦ ▁Hello . <|endoftext|> ⟧ [ INST ] ▁By e ▁[ / INST ] ⟦ ▁See "
        "▁you . <|endoftext|> ⟧"
    ),
    "gemma": (
        "▁< start _ of _ turn > user ↵ Be ▁brief . ↵ ↵ Hi < end _ of _ turn > ↵ < start _ of _ turn > model ↵ ⟦ "
        "Hello . ⟧ < end _ of _ turn > ↵ < start _ of _ turn > user ↵ By e < end _ of _ turn > ↵ < start _ of _ "
        "turn > model ↵ ⟦ See ▁you . <|endoftext|> ⟧"
    ),
    "qwen": (
        "▁< | im _ start | > system ↵ Be ▁brief .< | im _ end | > ↵ < | im _ start | > user ↵ Hi < | im _ end | > "
        "↵ < | im _ start | > ass istant ↵ ⟦ Hello . ⟧ < | im _ end | > ↵ < | im _ start | > user ↵ By e < | im _ "
        "end | > ↵ < | im _ start | > ass istant ↵ ⟦ See ▁you . <|endoftext|> ⟧"
    ),
    "zephyr": (
        "<|system|> Be ▁brief . <|endoftext|> ↵ <|user|> Hi <|endoftext|> ↵ <|assistant|> ⟦ Hello . <|endoftext|> "
        "⟧ ↵ <|user|> By e <|endoftext|> ↵ <|assistant|> ⟦ See ▁you . <|endoftext|> ⟧"
    ),
    "alpaca": (
        "▁Be ▁brief . ↵ ↵ ## # ▁Inst ruction : ↵ Hi ↵ ↵ ## # ▁Response : ↵ ⟦ Hello . <|endoftext|> ⟧ ↵ ↵ ## # "
        "▁Inst ruction : ↵ By e ↵ ↵ ## # ▁Response : ↵ ⟦ See ▁you . <|endoftext|> ⟧"
    ),
    "vicuna": (
        "▁Be ▁brief . ↵ ↵ USER : ▁Hi ↵ ASS IST ANT : ⟦ ▁Hello . <|endoftext|> ⟧ ↵ USER : ▁By e ↵ ASS IST ANT : ⟦ "
        "▁See ▁you . <|endoftext|> ⟧"
    ),
}

WRITTEN = {
    # Learned text stands in ⟦ ⟧; {end} is the tokenizer's end token. A turn's mark, such as <|im_end|>, is learned
    # where it is one token; where it is spelled out, the end token takes its place after the last answer.
    "plain": "Be brief.\nHi⟦Hello.⟧\nBye⟦See you.{end}⟧",
    "hh": "\n\nSystem: Be brief.\n\nHuman: Hi\n\nAssistant:⟦ Hello.⟧\n\nHuman: Bye\n\nAssistant:⟦ See you.{end}⟧",
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        "⟦Hello.<|im_end|>⟧\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦See you.<|im_end|>⟧"
    ),
    "llama-3": (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hello.<|eot_id|>⟧"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦See you.<|eot_id|>⟧"
    ),
    "phi-3": (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n⟦Hello.<|end|>⟧\n"
        "<|user|>\nBye<|end|>\n<|assistant|>\n⟦See you.<|end|>⟧"
    ),
    "mistral": "Be brief.\n\n[INST] Hi [/INST]⟦ Hello.{end}⟧[INST] Bye [/INST]⟦ See you.{end}⟧",
    "gemma": (
        "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n⟦Hello.<end_of_turn>⟧\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n⟦See you.<end_of_turn>⟧"
    ),
    "qwen": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        "⟦Hello.<|im_end|>⟧\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦See you.<|im_end|>⟧"
    ),
    "zephyr": (
        "<|system|>\nBe brief.{end}\n<|user|>\nHi{end}\n<|assistant|>\n⟦Hello.{end}⟧\n"
        "<|user|>\nBye{end}\n<|assistant|>\n⟦See you.{end}⟧"
    ),
    "alpaca": (
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:\n⟦Hello.{end}⟧\n\n"
        "### Instruction:\nBye\n\n### Response:\n⟦See you.{end}⟧"
    ),
    "vicuna": "Be brief.\n\nUSER: Hi\nASSISTANT:⟦ Hello.{end}⟧\nUSER: Bye\nASSISTANT:⟦ See you.{end}⟧",
}
MARKS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "qwen": ("<|im_start|>", "<|im_end|>"),
    "llama-3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "phi-3": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "zephyr": ("<|system|>", "<|user|>", "<|assistant|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
}
"""The marks around turns that the published tokenizers hold as tokens."""
MADE = "made here"
TOKENIZERS = (MADE, "gpt2", "gpt_neox_20b with an end", "minimind")


def spelled(form: ChatFormat, ids: Sequence[int]) -> str:
    return str(form.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def bracketed(form: ChatFormat, example: Example) -> str:
    """Prompt and first completion as text, with ⟦ ⟧ around what counts."""
    counted = example.counted[0] if example.counted is not None else [True] * len(example.completions[0])
    runs: list[tuple[bool, list[int]]] = [(False, list(example.prompt_ids))]
    for token, counts in zip(example.completions[0], counted, strict=True):
        if counts != runs[-1][0]:
            runs.append((counts, []))
        runs[-1][1].append(token)
    return "".join(f"⟦{spelled(form, ids)}⟧" if counts else spelled(form, ids) for counts, ids in runs)


def test_every_shipped_template_has_its_expectation() -> None:
    assert set(WRITTEN) == set(BUILT_IN_TEMPLATES)


def with_marks(tokenizer: PreTrainedTokenizerBase, template: str, marks: bool) -> PreTrainedTokenizerBase:
    if marks:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": list(MARKS[template])}, replace_extra_special_tokens=False
        )
    return tokenizer


def expected(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The hand-written text for this tokenizer."""
    text, end = WRITTEN[template], str(tokenizer.eos_token)
    close = {"chatml": "<|im_end|>", "qwen": "<|im_end|>", "llama-3": "<|eot_id|>", "phi-3": "<|end|>"}
    close["gemma"] = "<end_of_turn>"
    if template in close and len(tokenizer.encode(close[template], add_special_tokens=False)) > 1:
        first, last = f"{close[template]}⟧", f"{close[template]}⟧"
        head, _, tail = text.rpartition(last)
        assert not tail
        text = head.replace(first, f"⟧{close[template]}") + "{end}⟧"
    return text.replace("{end}", end)


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[bool]]:
    """The ids of each part between brackets by itself, and which count."""
    ids: list[int] = []
    flags: list[bool] = []
    inside = False
    for part in re.split("([⟦⟧])", text):
        if part in ("⟦", "⟧"):
            inside = part == "⟦"
            continue
        found = tokenizer.encode(part, add_special_tokens=False)
        ids, flags = ids + found, flags + [inside] * len(found)
    return ids, flags


def only_last(text: str) -> str:
    head, last = text.rsplit("⟦", 1)
    return head.replace("⟦", "").replace("⟧", "") + "⟦" + last


CASES = [(name, template, marks) for name in TOKENIZERS for template in WRITTEN for marks in (False, template in MARKS)]


@pytest.mark.parametrize(("name", "template", "marks"), sorted(set(CASES)))
def test_what_is_learned_of_every_turn_is_what_was_written_by_hand(
    request: pytest.FixtureRequest, name: str, template: str, marks: bool
) -> None:
    tokenizer = byte_level(bos=False) if name == MADE else request.getfixturevalue("real")(name)
    tokenizer = with_marks(tokenizer, template, marks)
    form = chat_format(tokenizer, template)
    row = Row((SYSTEM, *TURNS), (ANSWER,))
    text = expected(template, tokenizer)
    ids, flags = tokens_of(tokenizer, text)
    example = form.encode_example(row, train_on="assistant")
    assert example.counted is not None and bracketed(form, example) == text
    assert [*example.prompt_ids, *example.completions[0]] == ids
    assert [False] * len(example.prompt_ids) + list(example.counted[0]) == flags
    # The answer alone, and everything.
    last = form.encode_example(row)
    assert last.counted is None and bracketed(form, last) == only_last(text)
    everything = form.encode_example(row, train_on="all")
    assert len(everything.prompt_ids) == 1 and everything.counted is None
    assert [*everything.prompt_ids, *everything.completions[0]] == [*last.prompt_ids, *last.completions[0]]
    # The prompt is the tokenizer's own rendering of the template.
    turns = [{"role": turn.role, "content": turn.content} for turn in row.messages]
    prompt = tokenizer.apply_chat_template(
        turns, chat_template=form.template, add_generation_prompt=True, return_dict=False
    )
    assert list(last.prompt_ids) == prompt


@pytest.mark.parametrize("template", TOKENS_OF_PHI)
def test_what_is_learned_with_a_tokenizer_like_llama_s(real: Any, template: str) -> None:
    tokenizer = real("phi3_mini")
    example = chat_format(tokenizer, template).encode_example(Row((SYSTEM, *TURNS), (ANSWER,)), train_on="assistant")
    assert example.counted is not None
    flags = [False] * len(example.prompt_ids) + list(example.counted[0])
    names = tokenizer.convert_ids_to_tokens([*example.prompt_ids, *example.completions[0]])
    written, inside = [], False
    for name, counts in zip(names, flags, strict=True):
        if counts != inside:
            written.append("⟦" if counts else "⟧")
            inside = counts
        written.append(name.replace("<0x0A>", "↵"))
    assert " ".join([*written, "⟧"]) == TOKENS_OF_PHI[template]


def published(text: str) -> str:
    """A template of `../shared` without the indents that it was given for reading."""
    return text.replace("    ", "").replace("\n", "")


def written_by(text: str, turns: Sequence[Message], *, bos: str, opens_answer: bool) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    told = [{"role": turn.role, "content": turn.content} for turn in turns]
    return environment.from_string(text).render(
        messages=told, bos_token=bos, eos_token="</s>", add_generation_prompt=opens_answer
    )


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("chatml", "chatml"),
        ("zephyr", "zephyr"),
        ("mistral", "mistral-instruct"),
        ("vicuna", "vicuna"),
        ("alpaca", "alpaca"),
        ("phi-3", "phi-3"),
        ("qwen", "qwen2.5-instruct"),
    ],
)
@pytest.mark.parametrize("bos", [True, False])
def test_shipped_templates_write_the_published_bytes(shared: Path, name: str, file: str, bos: bool) -> None:
    text = (shared / f"data/tokenizers/chat_templates/{file}.jinja").read_text()
    text = text if name == "qwen" else published(text)
    form = chat_format(byte_level(bos=bos), name)
    # Published ones write the beginning token always or never; ours do if the tokenizer itself puts one before a text.
    first = "<s>" if bos else ""
    conversations = [(SYSTEM, *TURNS), (SYSTEM, *TURNS, Message("assistant", "a\n\n b")), TURNS, TURNS[:1]]
    for turns in conversations if name != "qwen" else conversations[:2]:  # without a system turn it writes its own
        for opens_answer in (True, False):
            if turns[-1].role == "assistant" and opens_answer:
                continue
            asked = Conversation(turns)
            ours = form.rendering.text(asked, opens_answer=opens_answer)
            theirs = written_by(text, turns, bos="", opens_answer=opens_answer)
            assert ours == first + theirs, turns


def test_llama_3_and_gemma_trim_what_is_said_as_the_published_ones_do() -> None:
    turns = (Message("system", " Be brief.\n"), Message("user", "\nHi "), Message("assistant", " Hello. "))
    llama, gemma = (chat_format(byte_level(bos=False), name).rendering for name in ("llama-3", "gemma"))
    assert llama.text(Conversation(turns)) == (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    )
    # Gemma 3 puts the system text before the first turn as it is.
    assert gemma.text(Conversation(turns)) == (
        "<start_of_turn>user\n Be brief.\n\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
    )
    kept = chat_format(byte_level(bos=False), "phi-3").rendering.text(Conversation(turns[1:]))
    assert kept == "<|user|>\n\nHi <|end|>\n<|assistant|>\n Hello. <|end|>\n"


def test_the_shipped_phi_3_writes_what_its_tokenizer_s_own_template_writes(real: Any) -> None:
    tokenizer = real("phi3_mini")
    own, ours = chat_format(tokenizer), chat_format(tokenizer, "phi-3")
    for turns in ((SYSTEM, *TURNS), TURNS, (Message("user", " Hi\n"),)):
        assert own.render_prompt(turns) == ours.render_prompt(turns)
        row = Row(turns, ("See you.",))
        assert own.encode_example(row, train_on="assistant") == ours.encode_example(row, train_on="assistant")


@pytest.mark.parametrize("name", ["mistral", "gemma", "vicuna", "alpaca"])
def test_a_system_turn_that_a_template_has_no_place_for_is_refused(name: str) -> None:
    form = chat_format(byte_level(), name)
    turns = (*TURNS, Message("assistant", "Yes."), Message("system", "Be long."), Message("user", "Why?"))
    with pytest.raises(
        DataError, match=f"^f:1: the chat template {name} refuses the turns user, .* has no system turns"
    ):
        form.render_prompt(turns, place="f:1")


# templates that rewrite what was said before


@pytest.fixture
def qwen3(shared: Path, real: Callable[[str], PreTrainedTokenizerBase], tmp_path: Path) -> ChatFormat:
    config = json.loads((shared / "data/tokenizers/qwen3_config_only/tokenizer_config.json").read_text())
    (tmp_path / "qwen3.jinja").write_text(config["chat_template"])
    return chat_format(real("minimind"), str(tmp_path / "qwen3.jinja"))


THOUGHT = "<think>\n{}\n</think>\n\n{}"


def test_earlier_turns_are_learned_as_the_template_writes_them_later(qwen3: ChatFormat) -> None:
    row = Row(TURNS, (ANSWER,))
    # Only the last answer has a thought, an empty one; nothing of the earlier turn is lost.
    assert bracketed(qwen3, qwen3.encode_example(row, train_on="assistant")) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello.<|im_end|>⟧\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nSee you.<|im_end|>⟧"
    )
    assert not qwen3.rendering.rewritten(asked_in(row))


def test_a_thought_that_the_template_leaves_out_later_is_told(qwen3: ChatFormat) -> None:
    hello = Message("assistant", THOUGHT.format("They greet.", "Hello."))
    row = Row((TURNS[0], hello, TURNS[2]), (THOUGHT.format("They leave.", ANSWER),), place="f:1")
    for train_on in ("assistant", "completion"):
        example = qwen3.encode_example(row, train_on=train_on)
        assert bracketed(qwen3, example).replace("⟦Hello.<|im_end|>⟧", "Hello.<|im_end|>") == (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
            "⟦<think>\nThey leave.\n</think>\n\nSee you.<|im_end|>⟧"
        )
    assert qwen3.rendering.rewritten(asked_in(row))
    told: list[str] = []
    encode_rows([row, row], qwen3, Limits(1000, tell=told.append))
    assert told == ["the chat template leaves out parts of earlier answers (thinking, say) in 2 of 2 rows (f:1, f:1)"]


def test_a_turn_between_a_call_and_its_result_is_learned_where_it_stands(qwen3: ChatFormat) -> None:
    call = Message("assistant", "", (ToolCall("f", "{}"),))
    row = Row((TURNS[0], call, Message("tool", "4")), ("Four.",))
    assert bracketed(qwen3, qwen3.encode_example(row, train_on="assistant")) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        '⟦<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>⟧\n'
        "<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
        "⟦<think>\n\n</think>\n\nFour.<|im_end|>⟧"
    )


CLOSES_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n"
    "{{ m.content.split('</think>')[0].replace('<think>', '').strip() if '</think>' in m.content }}\n</think>\n\n"
    "{% endif %}{{ m.content.split('</think>')[-1].strip() }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)


@pytest.mark.parametrize("name", [MADE, "minimind"])
def test_an_answer_that_thinks_stands_where_the_template_puts_thoughts(
    request: pytest.FixtureRequest, name: str
) -> None:
    # This template closes an empty thought in its prompt; an answer's own thought takes that place.
    if name == MADE:
        tokenizer = byte_level(bos=False, extra=MARKS["chatml"])
        tokenizer.chat_template = CLOSES_THOUGHTS
    else:
        tokenizer = request.getfixturevalue("real")(name)
    form = chat_format(tokenizer)
    thinks = Row(
        TURNS[:1], (THOUGHT.format("They greet.", "Hello."), "<think>Who?</think>Yes?"), (1.0, 0.0), place="f:1"
    )
    example = form.encode_example(thinks)
    assert bracketed(form, example) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n⟦They greet.\n</think>\n\nHello.<|im_end|>⟧"
    )
    assert spelled(form, example.completions[1]) == "Who?\n</think>\n\nYes?<|im_end|>"
    turns = replace(thinks, messages=(TURNS[0], Message("assistant", THOUGHT.format("So.", "Hello.")), TURNS[2]))
    assert bracketed(form, form.encode_example(turns.only([0]), train_on="assistant")) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n⟦So.\n</think>\n\nHello.<|im_end|>⟧\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n<think>\n"
        "⟦They greet.\n</think>\n\nHello.<|im_end|>⟧"
    )
    plain = Row(TURNS[:1], ("Hello.",))
    assert bracketed(form, form.encode_example(plain)).endswith("assistant\n<think>\n\n</think>\n\n⟦Hello.<|im_end|>⟧")
    with pytest.raises(DataError, match="^f:1: the chat template of .* begins answers that think in another way") as no:
        form.encode_example(Row(TURNS[:1], (*thinks.answers, "No."), (2.0, 1.0, 0.0), place="f:1"))
    assert no.value.remedy == "answers-begin-apart"


def test_a_thought_that_the_prompt_opened_is_not_opened_twice() -> None:
    tokenizer = byte_level(bos=False)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.content.split('</think>')[-1] }}</s>]{% endfor %}"
        "{{ '[<think>\n' if add_generation_prompt }}"
    )
    form = chat_format(tokenizer)
    example = form.encode_example(Row(TURNS[:1], (THOUGHT.format("So.", "Yes."), "So.\n</think>\n\nYes."), (1.0, 0.0)))
    assert spelled(form, example.prompt_ids) == "[Hi</s>][<think>\n"
    assert [spelled(form, ids) for ids in example.completions] == ["So.\n</think>\n\nYes.</s>"] * 2


def test_an_earlier_turn_that_only_the_last_one_s_token_closes_has_no_end() -> None:
    tokenizer = byte_level(bos=False)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.content }}]{% endfor %}{{ '[' if add_generation_prompt else eos_token }}"
    )
    form = chat_format(tokenizer)
    example = form.encode_example(Row(TURNS, (ANSWER,)), train_on="assistant")
    assert bracketed(form, example) == "[Hi][⟦Hello.⟧][Bye][⟦See you.]</s>⟧"
