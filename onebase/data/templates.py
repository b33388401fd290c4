"""Chat templates in Jinja: shipped ones by name, from a tokenizer or from a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from onebase.data.bounds import bounded
from onebase.errors import DataError, ModelError
from onebase.reading.tools import for_template
from onebase.records import Message
from onebase.shown import number_of, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_ADDED = 1_000_000
"""Characters a template may write in addition to the conversation's own."""

_FOLDER = Path(__file__).with_name("chat_templates")
_SHIPPED = ("llama-3", "phi-3", "mistral", "gemma", "qwen", "zephyr", "alpaca", "vicuna")

BUILT_IN_TEMPLATES = {
    # Contents joined by newlines, assistant turns appended without one: for story openings and base models.
    "plain": (
        "{%- for message in messages -%}"
        "{{ ('' if loop.first or message.role == 'assistant' else '\n') + message.content }}"
        "{%- endfor -%}"
    ),
    # The transcripts of Bai et al. 2022 (hh-rlhf). They have no system turns; these are written the same way.
    "hh": (
        "{%- for message in messages -%}"
        "{{ '\n\n' + {'user': 'Human', 'assistant': 'Assistant', 'system': 'System'}[message.role] + ': ' }}"
        "{{ message.content }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '\n\nAssistant:' }}{%- endif -%}"
    ),
    "chatml": (
        "{%- for message in messages -%}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    ),
    **{name: (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8") for name in _SHIPPED},
}
"""Jinja text by name. A role keeps a hash of its template, so these texts stay: a better one gets a name of its own."""


def built_in(name: str, *, with_bos: bool) -> str:
    """The Jinja text of a built-in template, with the beginning token in front if the tokenizer writes one."""
    return ("{{- bos_token -}}" if with_bos else "") + BUILT_IN_TEMPLATES[name]


def check_template(text: object, name: str) -> str:
    """Returns the template's text if it is safe to render.

    Raises:
        ModelError: not a text, or it raises numbers to powers, which no template needs and no time limit stops.
    """
    if not isinstance(text, str):
        raise ModelError(f"the chat template {name} is {shown(repr(text), 40)}, not a text", remedy="template-not-text")
    try:
        tokens = [token for token in Environment().lex(text) if token[1] != "whitespace"]
    except TemplateError:
        return text  # reported when it is rendered
    for (_, _, before), (line, kind, word) in zip(tokens, tokens[1:], strict=False):
        if kind == "operator" and word == "**" and before not in ("(", ","):
            raise ModelError(
                f"the chat template {name} raises a number to a power in line {line}", remedy="template-power"
            )
    return text


def render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Message],
    place: str,
    called: str,
    *,
    tools: Sequence[str] = (),
    generation: bool,
) -> str:
    """The conversation as the template writes it; with `generation`, up to where the answer begins.

    Nothing here tells whether the template wrote all of it.

    Raises:
        DataError: the template refuses the conversation; the message starts with `place`.
        ModelError: the template fails, takes too long, or writes far more than the conversation; the message names it
            as `called`.
    """
    turns = [for_template(message) for message in messages]
    defined = [json.loads(tool) for tool in tools]
    at = f"{place}: " if place else ""
    roles = ", ".join(message.role for message in messages)
    try:
        with bounded():
            text = tokenizer.apply_chat_template(
                turns,
                tools=defined or None,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=generation,
            )
    except TemplateSyntaxError as error:
        raise ModelError(
            f"{called} is not valid Jinja at line {error.lineno}: {shown(error.message, 200)}", remedy="template"
        ) from None
    except TemplateError as error:
        of_tools = bool(tools) or any(message.role == "tool" or message.tool_calls for message in messages)
        raise DataError(
            f"{at}{called} refuses the turns {roles}: {shown(error, 200)}",
            remedy="template-without-tools" if of_tools else "template-refuses-row",
        ) from None
    except Exception as error:
        reason = f"{type(error).__name__}: {shown(error, 200)}" if str(error) else type(error).__name__
        raise ModelError(
            f"{at}{called} fails on the turns {roles}{_line_of(error)}: {reason}", remedy="template"
        ) from None
    given = sum(len(message.text) for message in messages) + sum(map(len, tools))
    if not isinstance(text, str) or len(text) > LONGEST_ADDED + 10 * given:
        raise ModelError(
            f"{at}{called} writes {number_of(len(text), 'character', form=',')} around the turns {roles}",
            remedy="template",
        )
    return text


def _line_of(error: BaseException) -> str:
    """` in line 3` of the template, if the traceback tells."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" in line {line}" if line else ""


def template_text(template: str) -> str:
    """The Jinja text of a built-in template by name, or of a .jinja file. Raises ModelError for anything else."""
    if template in BUILT_IN_TEMPLATES:
        return BUILT_IN_TEMPLATES[template]
    path = Path(template)
    if path.suffix != ".jinja":
        near = get_close_matches(template, BUILT_IN_TEMPLATES, n=1)
        raise ModelError(
            f"the chat template {template[:60]!r} is not known{f'; did you mean {near[0]}?' if near else ''}",
            remedy="no-template",
            names=", ".join(BUILT_IN_TEMPLATES),
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ModelError(f"the chat template {template} cannot be read: {reason}", remedy="template-unread") from None
