"""Chat templates for Ollama: each that is translated writes what ours writes; the others are said not to be."""

from __future__ import annotations

import pytest

from onebase.data.chat import chat_format
from onebase.exporting.go_template import read_turns, translate
from onebase.records import Message
from tests.tiny_models import tiny_tokenizer

IN_TURNS = ["hh", "chatml", "qwen", "llama-3", "phi-3", "zephyr", "alpaca", "vicuna"]
"""Templates that write a system text on its own."""
TALK = [
    Message("user", "How are you?"),
    Message("assistant", "Fine."),
    Message("user", "2 < 3?"),
    Message("assistant", "Yes"),
    Message("user", "再见"),
]


@pytest.mark.parametrize("system", [[], [Message("system", "Be kind.")]])
@pytest.mark.parametrize("name", IN_TURNS)
def test_a_translated_template_writes_what_ours_writes(name: str, system: list[Message]) -> None:
    chat = chat_format(tiny_tokenizer(), name)
    go, lost = translate(chat)
    assert go is not None and not lost
    turns = read_turns(
        lambda messages, opens: chat.tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in messages],
            chat_template=chat.template,
            tokenize=False,
            add_generation_prompt=opens,
        )
    )
    assert turns is not None
    for count in (1, 3, 5):
        assert turns.write([*system, *TALK[:count]]) == chat.render_prompt([*system, *TALK[:count]])


def test_the_go_text_is_a_range_over_turns_without_the_beginning_token() -> None:
    go, _ = translate(chat_format(tiny_tokenizer(), "chatml"))  # this tokenizer puts <s> before a text itself
    assert go == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ range .Messages }}"
        '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        "{{ end }}{{ end }}<|im_start|>assistant\n"
    )


def test_a_system_text_inside_another_turn_is_left_out_and_said_to_be() -> None:
    go, lost = translate(chat_format(tiny_tokenizer(), "gemma"))
    assert go is not None and ".System" not in go and "system texts are left out" in lost


def test_a_default_system_text_stands_where_none_is_given() -> None:
    template = (
        "{% if messages[0].role != 'system' %}[S]You are kind.[/S]{% endif %}"
        "{% for m in messages %}{{ '[' + m.role[0] + ']' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[a]{% endif %}"
    )
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    go, _ = translate(chat_format(tokenizer))
    assert go is not None
    assert go.startswith("{{ if .System }}[s]{{ .System }}{{ else }}[S]You are kind.[/S]{{ end }}{{ range .Messages }}")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index ~ m.content }}{% endfor %}",  # counts turns
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        '{% for m in messages %}{{ m.content + \'"""\' }}{% endfor %}',  # would end the Modelfile's text
        "{{ messages[-1].content }}",
    ],
)
def test_what_go_cannot_write_is_said_not_to_be_translatable(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    go, lost = translate(chat_format(tokenizer))
    assert go is None and lost == "the chat template cannot be translated for Ollama: write TEMPLATE yourself"


def test_without_a_template_prompts_are_handed_on_as_they_are() -> None:
    go, lost = translate(chat_format(tiny_tokenizer()))
    assert go is None and "has no chat template" in lost
