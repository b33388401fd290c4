"""One choice of an answer, from tokens drawn to text reported."""

from __future__ import annotations

from onebase.sampling.running import Row
from onebase.serving.job import Job, Piece, Token
from onebase.serving.text import TextStream


class Choice:
    """The choice `number` of a job."""

    def __init__(self, job: Job, number: int) -> None:
        self.job, self._number = job, number
        self._text = TextStream(job.served.chat.decode, job.stops, strips=job.strips)
        self._taken = 0
        self._unreported = ""
        self._tokens: list[Token] = []

    def read(self, row: Row) -> tuple[Piece | None, int]:
        """What is new since the last time, None if there is nothing to report yet; and the tokens drawn since.

        The last piece comes with the end token, the length limit, a stop string or the time limit, whichever is first.
        """
        ids, before = row.sample.ids, self._taken
        while self._taken < len(ids) and not self._text.stopped:
            place, self._taken = self._taken, self._taken + 1
            ends = row.sample.ended and self._taken == len(ids)
            if not ends:  # the end token is no text
                self._unreported += self._text.add(ids[place])
            if row.tops is not None:
                self._tokens.append(self._token(row, place))
        finish = None
        if not self._text.stopped and (row.is_over or self.job.is_late):
            self._unreported += self._text.end()
            finish = "stop" if row.sample.ended else "length"
        if self._text.stopped:
            finish = "stop"
        drawn = len(ids) - before
        if finish is None and not (self.job.piecewise and (self._unreported or self._tokens)):
            return None, drawn
        piece = Piece(self._number, self._unreported, tuple(self._tokens), finish, self._taken if finish else 0)
        self._unreported, self._tokens = "", []
        return piece, drawn

    def _token(self, row: Row, place: int) -> Token:
        likeliest = tuple((self._shown(token), logprob) for token, logprob in row.likeliest[place])
        return Token(self._shown(row.sample.ids[place]), row.plain_logprobs[place], likeliest)

    def _shown(self, token: int) -> str:
        """A token's text with the blank before it, which decoders leave out at the beginning."""
        decode = self.job.served.chat.tokenizer.decode
        once, twice = str(decode([token])), str(decode([token, token]))
        return twice[len(once) :]
