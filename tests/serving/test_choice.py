"""A choice's text: without the token that ended it, in pieces or as a whole."""

from __future__ import annotations

import pytest

from onebase.config.serving import ServedRole
from onebase.data.chat import chat_format
from onebase.sampling.running import Row
from onebase.sampling.sampler import Sample, Sampling
from onebase.serving.choice import Choice
from onebase.serving.job import Job
from onebase.serving.roles import Served
from tests.tiny_models import tiny_tokenizer

CHAT = chat_format(tiny_tokenizer(), "hh")


def choice(*stops: str, piecewise: bool, stop_id: int = 2) -> tuple[Choice, Row]:
    served = Served("a", "0", "policy", "a", CHAT, (stop_id,), ServedRole(role="a"))
    sampling = Sampling(20, stop_ids=(stop_id,))
    job = Job(served, [1], sampling, [0], stops=stops, piecewise=piecewise)
    return Choice(job, 0), Row(Sample(prompt=0), sampling, [0.0] * 20)


@pytest.mark.parametrize("piecewise", [True, False])
def test_the_token_that_ends_an_answer_is_no_text_even_where_it_is_no_special_one(piecewise: bool) -> None:
    ids = CHAT.tokenizer.encode("abc.", add_special_tokens=False)
    one, row = choice(piecewise=piecewise, stop_id=ids[-1])
    pieces = []
    for token in ids:
        row.sample.ids.append(token)
        row.sample.ended = token == ids[-1]
        piece, drawn = one.read(row)
        assert drawn == 1
        pieces += [piece] if piece else []
    assert "".join(piece.text for piece in pieces) == "abc" and len(pieces) == (4 if piecewise else 1)
    assert [piece.finish for piece in pieces if piece.finish] == ["stop"] and pieces[-1].num_tokens == 4


def test_tokens_behind_a_stop_string_are_not_counted() -> None:
    one, row = choice("c", piecewise=False)
    row.sample.ids += CHAT.tokenizer.encode("abcdef", add_special_tokens=False)
    piece, drawn = one.read(row)
    assert piece is not None and (piece.text, piece.finish, piece.num_tokens, drawn) == ("ab", "stop", 3, 6)
