"""Learning where the optimum is known: one token drawn from ten, and a longer completion.

With a penalty beta KL(policy, reference) the best policy is known in closed form (Korbak et al. 2022, eq. 4):

    pi*(a) = pi_ref(a) exp(r(a) / beta) / Z
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from onebase.engines.opening import load_base
from onebase.models.role_files import load_role
from onebase.recipes import ppo
from tests.recipes.conftest import Options, load, metric_rows, write_rows

LETTERS = "abcdefghij"
WORDS = ("<pad>", "<bos>", "<eos>", *LETTERS)
BANDIT: Options = {
    "model.dtype": "float32",
    "data.opening_tokens": 1,
    "data.eval_fraction": 0.5,
    "batch.microbatch_tokens": 4096,
    "generation.max_new_tokens": 1,
    "generation.samples_per_prompt": 8,
    "ppo.rollout_prompts": 32,
    "ppo.minibatch_prompts": 16,
    "ppo.critic_start": "policy",
    "ppo.kl_coefficient": 0,
    "evaluation.prompts": 1,
    "lora.r": 4,
    "optimizer.learning_rate": 1e-2,
    "max_steps": 20,
}


def rank_of_letter(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """a is worth 0, j is worth 0.9; what is no letter 0."""
    return [LETTERS.find(text.strip()[:1] or "a") / len(LETTERS) for text in completions]


def only_g(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [1.0 if text.strip() == "g" else 0.0 for text in completions]


def share_of_c(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [text.count("c") / 6 for text in completions]


@pytest.fixture(scope="module")
def bandit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of ten letters and three special tokens, about equally likely at the start."""
    folder = tmp_path_factory.mktemp("bandit")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.Fuse()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<pad>"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            tie_word_embeddings=False,
            initializer_range=0.12,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Plain texts, of which only the first token is taken: the beginning token.
    write_rows(folder / "openings.jsonl", [{"text": " ".join(f"{i:06b}")} for i in range(64)])
    return folder


def options(bandit: Path, output: Path, reward: str) -> Options:
    return BANDIT | {
        "output_dir": str(output),
        "model.model_name_or_path": str(bandit),
        "data.train": str(bandit / "openings.jsonl"),
        "reward.callable": f"tests.recipes.test_bandit:{reward}",
    }


def distributions(bandit: Path, run: Path) -> tuple[Tensor, Tensor]:
    """Reference and policy over the first token, as probabilities, from what was saved."""
    base = load_base(str(bandit), dtype="float32")
    base.add_role("reference")
    load_role(base, "policy", run / "policy", kinds=("policy",))
    found = []
    for role in ("reference", "policy"):
        with base.role(role), torch.no_grad():
            found.append(base.model(torch.tensor([[1]])).logits[0, -1].double().softmax(-1))
    return found[0], found[1]


@pytest.mark.parametrize("critic", ["adapter", "head"])
def test_the_best_token_is_found(critic: str, bandit: Path, tmp_path: Path) -> None:
    ppo.run(load(ppo.PPOConfig, options(bandit, tmp_path, "only_g"), {"ppo.critic": critic, "max_steps": 25}))
    reference, policy = distributions(bandit, tmp_path)
    best = WORDS.index("g")
    assert float(reference[best]) < 0.3, "it was found before"
    assert float(policy[best]) > 0.9


@pytest.mark.parametrize(
    "more",
    [{}, {"ppo.kl_placement": "loss", "ppo.kl_estimator": "k2"}, {"ppo.critic": "head"}],
    ids=["k1 in the reward", "k2 in the loss", "critic head"],
)
def test_with_a_kl_penalty_the_policy_is_the_closed_form(more: Options, bandit: Path, tmp_path: Path) -> None:
    beta = 0.25
    more = {
        "ppo.kl_coefficient": beta,
        "max_steps": 30,
        "optimizer.schedule": "linear",
        "ppo.whiten_advantages": False,
        "ppo.num_ppo_epochs": 3,
        "generation.samples_per_prompt": 16,
        **more,
    }
    ppo.run(load(ppo.PPOConfig, options(bandit, tmp_path, "rank_of_letter"), more))
    reference, policy = distributions(bandit, tmp_path)
    rewards = torch.tensor([0.0 if word not in LETTERS else LETTERS.index(word) / 10 for word in WORDS]).double()
    optimum = reference * (rewards / beta).exp()
    optimum /= optimum.sum()

    def kl(p: Tensor) -> float:
        return float((p * (p / reference).log()).sum())

    def objective(p: Tensor) -> float:
        return float((p * rewards).sum()) - beta * kl(p)

    assert kl(optimum) > 0.3, "the optimum is where the policy starts"
    assert objective(policy) > objective(optimum) - 0.02
    assert kl(policy) == pytest.approx(kl(optimum), abs=0.2)
    assert float((policy * rewards).sum()) == pytest.approx(float((optimum * rewards).sum()), abs=0.05)


def test_the_kl_budget_holds_but_for_one_rollout(bandit: Path, tmp_path: Path) -> None:
    budget = 0.5
    summary = ppo.run(load(ppo.PPOConfig, options(bandit, tmp_path, "only_g"), {"ppo.kl_budget": budget}))
    rows = metric_rows(tmp_path)
    assert summary["rollouts"] == len(rows) < 20
    assert all(row["objective/kl"] <= budget for row in rows[:-1]) and rows[-1]["objective/kl"] > budget
    reference, policy = distributions(bandit, tmp_path)
    exact = float((policy * (policy / reference).log()).sum())
    # What was measured last is the policy before the last update.
    step = max(b["objective/kl"] - a["objective/kl"] for a, b in zip(rows, rows[1:], strict=False))
    assert exact <= budget + 3 * step + 0.1


def test_an_adaptive_penalty_holds_its_target(bandit: Path, tmp_path: Path) -> None:
    more: Options = {
        "ppo.kl_coefficient": 0.05,
        "ppo.kl_target": 0.6,
        "ppo.kl_horizon": 400,
        "max_steps": 30,
        "optimizer.learning_rate": 5e-3,
    }
    ppo.run(load(ppo.PPOConfig, options(bandit, tmp_path, "rank_of_letter"), more))
    late = [row["objective/kl"] for row in metric_rows(tmp_path)[-8:]]
    assert 0.3 < sum(late) / len(late) < 0.9


def test_a_longer_completion_is_learned(bandit: Path, tmp_path: Path) -> None:
    more: Options = {
        "generation.max_new_tokens": 6,
        "max_steps": 18,
        "ppo.kl_coefficient": 0.01,
        "optimizer.learning_rate": 2e-2,
    }
    ppo.run(load(ppo.PPOConfig, options(bandit, tmp_path, "share_of_c"), more))
    scores = [row["objective/scores"] for row in metric_rows(tmp_path)]
    assert scores[0] < 0.2 and sum(scores[-5:]) / 5 > 0.8
    assert math.isfinite(scores[-1])
