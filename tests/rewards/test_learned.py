from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from onebase.data.tree import build_tree_batch
from onebase.engines.budget import TokenBudget
from onebase.engines.forward import completion_scores
from onebase.errors import DataError, ModelError, RewardError
from onebase.models.base import OneBase
from onebase.models.classifier import harmless_padding
from onebase.models.roles import Moments
from onebase.models.scratch import train_tokenizer
from onebase.reading.tools import for_template
from onebase.records import Example, Message, Row, ScoreRequest
from onebase.rewards.learned import ClassifierReward, RoleReward
from tests.data.test_tools import ASKED, TOOLS
from tests.tiny_models import add_adapter_role, random_ids, tiny_base

CPU = torch.device("cpu")


def base_with_reward(layout: str = "tree", pooling: str = "last") -> OneBase:
    base = tiny_base("llama", layout=layout)
    add_adapter_role(base, "reward", head=True)
    base.roles["reward"].pooling = pooling
    return base


def request() -> ScoreRequest:
    examples = [
        Example(
            random_ids(4 + 5 * (e % 3), seed=e), [random_ids(1 + (2 * e + k) % 7, seed=9 * e + k) for k in range(3)]
        )
        for e in range(5)
    ]
    return ScoreRequest(examples, ["no"] * 15, ["text"] * 15)


@pytest.mark.parametrize("layout", ["tree", "separate"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("token_budget", [1, 60, 4096])
def test_a_role_scores_every_completion_as_if_it_stood_alone(layout: str, pooling: str, token_budget: int) -> None:
    base, asked = base_with_reward(layout, pooling), request()
    found = RoleReward(base, "reward", budget=TokenBudget(token_budget)).score(asked).total
    rows = [Example(e.prompt_ids, [completion]) for e in asked.examples for completion in e.completions]
    expected = torch.cat([completion_scores(base, build_tree_batch([row]), role="reward") for row in rows]).detach()
    assert found.dtype == torch.float32 and found.shape == (15,) and not found.requires_grad
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert base.active is None


def test_normalised_scores_are_deviations_from_the_held_out_mean() -> None:
    base, asked = base_with_reward(), request()
    base.scalar_role("reward").moments = Moments(1.5, 0.25, measured=True)
    plain = RoleReward(base, "reward", budget=TokenBudget(64))
    assert plain.name == "reward"
    scores = plain.score(asked).total
    normalised = RoleReward(base, "reward", budget=TokenBudget(64), normalize=True).score(asked).total
    torch.testing.assert_close(normalised, (scores - 1.5) / 0.25)


@pytest.mark.parametrize(
    ("std", "reason", "remedy"),
    [
        (None, "was saved without them", "no-held-out-scores"),
        (1e-6, "is 1e-06: .*same score", "equal-held-out-scores"),
    ],
)
def test_a_role_without_a_spread_of_scores_cannot_be_normalised(std: float | None, reason: str, remedy: str) -> None:
    base = base_with_reward()
    base.scalar_role("reward").moments = Moments() if std is None else Moments(0.0, std, measured=True)
    with pytest.raises(ModelError, match=f"^normalising .*{reason}") as caught:
        RoleReward(base, "reward", budget=TokenBudget(64), normalize=True)
    assert caught.value.remedy == remedy


# ----------------------------------------------------------------------------------------------- a classifier

PROMPTS = ["the cat sat on and on " * 2, "the cat sat on and on " * 2, "a dog. ", "狗 "]
COMPLETIONS = ["the mat", "the log and then on the mat again", "it barks", "叫"]


def own_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(PROMPTS + COMPLETIONS, vocab_size=265)


def save_classifier(
    folder: Path, *, num_labels: int = 1, pad: bool = True, max_length: int = 96, scale: float = 1.0
) -> Path:
    tokenizer = own_tokenizer()
    if not pad:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=max_length,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.num_labels = num_labels
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.mul_(scale)
    model.save_pretrained(folder)
    return folder


def direct(folder: Path, text: str, *, most: int = 96) -> float:
    """The model's own answer to one text alone, without padding."""
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = own_tokenizer()
    tokenizer.truncation_side = "left"
    ids = tokenizer(text, truncation=True, max_length=most)["input_ids"]
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state
        return float(model.score(hidden)[0, -1, 0])


def text_request() -> ScoreRequest:
    return ScoreRequest([Example([1], [[2]]) for _ in PROMPTS], PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_classifier_reads_the_text_with_its_own_tokenizer(tmp_path: Path, pad: bool, batch_size: int) -> None:
    folder = save_classifier(tmp_path / "judge", pad=pad)
    source = ClassifierReward(str(folder), device=CPU, batch_size=batch_size)
    scores = source.score(text_request()).total
    expected = [direct(folder, prompt + completion) for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert source.name == "judge" and scores.dtype == torch.float32 and not scores.requires_grad
    assert max(expected) - min(expected) > 0.1
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("other", [True, False])
def test_where_the_end_token_is_the_only_padding_the_end_of_a_text_is_read(tmp_path: Path, other: bool) -> None:
    folder = save_classifier(tmp_path / "judge", pad=False)
    tokenizer = own_tokenizer()
    tokenizer.pad_token = None
    if not other:  # nothing else to pad with: the texts go one by one
        tokenizer.bos_token = None
    assert harmless_padding(tokenizer) == (own_tokenizer().bos_token_id if other else None)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(str(folder))
    rows = [Row((Message("user", prompt),), place="f:1") for prompt in PROMPTS]
    asked = ScoreRequest([Example([1], [[2]], row=row) for row in rows], PROMPTS, COMPLETIONS)
    scores = ClassifierReward(str(folder), device=CPU, batch_size=3).score(asked).total
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.pad_token_id is None
    for score, prompt, completion in zip(scores, PROMPTS, COMPLETIONS, strict=True):
        ids = tokenizer(
            f"{prompt}</s>{completion}</s>".replace("</s>", tokenizer.eos_token),
            return_tensors="pt",
            add_special_tokens=False,
        )["input_ids"]
        assert int(ids[0, -1]) == tokenizer.eos_token_id
        torch.testing.assert_close(score, model(ids).logits[0, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("begins", ["{{ bos_token }}", ""])
def test_a_classifier_with_a_chat_template_gives_the_score_of_its_own_prompt(tmp_path: Path, begins: str) -> None:
    folder = save_classifier(tmp_path / "judge")
    tokenizer = own_tokenizer()
    turn = "[{{ m.role }}] {{ m.content }}{{ eos_token }}"
    tokenizer.chat_template = begins + "{% for m in messages %}" + turn + "{% endfor %}"
    tokenizer.save_pretrained(str(folder))
    rows = [Row((Message("user", prompt),), place="f:1") for prompt in PROMPTS]
    asked = ScoreRequest([Example([1], [[2]], row=row) for row in rows], PROMPTS, COMPLETIONS)
    scores = ClassifierReward(str(folder), device=CPU, batch_size=3).score(asked).total
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    for score, prompt, completion in zip(scores, PROMPTS, COMPLETIONS, strict=True):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        inputs = tokenizer.apply_chat_template(turns, return_dict=True, return_tensors="pt")
        assert list(inputs["input_ids"][0]).count(tokenizer.bos_token_id) == len(begins and [1])
        torch.testing.assert_close(score, model(**inputs).logits[0, 0], rtol=0, atol=1e-5)


def test_a_classifier_reads_a_row_s_tools_or_refuses_the_row(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "judge", max_length=4096)
    tokenizer = own_tokenizer()
    says = "{% for m in messages %}[{{ m.content }}{{ m.tool_calls }}]{% endfor %}{{ eos_token }}"
    tokenizer.chat_template = "{{ tools }}" + says
    tokenizer.save_pretrained(str(folder))
    request = ScoreRequest([Example([1], [[2]], row=Row(ASKED, tools=TOOLS, place="f:1"))], ["q"], ["It rains."])
    scores = ClassifierReward(str(folder), device=CPU).score(request).total
    turns = [for_template(turn) for turn in (*ASKED, Message("assistant", "It rains."))]
    defined = [json.loads(tool) for tool in TOOLS]
    inputs = tokenizer.apply_chat_template(turns, tools=defined, return_dict=True, return_tensors="pt")
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    torch.testing.assert_close(scores[0], model(**inputs).logits[0, 0], rtol=0, atol=1e-5)
    tokenizer.chat_template = says
    tokenizer.save_pretrained(str(folder))
    with pytest.raises(DataError, match="^f:1: the chat template of judge does not write 'weather' of the row's tools"):
        ClassifierReward(str(folder), device=CPU).score(request)


def test_of_a_text_longer_than_its_context_a_classifier_reads_the_end(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path, max_length=8)
    scores = ClassifierReward(str(folder), device=CPU).score(text_request()).total
    expected = [
        direct(folder, prompt + completion, most=8) for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=0, atol=1e-5)
    assert scores[0] != scores[1]  # one prompt, longer than the context, and two completions


def test_a_classifier_of_two_labels_is_refused(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path, num_labels=2)
    with pytest.raises(ModelError) as caught:
        ClassifierReward(str(folder), device=CPU)
    assert str(caught.value) == f"{folder}: a reward model is a classifier with 1 label; this has 2"
    assert caught.value.exit_code == 2 and caught.value.remedy == "no-reward-model"


def test_a_folder_without_a_classifier_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        ClassifierReward(str(tmp_path), device=CPU)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: no model could be loaded: it has no config.json") and "\n" not in message
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_labels": 1}')
    with pytest.raises(ModelError, match=f"{tmp_path}: no sequence classifier could be loaded: ") as caught:
        ClassifierReward(str(tmp_path), device=CPU)
    assert "\n" not in str(caught.value)


def test_a_classifier_with_nan_in_it_is_refused(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "broken", scale=float("nan"))
    with pytest.raises(ModelError, match="broken: 16 numbers of the weight 'score.weight' are NaN or infinite"):
        ClassifierReward(str(folder), device=CPU)


def test_a_score_that_is_not_finite_is_said(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "broken", scale=3e38)
    with pytest.raises(RewardError) as caught:
        ClassifierReward(str(folder), device=CPU).score(text_request())
    assert str(caught.value) == "reward model broken: a score is not finite"


def test_without_measured_moments_scores_cannot_be_normalised() -> None:
    base = base_with_reward()
    assert RoleReward(base, "reward", budget=TokenBudget(64)).score(request()).total.shape == (15,)
    with pytest.raises(ModelError) as caught:
        RoleReward(base, "reward", budget=TokenBudget(64), normalize=True).score(request())
    message = str(caught.value)
    assert message.startswith("normalising needs the moments of held-out scores") and "\n" not in message
