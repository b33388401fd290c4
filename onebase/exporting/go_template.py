"""Chat templates for Ollama, whose templates are Go's: found by rendering ours, kept only if they write the same.

A template is taken to be what stands before and after each kind of turn. That is rendered with our template, written
as a Go template, and evaluated on several conversations; one that does anything else is said not to be translatable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onebase.data.chat import ChatFormat, adds_bos
from onebase.data.rendering import Conversation
from onebase.errors import DataError, ModelError
from onebase.records import Message

Render = Callable[[Sequence[Message], bool], str]
"""The conversation as text; with True, up to where the answer begins."""
_USER, _ANSWER, _SYSTEM = "ONEBASEUSER", "ONEBASEANSWER", "ONEBASESYSTEM"


@dataclass(frozen=True, slots=True)
class Turns:
    """What a template writes around turns."""

    opening: str
    """Before the first turn, if there is no system text."""
    system: tuple[str, str] | None
    """Around a system text, from the beginning; None if that does not stand in a turn of its own."""
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str
    """After the last turn, where the answer begins."""

    def write(self, messages: Sequence[Message]) -> str:
        """What the Go template writes, up to where the answer begins."""
        system = next((message.content for message in messages if message.role == "system"), "")
        text = self.opening
        if system and self.system is not None:
            text = self.system[0] + system + self.system[1]
        around = {"user": self.user, "assistant": self.assistant}
        for message in messages:
            if message.role in around:
                before, after = around[message.role]
                text += before + message.content + after
        return text + self.answer

    def go(self) -> str:
        """The template in Go's language, over `.System` and `.Messages`."""
        head = _literal(self.opening)
        if self.system is not None:
            before, after = map(_literal, self.system)
            other = f"{{{{ else }}}}{head}" if head else ""
            head = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{other}{{{{ end }}}}"
        user, assistant = (
            f"{_literal(before)}{{{{ .Content }}}}{_literal(after)}" for before, after in (self.user, self.assistant)
        )
        return (
            f'{head}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{user}{{{{ else if eq .Role "assistant" }}}}'
            f"{assistant}{{{{ end }}}}{{{{ end }}}}{_literal(self.answer)}"
        )


def translate(chat: ChatFormat) -> tuple[str | None, str]:
    """A chat template as a Go template, and a line on what is lost; None if it cannot be translated."""
    if chat.template is None:
        return None, "the role has no chat template: Ollama hands on every prompt as it is"

    def render(messages: Sequence[Message], opens: bool) -> str:
        text = chat.rendering.text(Conversation(tuple(messages)), opens_answer=opens)
        bos = chat.tokenizer.bos_token
        # The engine puts the beginning token before the prompt itself, if the tokenizer does.
        return text.removeprefix(bos) if isinstance(bos, str) and adds_bos(chat.tokenizer) else text

    try:
        turns = read_turns(render)
    except (DataError, ModelError):
        turns = None
    if turns is None or '"""' in turns.go():
        return None, "the chat template cannot be translated for Ollama: write TEMPLATE yourself"
    lost = "" if turns.system else "system texts are left out: the chat template writes them inside another turn"
    return turns.go(), lost


def read_turns(render: Render) -> Turns | None:
    """What a template writes around turns; None if it does more than that."""
    user, answer = Message("user", _USER), Message("assistant", _ANSWER)
    alone, opened = render([user], False), render([user], True)
    first, after_user = _split(alone, _USER)
    between = render([user, answer, user], False)[len(first) + len(_USER) :]
    before_answer, rest = _split(between, _ANSWER)
    after_answer = _split(render([user, answer], False), _ANSWER)[1]
    before_user = _split(rest, _USER)[0]
    if not (opened.startswith(alone) and before_answer.startswith(after_user) and before_user.startswith(after_answer)):
        return None
    before_user = before_user[len(after_answer) :]
    if not first.endswith(before_user):
        return None
    opening, assistant = first[: len(first) - len(before_user)], (before_answer[len(after_user) :], after_answer)
    turns = Turns(opening, None, (before_user, after_user), assistant, opened[len(alone) :])
    if not _writes_the_same(turns, render, with_system=False):
        return None
    with_system = _with_system(turns, render, before_user)
    return with_system if with_system is not None else turns


def _with_system(turns: Turns, render: Render, before_user: str) -> Turns | None:
    try:
        text = render([Message("system", _SYSTEM), Message("user", _USER)], False)
    except DataError:
        return None
    before, rest = _split(text, _SYSTEM)
    after = _split(rest, _USER)[0]
    if not after.endswith(before_user):
        return None
    after = after[: len(after) - len(before_user)]
    found = Turns(turns.opening, (before, after), turns.user, turns.assistant, turns.answer)
    return found if _writes_the_same(found, render, with_system=True) else None


def _writes_the_same(turns: Turns, render: Render, *, with_system: bool) -> bool:
    talk = [Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "2 + 2?"), Message("assistant", "4")]
    talk.append(Message("user", "再见"))
    system = [Message("system", "Be brief.")] if with_system else []
    return all(turns.write([*system, *talk[:k]]) == render([*system, *talk[:k]], True) for k in (1, 3, 5))


def _split(text: str, mark: str) -> tuple[str, str]:
    before, found, after = text.partition(mark)
    if not found:
        raise DataError(f"the template leaves out {mark}")
    return before, after


def _literal(text: str) -> str:
    """Text as it stands in a Go template."""
    return text.replace("{{", '{{ "{{" }}')
