"""Words to ids: prompts that no answer changes, one end token, what counts, real tokenizers and ones made here."""

from __future__ import annotations

import json
import random
import resource
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from onebase.data.chat import ChatFormat, chat_format, check_tokenizer
from onebase.data.fit import require_counted
from onebase.data.selection import drop_unusable
from onebase.data.templates import BUILT_IN_TEMPLATES, check_template
from onebase.errors import DataError, ModelError
from onebase.reading.formats import read_rows
from onebase.records import Example, Message, Row

CORPUS = [
    "Once upon a time there was a little girl named Lily. She loved to play outside.",
    "Human: what is the answer? Assistant: the answer is here, there and everywhere.",
    "从前有一座山,山里有一座庙。你好,世界!",
    "a  b   c\n\nd\n",
] * 4

TEXTS = [
    "hello",
    " hello",
    "hello ",
    "  two  blanks  ",
    "\n",
    "\n\n",
    "a\n\nb",
    "\n\nleading",
    "tab\tx",
    "...",
    "1234567",
    "你好,世界",
    " 你好",
    "\u3000全角",
    "🙂",
    "🙂🙂 x",
    "👩\u200d👩\u200d👧 família",
    "e\u0301",
    "mixed 中文 and English 🙂\n",
    "once upon a time",
    "the answer is",
    "\u2028",
    "\x00\x01",
    "<b>not special</b>",
    "x" * 50,
]


BEGINS = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])


def byte_level(
    bos: bool = True, eos: bool = True, extra: Sequence[str] = (), adds_bos: bool = True
) -> PreTrainedTokenizerFast:
    """Byte-level BPE as in GPT-2, trained here on a few lines so that tokens span words and blanks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = ["<s>", "</s>", *extra]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, special_tokens=names, show_progress=False),
    )
    chosen = {"bos_token": "<s>"} if bos else {}
    if bos and adds_bos:
        tokenizer.post_processor = BEGINS
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **chosen, **({"eos_token": "</s>"} if eos else {}))


def llama_like() -> PreTrainedTokenizerFast:
    """BPE with byte fallback and a blank put before every text, as in Llama 2."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": byte + 3 for byte in range(256)}}
    merges = []
    for word in ["▁t h e", "▁a n s w e r", "h e l l o", "▁h e l l o", "▁ ▁", "▁o n c e", "i s"]:
        done, *rest = word.removeprefix("▁").split() if word != "▁ ▁" else ["▁", "▁"]
        if word.startswith("▁") and word != "▁ ▁":
            done, rest = "▁", [done, *rest]
        for piece in [done, *rest]:
            vocab.setdefault(piece, len(vocab))
        for piece in rest:
            if (done, piece) not in merges:
                merges.append((done, piece))
            done += piece
            vocab.setdefault(done, len(vocab))
    for letter in "bdfgjkmpquvxyzAB.,:?! ":
        vocab.setdefault(letter, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def chat(*contents: str) -> tuple[Message, ...]:
    return tuple(Message(("user", "assistant")[index % 2], content) for index, content in enumerate(contents))


def row(*contents: str, answers: Sequence[str] = ("a",), **more: Any) -> Row:
    return Row(chat(*contents), tuple(answers), place="f:1", **more)


def spelled(form: ChatFormat, ids: Sequence[int]) -> str:
    """The text of ids, special tokens written out."""
    text = form.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def with_template(template: str, **more: Any) -> ChatFormat:
    tokenizer = byte_level(**more)
    tokenizer.chat_template = template
    return chat_format(tokenizer, None)


TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>\n{% endfor %}"
TURNS_ALONE = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
PHI = TURNS + "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
PHI_TOKENS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")


@pytest.fixture(params=["byte_level", "byte_level_without_bos", "byte_level_that_adds_no_bos", "llama_like"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "llama_like":
        return llama_like()
    return byte_level(bos=request.param != "byte_level_without_bos", adds_bos=request.param == "byte_level")


# prompts and completions


def test_templates_by_name_render_as_documented() -> None:
    words = (Message("system", "S"), *chat("q", "a", "r"))
    tokenizer = byte_level()
    tokenizer = byte_level(bos=False)
    assert chat_format(tokenizer, "plain").render_prompt(words) == "S\nqa\nr"
    hh = chat_format(tokenizer, "hh").render_prompt(words)
    assert hh == "\n\nSystem: S\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:"
    chatml = chat_format(tokenizer, "chatml").render_prompt(words[:2])
    assert chatml == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("template", ["plain", "hh", "chatml"])
def test_what_was_encoded_decodes_to_what_was_rendered(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    form = chat_format(tokenizer, template)
    generator = random.Random(0)
    cases = [(text, other) for text in TEXTS for other in generator.sample(TEXTS, 6)]
    for prompt, answer in cases:
        rendered = form.render_prompt(chat(prompt)).removeprefix("<s>") + (" " if template == "hh" else "") + answer
        example = form.encode_example(row(prompt, answers=(answer,)))
        (completion,) = example.completions
        assert completion[-1] == tokenizer.eos_token_id and completion.count(tokenizer.eos_token_id) == 1
        assert form.decode([*example.prompt_ids, *completion[:-1]]) == rendered, (prompt, answer)


@pytest.mark.parametrize("template", ["plain", "hh", "chatml"])
def test_prompt_ids_do_not_depend_on_the_answer(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    form = chat_format(tokenizer, template)
    for prompt in TEXTS:
        example = form.encode_example(row(prompt, answers=TEXTS))
        assert example.prompt_ids == form.encode_prompt(chat(prompt))
        # Nor does one answer depend on the others beside it.
        alone = [form.encode_example(row(prompt, answers=(answer,))).completions[0] for answer in TEXTS]
        assert list(example.completions) == alone


def test_a_token_across_the_boundary_is_cut_there() -> None:
    form = chat_format(byte_level(), "plain")

    def pieces(text: str) -> list[int]:
        return form.tokenizer.encode(text, add_special_tokens=False)

    assert len(pieces("here")) == len(pieces("her")) == 1
    prompt = [form.tokenizer.bos_token_id, *pieces("her")]
    example = form.encode_example(row("her", answers=("e",)))
    assert list(example.prompt_ids) == prompt and list(example.completions[0][:-1]) == pieces("e")
    begun = form.encode_example(row("her", answers=("re",), prefix="e the"))
    assert list(begun.prompt_ids) == [*prompt, *form.encode_example(row("her", answers=("e the",))).completions[0][:-1]]
    assert form.decode(begun.prompt_ids) == "here the" and form.decode(begun.completions[0]) == "re"


def test_a_continuation_gets_no_blank_of_its_own() -> None:
    tokenizer = llama_like()
    form = chat_format(tokenizer, "plain")
    # "▁hello" is one token, and "hel" alone does not start it: the answer is encoded apart, without "▁".
    example = form.encode_example(row("hel", answers=("lo", "lo hello", "\nlo")))
    pieces = [tokenizer.convert_ids_to_tokens(list(ids))[:-1] for ids in example.completions]
    assert pieces == [["l", "o"], ["l", "o", "▁", "hello"], ["<0x0A>", "l", "o"]]


def own_ids(tokenizer: PreTrainedTokenizerBase, template: str | None, messages: Sequence[Message]) -> list[int]:
    """What whoever serves the model sends."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    ids = tokenizer.apply_chat_template(
        turns, chat_template=template, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert isinstance(ids, list)
    return ids


@pytest.mark.parametrize("template", ["plain", "hh", "chatml", TURNS_ALONE, "{{ bos_token }}" + TURNS_ALONE])
def test_a_prompt_is_what_the_tokenizer_makes_of_the_template(
    tokenizer: PreTrainedTokenizerBase, template: str, tmp_path: Path
) -> None:
    if template not in BUILT_IN_TEMPLATES:
        (tmp_path / "own.jinja").write_text(template)
        template = str(tmp_path / "own.jinja")
    form = chat_format(tokenizer, template)
    for text in filter(None, TEXTS):
        ids = form.encode_prompt(chat(text, "a", "r"))
        assert ids == own_ids(tokenizer, form.template, chat(text, "a", "r"))
        if template in BUILT_IN_TEMPLATES:
            assert (ids[0] == tokenizer.bos_token_id) == (tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id)
    # A template that a role was saved with gives the same prompts again.
    (tmp_path / "saved.jinja").write_text(form.template or "")
    again = chat_format(tokenizer, str(tmp_path / "saved.jinja"))
    assert again.fingerprint == form.fingerprint and again.encode_prompt(chat("q")) == form.encode_prompt(chat("q"))


def test_the_beginning_token_is_added_once() -> None:
    tokenizer = byte_level()
    assert chat_format(tokenizer, "plain").encode_prompt(chat("hi"))[0] == tokenizer.bos_token_id
    own = with_template("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}").encode_prompt(chat("hi"))
    assert own == chat_format(tokenizer, "plain").encode_prompt(chat("hi"))
    without = chat_format(byte_level(bos=False), "plain").encode_prompt(chat("hi"))
    assert without == own[1:]


def test_ranked_rows_keep_grades_margin_and_row() -> None:
    ranked = row("q", answers=("a", "b", "c"), grades=(2.0, 1.0, 0.0), margin=0.5)
    example = chat_format(byte_level(), "hh").encode_example(ranked)
    assert len(example.completions) == 3 and example.counted is None
    assert example.grades == (2.0, 1.0, 0.0) and example.margin == 0.5 and example.row is ranked


def test_padding_with_the_end_token_changes_nothing() -> None:
    tokenizer = byte_level()
    before = chat_format(tokenizer, "hh").encode_example(row("q", "a", "r"), train_on="assistant")
    tokenizer.pad_token = tokenizer.eos_token
    check_tokenizer(tokenizer)
    assert chat_format(tokenizer, "hh").encode_example(row("q", "a", "r"), train_on="assistant") == before


def test_encoding_does_not_change_the_tokenizer() -> None:
    tokenizer = byte_level()
    before = tokenizer.backend_tokenizer.to_str()
    chat_format(tokenizer, "chatml").encode_example(row("q"))
    assert tokenizer.backend_tokenizer.to_str() == before and tokenizer.chat_template is None


# the end of an answer


def test_a_template_that_closes_turns_gives_the_end_token() -> None:
    form = with_template(PHI, extra=PHI_TOKENS)
    end = form.tokenizer.convert_tokens_to_ids("<|end|>")
    assert form.end_token_id == end != form.tokenizer.eos_token_id
    (completion,) = form.encode_example(row("q", answers=(" an answer\n",))).completions
    assert completion[-1] == end and completion.count(end) == 1
    # The template trims; what it writes behind the end token is cut.
    assert form.decode(completion) == "an answer"


def test_a_template_without_a_special_end_gets_the_end_token_of_the_tokenizer() -> None:
    form = chat_format(byte_level(), "chatml")
    assert form.end_token_id == form.tokenizer.eos_token_id
    (completion,) = form.encode_example(row("q", answers=("an answer",))).completions
    assert spelled(form, completion) == "an answer</s>"
    marked = chat_format(byte_level(extra=("<|im_start|>", "<|im_end|>")), "chatml")
    (completion,) = marked.encode_example(row("q", answers=("an answer",))).completions
    assert spelled(marked, completion) == "an answer<|im_end|>"


def test_what_stands_before_the_end_token_is_kept() -> None:
    form = with_template("{% for m in messages %}[{{ m.content }} </s>]{% endfor %}{{ '[' if add_generation_prompt }}")
    (completion,) = form.encode_example(row("q")).completions
    assert spelled(form, completion) == "a </s>"


def test_blank_tokens_end_nothing() -> None:
    form = with_template(PHI.replace("<|end|>", " "))
    form.tokenizer.add_tokens(["\n", " "])
    assert form.end_token_id == form.tokenizer.eos_token_id


def test_an_answer_that_closes_with_the_end_token_has_it_once() -> None:
    form = chat_format(byte_level(), "hh")
    (completion,) = form.encode_example(row("q", answers=("done</s></s>",))).completions
    assert spelled(form, completion) == " done</s>"
    text = form.encode_example(Row((), ("done</s>",)))
    assert spelled(form, [*text.prompt_ids, *text.completions[0]]) == "<s>done</s>"


def test_without_its_end_an_answer_is_its_text_alone() -> None:
    form = with_template(PHI, extra=PHI_TOKENS)
    (completion,) = form.encode_example(row("q", answers=("done",)), add_end=False).completions
    assert spelled(form, completion) == "done"


@pytest.mark.parametrize("template", ["plain", "hh", "chatml"])
def test_an_answer_that_did_not_end_gets_no_end_token(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    form = chat_format(tokenizer, template)
    both = row("q", answers=("the answer", "the answer"), ended=(True, False))
    ended, cut = form.encode_example(both).completions
    assert list(cut) == list(ended[:-1]) and ended[-1] == form.end_token_id
    last = form.encode_example(replace(both, messages=chat("q", "a", "r")), train_on="assistant")
    assert list(last.completions[1]) == list(last.completions[0][:-1])
    texts = form.encode_example(Row((), ("hello", "hello"), (1.0, 0.0), ended=(True, False)))
    assert list(texts.completions[1]) == list(texts.completions[0][:-1])


def test_an_answer_that_did_not_end_keeps_its_last_blanks() -> None:
    form = with_template(PHI, extra=PHI_TOKENS)
    ended, cut = form.encode_example(row("q", answers=("so \n", "so \n"), ended=(True, False))).completions
    assert spelled(form, ended) == "so<|end|>" and spelled(form, cut) == "so \n"


def test_a_template_that_hides_thinking_takes_the_answer_itself() -> None:
    hides = TURNS + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    form = with_template(hides, extra=PHI_TOKENS)
    example = form.encode_example(row("q", answers=(" so\n</think>\n\nyes ",)))
    assert spelled(form, example.prompt_ids).endswith("<|assistant|><think>\n")
    assert spelled(form, example.completions[0]) == " so\n</think>\n\nyes <|end|>"


# next steps


STEPS = [
    ("Step 1: we add.\n", "Step 2: that makes 4."),
    ("Step 1: we add.\nStep 2:", " that makes 4.\n"),
    ("", "Step 1: add."),
    ("so", " the answer is"),
    ("the answer is here,", " there and everywhere."),
    ("once upon", " a time\n\n"),
    ("他说", "你好。"),
    ("\n", "\nhello"),
    (" two  ", " blanks "),
    ("one wo", "rd"),
    ("x", "\u2028"),
    ("🙂", "\nhello"),
    (" ", "a"),
]


@pytest.mark.parametrize("template", ["plain", "hh", "chatml"])
def test_prefix_and_step_are_the_tokens_of_the_whole_answer(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    form = chat_format(tokenizer, template)
    alike = 0
    for prompt in ("What is 2 + 2?", "hello", "你好"):
        for prefix, step in STEPS:
            example = form.encode_example(row(prompt, answers=(step,), prefix=prefix))
            whole = form.encode_example(row(prompt, answers=(prefix + step,)), add_end=False)
            ids, expected = ([*each.prompt_ids, *each.completions[0]] for each in (example, whole))
            # No end token, and not a character more or less than in the whole answer.
            assert form.decode(ids) == form.decode(expected), (prompt, prefix, step)
            assert spelled(form, ids).count("</s>") == 0
            # A token of the whole answer may span the boundary; nothing else may differ.
            if expected[: len(example.prompt_ids)] == list(example.prompt_ids):
                alike += 1
                assert ids == expected, (prompt, prefix, step)
    assert alike >= 0.7 * 3 * len(STEPS)


@pytest.mark.parametrize("template", ["plain", "hh", "chatml"])
def test_steps_share_their_prompt_which_depends_on_none_of_them(
    tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    form = chat_format(tokenizer, template)
    for prefix, _ in STEPS:
        example = form.encode_example(row("q", "a", "r", answers=TEXTS, prefix=prefix, grades=(0.0,) * len(TEXTS)))
        assert example.prompt_ids == form.encode_prompt(chat("q", "a", "r"), prefix=prefix)
        # What stands before the answer is encoded as where no answer has begun.
        bare = form.encode_prompt(chat("q", "a", "r"))
        assert list(example.prompt_ids[: len(bare)]) == bare
        alone = [form.encode_example(row("q", "a", "r", answers=(text,), prefix=prefix)) for text in TEXTS]
        assert [*example.completions] == [one.completions[0] for one in alone]
    assert form.encode_prompt(chat("q"), prefix="") == form.encode_prompt(chat("q"))


def test_a_prefix_stands_as_the_template_writes_the_beginning_of_an_answer() -> None:
    hh = chat_format(byte_level(), "hh")
    assert spelled(hh, hh.encode_prompt(chat("q"), prefix="So\n")) == "<s>\n\nHuman: q\n\nAssistant: So\n"
    first = hh.encode_example(row("q", answers=("So",), prefix=""))
    assert spelled(hh, first.prompt_ids).endswith("Assistant:") and spelled(hh, first.completions[0]) == " So"
    # A template that trims answers trims their beginning, and leaves what the steps meet at.
    trims = with_template(PHI, extra=PHI_TOKENS)
    example = trims.encode_example(row("q", answers=("\nthen \n", "Then"), prefix=" So \n"))
    assert spelled(trims, example.prompt_ids).endswith("<|assistant|>So \n")
    assert [spelled(trims, ids) for ids in example.completions] == ["\nthen \n", "Then"]
    hides = with_template(TURNS + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}", extra=PHI_TOKENS)
    example = hides.encode_example(row("q", answers=(" 2",), prefix="1 +"))
    assert spelled(hides, [*example.prompt_ids, *example.completions[0]]).endswith("<|assistant|><think>\n1 + 2")


def test_the_prefix_counts_where_the_assistant_s_turns_do() -> None:
    form = with_template(PHI, extra=PHI_TOKENS)
    steps = row("q", "first", "r", answers=("and 2", "or 2"), prefix="1 ")
    example = form.encode_example(steps, train_on="assistant")
    assert counted_text(form, example) == ["first<|end|>", "1 and 2"]
    alone = form.encode_example(steps)
    for index in (0, 1):
        assert [*example.prompt_ids, *example.completions[index]] == [*alone.prompt_ids, *alone.completions[index]]
    everything = form.encode_example(steps, train_on="all")
    assert len(everything.prompt_ids) == 1 and spelled(form, everything.completions[1]).endswith("1 or 2")


def test_a_step_without_a_token_is_refused() -> None:
    with pytest.raises(DataError, match="^f:1: an answer has no token to predict"):
        chat_format(byte_level(), "hh").encode_example(row("q", answers=("",), prefix="So"))


# what counts


def counted_text(form: ChatFormat, example: Example) -> list[str]:
    """The counted runs of the first completion."""
    assert example.counted is not None
    runs: list[list[int]] = [[]]
    for token, flag in zip(example.completions[0], example.counted[0], strict=True):
        if flag:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [spelled(form, run) for run in runs if run]


def test_every_assistant_turn_counts_and_nothing_else() -> None:
    form = with_template(PHI, extra=PHI_TOKENS)
    conversation = row("q", "first", "r", "second", "s", answers=("third", "other"))
    example = form.encode_example(conversation, train_on="assistant")
    assert example.prompt_ids == form.encode_prompt(chat("q"))
    assert counted_text(form, example) == ["first<|end|>", "second<|end|>", "third<|end|>"]
    # The ids are those of the conversation trained on its completion alone.
    alone = form.encode_example(conversation)
    for index in (0, 1):
        whole = [*example.prompt_ids, *example.completions[index]]
        assert whole == [*alone.prompt_ids, *alone.completions[index]]


def test_turns_end_only_where_the_template_ends_them() -> None:
    form = chat_format(byte_level(), "hh")
    example = form.encode_example(row("q", "first", "r", answers=("second",)), train_on="assistant")
    assert counted_text(form, example) == [" first", " second</s>"]
    whole = spelled(form, [*example.prompt_ids, *example.completions[0]])
    assert whole == "<s>\n\nHuman: q\n\nAssistant: first\n\nHuman: r\n\nAssistant: second</s>"


def test_a_single_turn_counts_alike_on_assistant_and_completion() -> None:
    form = chat_format(byte_level(), "hh")
    assistant = form.encode_example(row("q"), train_on="assistant")
    completion = form.encode_example(row("q"))
    assert assistant.completions == completion.completions and assistant.prompt_ids == completion.prompt_ids
    assert assistant.counted == [[True] * len(completion.completions[0])]


def test_all_counts_everything_behind_the_first_token(tokenizer: PreTrainedTokenizerBase) -> None:
    form = chat_format(tokenizer, "hh")
    example, apart = (form.encode_example(row("q", "a", "r"), train_on=on) for on in ("all", "completion"))
    assert len(example.prompt_ids) == 1 and example.counted is None
    assert [*example.prompt_ids, *example.completions[0]] == [*apart.prompt_ids, *apart.completions[0]]


def test_a_conversation_that_opens_with_the_assistant_is_prompted_by_it() -> None:
    form = chat_format(byte_level(), "hh")
    opened = Row((Message("assistant", "hi"), Message("user", "q")), ("a",))
    example = form.encode_example(opened, train_on="assistant")
    assert form.decode(example.prompt_ids) == "\n\nAssistant: hi\n\nHuman: q\n\nAssistant:"


def test_plain_text_follows_the_beginning_token_or_the_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    form = chat_format(tokenizer)
    ids = tokenizer.encode("once upon a time", add_special_tokens=False)
    example = form.encode_example(Row((), ("once upon a time",), (1.0,)))
    begun = tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    first = tokenizer.bos_token_id if begun else tokenizer.eos_token_id
    assert list(example.prompt_ids) == [first] and list(example.completions[0]) == [*ids, tokenizer.eos_token_id]
    assert example.counted is None and example.grades == (1.0,)
    compared = form.encode_example(Row((), ("once upon a time", "hello"), (1.0, 0.0)))
    assert list(compared.prompt_ids) == [first] and compared.completions[0] == example.completions[0]


# refusals


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        chat_format(byte_level(eos=False), "hh")
    assert str(caught.value) == (
        f"the tokenizer {type(byte_level()).__name__} has no end token, so no answer could end; "
        "set eos_token in its tokenizer_config.json"
    )


def test_a_tokenizer_without_a_template_says_what_to_set() -> None:
    form = chat_format(byte_level())
    assert form.encode_example(Row((), ("text",))).completions and form.end_token_id == form.tokenizer.eos_token_id
    with pytest.raises(ModelError, match="has no chat template$") as caught:
        form.encode_example(row("q"))
    assert (caught.value.remedy, caught.value.facts) == ("no-template", {"names": ", ".join(BUILT_IN_TEMPLATES)})


def test_template_names_and_files_are_checked(tmp_path: Path) -> None:
    tokenizer = byte_level()
    with pytest.raises(ModelError, match=r"'chatlm' is not known; did you mean chatml\?$") as caught:
        chat_format(tokenizer, "chatlm")
    assert caught.value.remedy == "no-template"
    with pytest.raises(ModelError, match="cannot be read: No such file or directory$") as caught:
        chat_format(tokenizer, str(tmp_path / "none.jinja"))
    assert caught.value.remedy == "template-unread"
    path = tmp_path / "own.jinja"
    path.write_bytes(b"\xff\xff")
    with pytest.raises(ModelError, match="cannot be read: it is not UTF-8"):
        chat_format(tokenizer, str(path))
    path.write_text(BUILT_IN_TEMPLATES["hh"], encoding="utf-8")
    form = chat_format(tokenizer, str(path))
    assert form.render_prompt(chat("q")) == "\n\nHuman: q\n\nAssistant:"
    tokenizer = byte_level(bos=False)
    assert form.fingerprint == chat_format(tokenizer, "hh").fingerprint != chat_format(tokenizer, "plain").fingerprint
    assert len(form.fingerprint) == 64


def test_named_templates_without_a_default_are_refused() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = {"tool_use": "x", "rag": "y"}
    with pytest.raises(ModelError, match="has chat templates named tool_use, rag and no default$") as caught:
        chat_format(tokenizer)
    assert caught.value.remedy == "no-default-template"


def test_templates_that_do_not_work_say_so() -> None:
    with pytest.raises(ModelError, match="not valid Jinja at line 2: ") as caught:
        with_template("{{ messages }}\n{% if %}").render_prompt(chat("q"))
    assert caught.value.remedy == "template"
    refuses = with_template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match="^f:1: the chat template of .* refuses the turns user: roles must") as refused:
        refuses.encode_example(row("q"))
    assert refused.value.remedy == "template-refuses-row"
    silent = with_template("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    with pytest.raises(ModelError, match="drops what the assistant says$") as caught:
        silent.encode_example(row("q"))
    assert caught.value.remedy == "template-loses-answer"
    rewrites = with_template(
        "{% for m in messages %}[{{ m.content if loop.last or m.role == 'user' else 'said' }}]{% endfor %}"
        "{{ '[' if add_generation_prompt }}"
    )
    assert rewrites.encode_example(row("q", "first", "r")).completions
    with pytest.raises(DataError, match="^f:1: the chat template rewrites an assistant turn once others follow, so"):
        rewrites.encode_example(row("q", "first", "r"), train_on="assistant")


def test_rows_that_train_nothing_are_refused() -> None:
    form, without = chat_format(byte_level(), "plain"), chat_format(byte_level(bos=False), "plain")
    with pytest.raises(
        DataError, match="^f:1: the row has no answer to learn from; add .* are none\\), or use it only as a prompt"
    ):
        form.encode_example(row("q", answers=()))
    with pytest.raises(DataError, match="^f:1: an answer has no token to predict; drop the row, or add the end token"):
        form.encode_example(row("q", answers=("",)), add_end=False)
    assert form.encode_example(row("q", answers=("",))).completions == [[form.tokenizer.eos_token_id]]
    with pytest.raises(DataError, match="^f:1: the prompt is empty and gives no tokens; write one, or drop the"):
        without.encode_example(row(""))
    with pytest.raises(DataError, match="2 texts and no prompt; plain text has one text per row"):
        form.encode_example(Row((), ("a", "b")))
    with pytest.raises(DataError, match="an answer has no token"):
        without.encode_example(Row((), ("",)), add_end=False)


class _Merging(PreTrainedTokenizerFast):
    """Encodes any text as one token that depends on all of it."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [len(text)] if text else []


def test_a_tokenizer_that_cannot_continue_is_refused() -> None:
    form = chat_format(_Merging(tokenizer_object=byte_level().backend_tokenizer, eos_token="</s>"), "plain")
    with pytest.raises(ModelError, match="merges 'a' with any text before it, so it cannot continue a prompt; use"):
        form.encode_example(row("q"))


def test_an_example_that_counts_nothing_is_named() -> None:
    good, short = Example([0], [[8, 9]], [[False, True]]), Example([1], [[2]], [[False]])
    require_counted([good, Example([1], [[2]])])
    with pytest.raises(
        DataError, match="^example 1: no completion token counts, so nothing is learned from this row; allow"
    ):
        require_counted([good, short])
    with pytest.raises(DataError, match="^f:1: no completion token counts"):
        require_counted([Example([1], [[2]], [[False]], row=row("q"))])


# real tokenizers


@pytest.mark.parametrize("name", ["gpt2", "minimind", "stories260K", "phi3_mini"])
@pytest.mark.parametrize("template", ["plain", "hh"])
def test_real_tokenizers_decode_to_what_was_rendered(real: Any, name: str, template: str) -> None:
    form = chat_format(real(name), template)
    for prompt in TEXTS:
        for answer in TEXTS:
            rendered = form.render_prompt(chat(prompt)).removeprefix("<s>") + (" " if template == "hh" else "") + answer
            example = form.encode_example(row(prompt, answers=(answer,)))
            (completion,) = example.completions
            assert example.prompt_ids == form.encode_prompt(chat(prompt))
            assert completion.count(form.end_token_id) == 1 and completion[-1] == form.end_token_id
            decoded = form.decode([*example.prompt_ids, *completion[:-1]])
            if name == "phi3_mini":
                # This tokenizer itself takes a text's first blanks for the one it puts there.
                decoded, rendered = decoded.lstrip(" "), rendered.lstrip(" ")
            assert decoded == rendered, (prompt, answer)


def test_the_own_template_of_minimind_closes_with_its_end_token(real: Any) -> None:
    form = chat_format(real("minimind"))
    example = form.encode_example(row("你好", "您好。", "1+1?", answers=("二。",)), train_on="assistant")
    assert form.end_token_id == form.tokenizer.eos_token_id
    assert counted_text(form, example) == ["您好。<|im_end|>", "二。<|im_end|>"]
    whole = spelled(form, [*example.prompt_ids, *example.completions[0]])
    assert whole.startswith("<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n您好。")


def test_the_own_template_of_phi_closes_with_a_token_of_its_own(real: Any) -> None:
    form = chat_format(real("phi3_mini"))
    names = form.tokenizer.convert_ids_to_tokens
    example = form.encode_example(row("Hi", "Hello.", "Bye", answers=("See you",)), train_on="assistant")
    assert names(form.end_token_id) == "<|end|>" != form.tokenizer.eos_token
    assert names(list(example.prompt_ids)) == ["<|user|>", "Hi", "<|end|>", "<|assistant|>"]
    assert names(list(example.completions[0]))[:3] == ["Hello", ".", "<|end|>"]
    assert counted_text(form, example) == ["Hello.<|end|>", "See you<|end|>"]


@pytest.mark.parametrize(
    "name", ["chatml", "zephyr", "mistral-instruct", "vicuna", "alpaca", "phi-3", "qwen2.5-instruct"]
)
def test_known_templates_give_one_prompt_and_one_end(shared: Path, real: Any, tmp_path: Path, name: str) -> None:
    text = (shared / f"data/tokenizers/chat_templates/{name}.jinja").read_text()
    if name != "qwen2.5-instruct":
        text = text.replace("    ", "").replace("\n", "")
    path = tmp_path / f"{name}.jinja"
    path.write_text(text)
    form = chat_format(real("minimind"), str(path))
    one = form.encode_example(row("Hi there", answers=("Fine.", "No")))
    assert one.prompt_ids == form.encode_prompt(chat("Hi there"))
    assert one.prompt_ids == own_ids(form.tokenizer, text, chat("Hi there"))
    assert [form.decode(ids).strip() for ids in one.completions] == ["Fine.", "No"]
    assert all(ids[-1] == form.end_token_id and ids.count(form.end_token_id) == 1 for ids in one.completions)
    turns = form.encode_example(row("Hi there", "Fine.", "Bye"), train_on="assistant")
    body = one.completions[0][:-1]
    assert turns.prompt_ids == one.prompt_ids and turns.completions[0][: len(body)] == body


@pytest.mark.parametrize("name", ["minimind", "phi3_mini", "stories260K"])
def test_real_prompts_are_those_of_the_tokenizer_itself(shared: Path, real: Any, tmp_path: Path, name: str) -> None:
    tokenizer = real(name)
    templates = sorted((shared / "data/tokenizers/chat_templates").glob("*.jinja"))
    configs = (shared / f"data/tokenizers/{each}_config_only/tokenizer_config.json" for each in ("qwen2.5", "qwen3"))
    texts = [path.read_text() for path in templates] + [
        json.loads(path.read_text())["chat_template"] for path in configs
    ]
    assert len(texts) == 9
    if tokenizer.chat_template:
        assert chat_format(tokenizer).encode_prompt(chat("Hi")) == own_ids(tokenizer, None, chat("Hi"))
    for text in texts:
        (tmp_path / "one.jinja").write_text(text)
        form = chat_format(tokenizer, str(tmp_path / "one.jinja"))
        for words in (chat("Hi there"), chat(" 你好\n", "a", "1 + 1?")):
            assert form.encode_prompt(words) == own_ids(tokenizer, text, words)
    for text in BARE:
        ids = chat_format(tokenizer, text).encode_prompt(chat("Once upon a time"))
        bare = chat_format(tokenizer, text).tokenizer(BARE[text] % "Once upon a time")["input_ids"]
        assert ids == bare  # with the beginning token, where the tokenizer itself puts one before a text


BARE = {
    "plain": "%s",
    "hh": "\n\nHuman: %s\n\nAssistant:",
    "chatml": "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n",
}


@pytest.mark.parametrize(
    ("name", "template"), [("gpt2", "hh"), ("minimind", None), ("phi3_mini", None), ("stories260K", "plain")]
)
def test_real_tokenizers_go_on_from_a_prefix(real: Any, name: str, template: str | None) -> None:
    form = chat_format(real(name), template)
    for prefix, step in STEPS[:7]:
        example = form.encode_example(row("What is 2 + 2?", answers=(step,), prefix=prefix))
        whole = form.encode_example(row("What is 2 + 2?", answers=(prefix + step,)), add_end=False)
        ids = [*example.prompt_ids, *example.completions[0]]
        # Templates of their own trim what ends an answer; a step does not end one.
        assert form.decode(ids).rstrip() == form.decode([*whole.prompt_ids, *whole.completions[0]]).rstrip()
        assert example.completions[0][-1] != form.end_token_id


@pytest.mark.parametrize(
    ("name", "template", "file"),
    [
        ("minimind", None, "oasst1_zh/oaast_rm_zh.json.gz"),
        ("phi3_mini", None, "llamafactory_demo/kto_en_demo.json.gz"),
        ("gpt2", "hh", "hh_rlhf/harmless-base-test.jsonl.gz"),
        ("stories260K", None, "text_en/tinystories_sample.txt.gz"),
    ],
)
def test_real_rows_become_examples(shared: Path, real: Any, name: str, template: str | None, file: str) -> None:
    form = chat_format(real(name), template)
    rows, _ = drop_unusable(read_rows(shared / "data" / file, limit=300))
    examples = [form.encode_example(each, train_on="assistant") for each in rows]
    require_counted(examples)
    for each, example in zip(rows, examples, strict=True):
        assert len(example.completions) == len(each.answers)
        for answer, ids in zip(each.answers, example.completions, strict=True):
            assert ids[-1] in (form.end_token_id, form.tokenizer.eos_token_id)
            if not each.messages:
                assert form.decode(ids) == answer
            else:
                assert form.decode([*example.prompt_ids, *ids]).endswith(answer.strip()[-40:])


def test_a_real_tokenizer_without_an_end_token_is_named(real: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"the tokenizer {tmp_path} has no end token"):
        chat_format(real("gpt_neox_20b"), "hh")


def test_an_added_token_that_is_not_special_may_close_a_turn() -> None:
    form = with_template(PHI)
    form.tokenizer.add_tokens([AddedToken("<|end|>", special=False)])
    assert form.tokenizer.convert_ids_to_tokens(form.end_token_id) == "<|end|>"


# templates that fail


def failing(template: str, *, place: str = "f:1") -> str:
    form = with_template(template)
    with pytest.raises(ModelError) as caught:
        form.render_prompt(chat("q"), place=place)
    message = str(caught.value)
    assert "\n" not in message and caught.value.remedy == "template"
    return message


SAYS = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("\n{{ [] + 1 }}", "in line 2: TypeError: can only concatenate list"),
        ("{{ 1 // 0 }}", "in line 1: ZeroDivisionError: "),
        ("\n\n{{ messages[0].content.nothing.at.all + 1 }}", ""),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: maximum recursion depth exceeded"),
        ("{% include 'x' %}", "in line 1: TypeError: no loader for this environment specified"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", None),
        ("{% for i in range(1000000000) %}{% endfor %}", "OverflowError: Range too big"),
        ("{{ 'x' * 10000000000 }}", "MemoryError"),
        (
            "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "MemoryError",
        ),
    ],
)
def test_a_template_that_fails_is_named_in_one_line(template: str, reason: str | None) -> None:
    if reason is None:
        with pytest.raises(ModelError, match="raises a number to a power in line 1$") as caught:
            with_template(template)
        assert caught.value.remedy == "template-power"
    elif not reason:
        with pytest.raises((ModelError, DataError), match="the chat template of .* (fails on|refuses) the turns user"):
            with_template(template).render_prompt(chat("q"))
    else:
        assert reason in failing(template) and failing(template).startswith("f:1: the chat template of ")


def test_a_template_that_never_ends_is_stopped() -> None:
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    assert "fails on the turns user in line 1: TimeoutError: not done after 2 s" in failing(loop)
    handler, limit = signal.getsignal(signal.SIGVTALRM), resource.getrlimit(resource.RLIMIT_AS)
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert chat_format(byte_level(bos=False), "hh").render_prompt(chat("q")) == "\n\nHuman: q\n\nAssistant:"
    assert signal.getsignal(signal.SIGVTALRM) is handler and resource.getrlimit(resource.RLIMIT_AS) == limit


def test_a_template_that_writes_far_more_than_was_said_is_refused() -> None:
    assert "writes 3,000,001 characters around the turns user" in failing(SAYS + "{{ 'abc' * 1000000 }}")


@pytest.mark.parametrize("number", [5, ["x"], True])
def test_a_template_that_is_no_text_is_refused(number: Any) -> None:
    with pytest.raises(ModelError, match=r"the chat template of .* is .*, not a text$") as caught:
        with_template(number)
    assert caught.value.remedy == "template-not-text"


def test_a_turn_that_the_template_leaves_out_is_refused() -> None:
    silent = with_template("{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}|")
    with pytest.raises(DataError, match="^f:1: the chat template of .* drops the user turn 'q'$") as caught:
        silent.encode_example(row("q"))
    assert caught.value.remedy == "template-loses-turn"
    first = with_template(
        "{{ messages[0].content }}{% for m in messages[1:] if m.role != 'system' %}{{ m.content }}{% endfor %}"
    )
    turns = (Message("system", "S"), *chat("q"), Message("system", "later"), *chat(" r\n"))
    assert first.render_prompt([turns[0], *turns[-1:]])
    with pytest.raises(DataError, match="drops the system turn 'later'$"):
        first.render_prompt(turns)


def test_powers_in_keyword_arguments_are_no_powers() -> None:
    check_template("{% macro f(a) %}{{ a }}{% endmacro %}{{ f(**{'a': 1}) }}{{ f(1, **{}) }}", "x")


def test_a_text_that_is_no_unicode_is_refused_in_one_line() -> None:
    with pytest.raises(DataError, match=r"the text 'hi \\udcff' holds half of a surrogate pair, or bytes that are not"):
        chat_format(byte_level(bos=False), "plain").encode_prompt(chat("hi \udcff"))
