"""Turns an answer's tokens into text as they come, up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are no character yet."""


class TextStream:
    """The text of tokens that come one by one.

    Text is held back while it may still change or turn out to be a stop string. All that is handed out, joined, is what
    decoding all tokens at once gives, up to the first stop string.

    Args:
        decode: the text of token ids, without special tokens.
        stops: strings that end the text; what they are found in may span tokens.
        strips: leave out blanks at both ends, as a template would that writes the answer into a conversation.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = (), *, strips: bool = False):
        self._decode, self._stops, self._strips = decode, stops, strips
        self._ids: list[int] = []
        self._window = 0
        """Tokens before this one no longer change the text of new ones."""
        self._read = 0
        """Tokens whose text is in `_held` or handed out."""
        self._held = ""
        self._begun = False
        self.stopped = False
        """Whether a stop string was found; nothing comes after it."""

    def add(self, token: int) -> str:
        """Takes the next token; returns the text that is now certain."""
        self._ids.append(token)
        known, text = self._decode(self._ids[self._window : self._read]), self._decode(self._ids[self._window :])
        if text.endswith(INCOMPLETE) or len(text) <= len(known):
            return ""
        self._held += text[len(known) :]
        self._window, self._read = self._read, len(self._ids)
        return self._certain()

    def end(self) -> str:
        """The text that was held back, once no further token comes."""
        known, text = self._decode(self._ids[self._window : self._read]), self._decode(self._ids[self._window :])
        self._held += text[len(known) :]
        certain = self._certain()
        rest, self._held = ("" if self.stopped else self._held), ""
        return certain + (rest.rstrip() if self._strips else rest)

    def _certain(self) -> str:
        """Takes from what is held all that can neither change nor belong to a stop string."""
        if self._strips and not self._begun:
            self._held = self._held.lstrip()
        self._begun = self._begun or bool(self._held)
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text.rstrip() if self._strips else text
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        text = self._held[: len(self._held) - kept]
        if self._strips:
            text = text.rstrip()
        self._held = self._held[len(text) :]
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text may be the beginning of the stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
