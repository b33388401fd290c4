"""Texts for pretraining: laid end to end, each between a beginning and an end token, and cut into blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onebase.data.chat import ChatFormat
from onebase.data.prepare import best_answer
from onebase.errors import DataError
from onebase.records import Example, Row


def as_text(row: Row, chat: ChatFormat) -> Example:
    """A plain text, or a conversation as its chat template writes it, every token counted.

    Raises:
        DataError: it is a conversation, and there is no chat template.
    """
    if (row.messages and chat.template is None) or (not row.messages and len(row.answers) != 1):
        raise DataError(
            f"{row.place}: pretraining reads plain text (.txt, or rows with a 'text' key), and the base has no chat "
            "template to write conversations in",
            remedy="no-text",
        )
    return chat.encode_example(best_answer(row), train_on="all")


def end_to_end(texts: Iterable[Example]) -> Iterator[list[int]]:
    """Each text's ids as they stand among the others: where texts begin with the end token, one stands between two."""
    last: int | None = None
    for text in texts:
        ids = [*text.prompt_ids, *text.completions[0]]
        yield ids[len(text.prompt_ids) :] if text.prompt_ids[0] == last else ids
        last = ids[-1]


def blocks_of(texts: Iterable[Example], length: int) -> list[Example]:
    """The texts' blocks; the last one may be shorter."""
    ids = [token for part in end_to_end(texts) for token in part]
    blocks = [ids[start : start + length] for start in range(0, len(ids), length)]
    return [Example(block[:1], [block[1:]]) for block in blocks if len(block) > 1]
