"""Chat templates by name, in the Jinja that tokenizers carry, or from a file."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from onebase.errors import ModelError

BUILT_IN_TEMPLATES = {
    # Contents joined by newlines, what the assistant says directly behind them: for story openings and base models.
    "plain": (
        "{%- for message in messages -%}"
        "{{ ('' if loop.first or message.role == 'assistant' else '\n') + message.content }}"
        "{%- endfor -%}"
    ),
    # The transcripts of Bai et al. 2022 (hh-rlhf); they have no system turn, which is written in the same manner.
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
}


def template_text(template: str) -> str:
    """The Jinja text of a built-in template by name, or of a .jinja file. Raises ModelError for anything else."""
    if template in BUILT_IN_TEMPLATES:
        return BUILT_IN_TEMPLATES[template]
    path = Path(template)
    if path.suffix != ".jinja":
        near = get_close_matches(template, BUILT_IN_TEMPLATES, n=1)
        raise ModelError(
            f"the chat template {template[:60]!r} is not known{f'; did you mean {near[0]}?' if near else ''}; set "
            f"model.chat_template to one of {', '.join(BUILT_IN_TEMPLATES)}, or to the path of a .jinja file"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ModelError(
            f"the chat template {template} cannot be read: {reason}; correct model.chat_template"
        ) from None
