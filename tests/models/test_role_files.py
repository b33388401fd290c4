from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from onebase.data.chat import chat_format
from onebase.data.tree import build_tree_batch
from onebase.engines.engine import packs
from onebase.engines.forward import completion_scores, token_logprobs, token_values
from onebase.engines.opening import load_base
from onebase.errors import DoesNotFitError, ModelError, RoleMismatchError
from onebase.models.adapters import lora_config
from onebase.models.base import OneBase
from onebase.models.classifier import save_classifier
from onebase.models.role_card import read_card
from onebase.models.role_files import SCORE_KEY, load_role, save_base, save_role
from onebase.models.roles import Moments, Role, ScalarRole
from onebase.records import Example, TreeBatch
from tests.tiny_models import PAD, add_adapter_role, disturb, random_ids, save_tiny, tiny_base, tiny_tokenizer


def load(folder: Path) -> OneBase:
    return load_base(str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def saved(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's `policy` and `reward`."""
    base = load(base_folder)
    add_adapter_role(base, "policy", seed=1)
    add_adapter_role(base, "reward", seed=2, head=True, layers="upper-half", target_modules=["q_proj", "up_proj"])
    base.scalar_role("reward").moments = Moments(0.25, 3.5, measured=True)
    run = tmp_path_factory.mktemp("run")
    save_role(base, "policy", run / "policy", kind="policy", chat=chat_format(base.tokenizer, "chatml"))
    save_role(base, "reward", run / "reward", kind="reward")
    return run


def examples() -> list[Example]:
    return [
        Example(random_ids(6, seed=1), [random_ids(5, seed=2), random_ids(2, seed=3)]),
        Example(random_ids(3, seed=4), [random_ids(1, seed=5), random_ids(9, seed=6)]),
    ]


def some_batch() -> TreeBatch:
    return build_tree_batch(examples())


def copy_with(saved: Path, tmp_path: Path, **card: object) -> Path:
    """The saved reward role, with entries of its card changed."""
    folder = tmp_path / "reward"
    folder.mkdir()
    for path in (saved / "reward").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    entries = json.loads((folder / "role.json").read_text())
    (folder / "role.json").write_text(json.dumps(entries | card))
    return folder


# ----------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gemma3"])
def test_a_loaded_role_computes_what_the_saved_one_did(architecture: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", architecture)
    base = load(folder)
    add_adapter_role(base, "policy", seed=1)
    add_adapter_role(base, "reward", seed=2, head=True)
    base.scalar_role("reward").pooling = "mean"
    save_role(base, "policy", tmp_path / "policy", kind="policy")
    save_role(base, "reward", tmp_path / "reward", kind="reward")
    fresh = load(folder)
    load_role(fresh, "reward", tmp_path / "reward", kinds=("reward",))
    load_role(fresh, "policy", tmp_path / "policy", kinds=("policy",), trains=True)
    load_role(fresh, "critic", tmp_path / "reward", kinds=("critic", "reward"), trains=True)
    batch = some_batch()
    assert torch.equal(token_logprobs(fresh, batch, role="policy"), token_logprobs(base, batch, role="policy"))
    assert torch.equal(completion_scores(fresh, batch, role="reward"), completion_scores(base, batch, role="reward"))
    assert torch.equal(token_values(fresh, batch, role="critic"), token_values(base, batch, role="reward"))
    assert type(fresh.roles["policy"]) is Role and fresh.scalar_role("reward").pooling == "mean"
    assert [p.requires_grad for p in fresh.parameters("reward")] == [False] * len(fresh.parameters("reward"))
    assert all(p.requires_grad for name in ("policy", "critic") for p in fresh.parameters(name))
    token_logprobs(fresh, batch, role="policy").sum().backward()
    assert all(p.grad is not None for p in fresh.parameters("policy"))


def test_a_role_saved_again_after_loading_is_the_same_file(base_folder: Path, saved: Path, tmp_path: Path) -> None:
    base = load(base_folder)
    load_role(base, "reward", saved / "reward", kinds=("reward",))
    save_role(base, "reward", tmp_path / "again", kind="reward")
    folders = (saved / "reward", tmp_path / "again")
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    configs = [json.loads((f / "adapter_config.json").read_text()) for f in folders]
    for config in configs:
        config["target_modules"].sort()
    assert configs[0] == configs[1]
    assert read_card(saved / "reward") == read_card(tmp_path / "again")


def test_the_card_says_what_the_role_belongs_to(base_folder: Path, saved: Path) -> None:
    card = read_card(saved / "policy")
    base = load(base_folder)
    assert (card.kind, card.base, card.base_fingerprint) == ("policy", str(base_folder.resolve()), base.fingerprint)
    assert card.chat_template == "chatml"
    assert card.chat_template_fingerprint == chat_format(base.tokenizer, "chatml").fingerprint
    assert (saved / "policy" / "chat_template.jinja").read_text() == chat_format(base.tokenizer, "chatml").template
    reward = load_role(base, "reward", saved / "reward", kinds=("reward",))
    assert isinstance(reward, ScalarRole)
    assert reward.moments == Moments(0.25, 3.5, measured=True) and reward.pooling == "last"


def test_saving_a_role_changes_nothing_in_memory(base_folder: Path, tmp_path: Path) -> None:
    base = load(base_folder)
    add_adapter_role(base, "reward", head=True)
    before, config = completion_scores(base, some_batch(), role="reward"), base.adapter_config("reward").to_dict()
    save_role(base, "reward", tmp_path / "reward", kind="reward")
    assert torch.equal(completion_scores(base, some_batch(), role="reward"), before)
    assert base.adapter_config("reward").to_dict() == config
    assert all(parameter.requires_grad for parameter in base.parameters("reward"))


def test_a_critic_on_the_policys_trunk_is_saved_with_a_copy_of_the_adapter(base_folder: Path, tmp_path: Path) -> None:
    base = load(base_folder)
    add_adapter_role(base, "policy")
    base.share_adapter("critic", with_role="policy")
    disturb(base, "critic")
    save_role(base, "critic", tmp_path / "critic", kind="critic")
    alone = load(base_folder)
    load_role(alone, "critic", tmp_path / "critic", kinds=("critic",))
    batch = some_batch()
    assert torch.equal(token_values(alone, batch, role="critic"), token_values(base, batch, role="critic"))


def test_a_role_on_a_bfloat16_or_4_bit_base_loads_on_the_same_base_in_float32(
    base_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    for dtype, quantization in [("bfloat16", "none"), ("float32", "nf4"), ("bfloat16", "nf4")]:
        base = load_base(str(base_folder), dtype=dtype, quantization=quantization, device="cpu")
        add_adapter_role(base, "reward", head=True, seed=3)
        assert {parameter.dtype for parameter in base.parameters("reward")} == {torch.float32}
        save_role(base, "reward", tmp_path / f"{dtype}-{quantization}", kind="reward")
        plain = load(base_folder)
        load_role(plain, "reward", tmp_path / f"{dtype}-{quantization}", kinds=("reward",))
        for found, expected in zip(plain.parameters("reward"), base.parameters("reward"), strict=True):
            assert torch.equal(found, expected)


# ------------------------------------------------------------------------------------------ other tools read the same


def padded_rows() -> tuple[Tensor, Tensor]:
    rows = [[*e.prompt_ids, *completion] for e in examples() for completion in e.completions]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    assert (mask == 0).any()
    return ids, mask


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_plain_transformers_and_peft_score_with_a_saved_reward_role_as_we_do(architecture: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", architecture)
    base = load(folder)
    add_adapter_role(base, "other", seed=8)
    add_adapter_role(base, "reward", seed=2, head=True)
    save_role(base, "reward", tmp_path / "reward", kind="reward")
    expected = completion_scores(base, some_batch(), role="reward")
    assert expected.std() > 0.1
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    plain = PeftModel.from_pretrained(classifier, tmp_path / "reward").eval()
    ids, mask = padded_rows()
    scores = plain(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_plain_transformers_and_peft_read_a_saved_policy(architecture: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", architecture)
    base = load(folder)
    add_adapter_role(base, "policy", seed=2)
    save_role(base, "policy", tmp_path / "policy", kind="policy")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "policy").eval()
    assert plain.peft_config["default"].inference_mode
    ids, mask = padded_rows()
    with base.role("policy"):
        expected = base.model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(plain(input_ids=ids, attention_mask=mask).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_reward_trained_in_full_is_saved_as_a_classifier_that_scores_the_same(
    architecture: str, tmp_path: Path
) -> None:
    base = tiny_base(architecture)
    base.add_role("reward", head=True)
    base.train_base("reward")
    disturb(base, "reward", size=0.05)
    expected = completion_scores(base, some_batch(), role="reward").detach()
    save_classifier(base, "reward", tmp_path / "reward")
    ids, mask = padded_rows()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    scores = plain(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_a_base_trained_in_full_is_a_folder_that_loads_and_another_base_than_it_was(
    base_folder: Path, tmp_path: Path
) -> None:
    base = load(base_folder)
    base.add_role("policy")
    base.train_base("policy")
    disturb(base, "policy", size=0.05)
    save_base(base, tmp_path / "policy")
    again = load(tmp_path / "policy")
    again.add_role("policy")
    batch = some_batch()
    for name, parameter in base.model.named_parameters():
        assert torch.equal(again.model.get_parameter(name), parameter)
    with torch.no_grad():
        assert torch.equal(again.model(batch.input_ids[None]).logits, base.model(batch.input_ids[None]).logits)
    assert packs(again, "policy") and not packs(base, "policy")  # a base in training is run by transformers
    expected = token_logprobs(base, batch, role="policy")
    torch.testing.assert_close(token_logprobs(again, batch, role="policy"), expected, rtol=2e-7, atol=1e-6)
    assert again.fingerprint != base.fingerprint


# ---------------------------------------------------------------------------------------------------- what is refused


def check_refused(
    base: OneBase, folder: Path, message: str, *kinds: str, error: type[ModelError] = RoleMismatchError
) -> None:
    with pytest.raises(error, match=message) as caught:
        load_role(base, "judge", folder, kinds=kinds or ("reward",))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert "judge" not in base.roles and not any(".judge." in name for name, _ in base.model.named_parameters())


def test_a_role_made_on_another_base_is_refused(saved: Path, tmp_path: Path) -> None:
    other = load(save_tiny(tmp_path, "llama", seed=1))
    check_refused(other, saved / "reward", f"reward: made on another base: .*base.* while this is {tmp_path}")


def test_a_role_made_with_another_tokenizer_is_refused(base_folder: Path, saved: Path, tmp_path: Path) -> None:
    base = load(base_folder)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "a"
    base.tokenizer = tokenizer
    check_refused(base, saved / "reward", "made with another tokenizer .*use the tokenizer it was trained with")


def test_a_role_of_another_kind_is_refused(base_folder: Path, saved: Path) -> None:
    base = load(base_folder)
    check_refused(base, saved / "policy", "policy: this is a policy role, and a reward role is needed here")
    check_refused(
        base, saved / "reward", "this is a reward role, and a policy or critic role is needed", "policy", "critic"
    )


def test_a_reward_role_without_its_head_is_refused(base_folder: Path, saved: Path, tmp_path: Path) -> None:
    folder = copy_with(saved, tmp_path)
    weights = load_file(folder / "adapter_model.safetensors")
    del weights[SCORE_KEY]
    save_file(weights, folder / "adapter_model.safetensors")
    check_refused(
        load(base_folder), folder, "a reward role without its head: adapter_model.safetensors has no 'base_model."
    )


def test_a_head_of_another_shape_is_refused(base_folder: Path, saved: Path, tmp_path: Path) -> None:
    folder = copy_with(saved, tmp_path)
    weights = load_file(folder / "adapter_model.safetensors") | {SCORE_KEY: torch.zeros(1, 33)}
    save_file(weights, folder / "adapter_model.safetensors")
    check_refused(load(base_folder), folder, r"its head has shape \(1, 33\), this base needs \(1, 32\)")


def test_an_adapter_that_does_not_fit_is_refused_and_the_right_one_loads_afterwards(
    base_folder: Path, saved: Path, tmp_path: Path
) -> None:
    folder = copy_with(saved, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 2}))
    check_refused(
        load(base_folder), folder, "adapter_config.json: r is 2, and the weights beside it have", error=ModelError
    )
    weights = load_file(folder / "adapter_model.safetensors")  # a rank that agrees, on rows that do not
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {k: v[:, :-1].contiguous() if "lora_A" in k else v for k, v in weights.items()},
        folder / "adapter_model.safetensors",
    )
    base = load(base_folder)
    check_refused(base, folder, "the adapter of role 'judge' does not fit this base: ", error=ModelError)
    expected = load(base_folder)
    for each in (base, expected):
        load_role(each, "judge", saved / "reward", kinds=("reward",))
    scores = [completion_scores(each, some_batch(), role="judge") for each in (base, expected)]
    assert torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_a_truncated_weights_file_is_refused_in_one_line(
    base_folder: Path, saved: Path, tmp_path: Path, kept: int
) -> None:
    folder = copy_with(saved, tmp_path)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    check_refused(load(base_folder), folder, f"{folder}: the adapter cannot be read: ", error=ModelError)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_file_that_is_missing_is_said(base_folder: Path, saved: Path, tmp_path: Path, name: str) -> None:
    folder = copy_with(saved, tmp_path)
    (folder / name).unlink()
    check_refused(load(base_folder), folder, name, error=ModelError)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"kind": "reward", "colour": "red"}', "\x00"])
def test_a_broken_card_is_refused_in_one_line(base_folder: Path, saved: Path, tmp_path: Path, text: str) -> None:
    folder = copy_with(saved, tmp_path)
    (folder / "role.json").write_text(text)
    check_refused(load(base_folder), folder, "role.json: cannot be read: ", error=ModelError)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"base": None}, "'base' = null: Input should be a valid string"),
        ({"dtype": "float999"}, "'dtype' = \"float999\": Input should be 'float32', 'bfloat16' or 'float16'"),
        ({"quantization": "int3"}, "'quantization' = \"int3\": Input should be 'none' or 'nf4'"),
        ({"pooling": "max"}, "'pooling' = \"max\": Input should be 'last' or 'mean'"),
        ({"kind": "judge"}, "'kind' = \"judge\": Input should be 'policy', 'reward' or 'critic'"),
        ({"score_std": -1}, "'score_std' = -1: Input should be greater than 0"),
        ({"score_std": 0}, "'score_std' = 0: Input should be greater than 0"),
        ({"score_std": "1"}, "'score_std' = \"1\": Input should be a valid number"),
        ({"score_mean": float("nan")}, "'score_mean' = NaN: Input should be a finite number"),
        ({"score_mean": True}, "'score_mean' = true: Input should be a valid number"),
        ({"\x1b[2J": 1}, r"'\\x1b\[2J' = 1: Extra inputs are not permitted"),
    ],
)
def test_an_entry_of_the_card_that_cannot_be_is_named(
    base_folder: Path, saved: Path, tmp_path: Path, entries: dict[str, object], message: str
) -> None:
    folder = copy_with(saved, tmp_path, **entries)
    check_refused(load(base_folder), folder, f"role.json: cannot be read: {message}", error=ModelError)


def test_an_entry_that_stands_twice_in_the_card_is_named(base_folder: Path, saved: Path, tmp_path: Path) -> None:
    folder = copy_with(saved, tmp_path)
    card = (folder / "role.json").read_text()
    (folder / "role.json").write_text(card.replace("{", '{"pooling": "mean",', 1))
    check_refused(load(base_folder), folder, "role.json: cannot be read: 'pooling' appears twice", error=ModelError)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"r": 1_000_000_000}, "r is 1000000000, and the weights beside it have rank "),
        ({"r": "x"}, "r is 'x', and the weights beside it have rank "),
        ({"target_modules": "([", "layers_to_transform": None}, "cannot be put on this base: unterminated character"),
        ({"r": -1, "rank_pattern": {"q_proj": -1}}, "adapter of role 'judge' cannot be put on this base: `r` should"),
        ({"target_modules": ["nosuch"]}, "cannot be put on this base: Target modules .'nosuch'. not found"),
        ({"lora_dropout": 7}, "cannot be put on this base: dropout probability"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x', not a number"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf, not a number"),
        ({"peft_type": "IA3"}, "the adapter of role 'judge' does not fit this base: "),
        ({"peft_type": "P_TUNING"}, "adapter of role 'judge' is P_TUNING, which does not go into a model's layers; "),
        (
            {"peft_type": "PREFIX_TUNING"},
            "is PREFIX_TUNING, which does not go into a model's layers; use LoRA, or another",
        ),
        ({"peft_type": "NO_SUCH"}, "the adapter cannot be read: "),
        (
            {"bias": "all"},
            "adapter of role 'judge' has bias = 'all', which the base and other roles would share; leave it out",
        ),
        ({"layer_replication": [[0, 2], [1, 2]]}, "has layer_replication = .*, which the base and other roles would"),
    ],
)
def test_an_adapter_configuration_that_cannot_be_is_refused_with_its_folder(
    base_folder: Path, saved: Path, tmp_path: Path, entries: dict[str, object], message: str
) -> None:
    folder = copy_with(saved, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | entries))
    check_refused(load(base_folder), folder, f"{folder}.*{message}", error=ModelError)


def test_a_role_on_file_never_changes_the_weights_of_the_base(base_folder: Path, saved: Path, tmp_path: Path) -> None:
    folder = copy_with(saved, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa"}))
    base = load(base_folder)
    load_role(base, "judge", folder, kinds=("reward",))
    expected = load(base_folder)
    load_role(expected, "judge", saved / "reward", kinds=("reward",))
    scores = [completion_scores(each, some_batch(), role="judge") for each in (base, expected)]
    assert torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("key", [SCORE_KEY, "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"])
def test_a_role_with_nan_in_it_is_refused(base_folder: Path, saved: Path, tmp_path: Path, key: str) -> None:
    folder = copy_with(saved, tmp_path)
    weights = load_file(folder / "adapter_model.safetensors")
    weights[key][0, 3] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors")
    check_refused(
        load(base_folder), folder, f"adapter_model.safetensors: '{key}' holds NaN or infinity", error=ModelError
    )


def test_a_folder_that_is_no_role_says_which_one_was_meant(base_folder: Path, saved: Path, tmp_path: Path) -> None:
    base = load(base_folder)
    check_refused(base, saved, f"{saved}: no role.json; did you mean {saved / 'policy'}", error=ModelError)
    check_refused(base, tmp_path, "no role.json; it is not a role saved by onebase", error=ModelError)
    check_refused(
        base, tmp_path / "gone", "gone: no such folder; a role is the folder `policy` or `reward`", error=ModelError
    )


def test_a_role_that_is_the_base_itself_cannot_be_saved_as_an_adapter(base_folder: Path, tmp_path: Path) -> None:
    base = load(base_folder)
    base.add_role("policy")
    with pytest.raises(ModelError, match="role 'policy' is the base itself and has no adapter to save"):
        save_role(base, "policy", tmp_path / "policy", kind="policy")
    assert os.listdir(tmp_path) == []


def test_an_architecture_without_a_classifier_is_said() -> None:
    base = tiny_base("llama")
    base.add_role("reward", head=True)
    base.model.config.__class__ = type("UnheardOfConfig", (type(base.model.config),), {})
    with pytest.raises(ModelError, match="LlamaForCausalLM: transformers has no sequence classifier of this kind"):
        save_classifier(base, "reward", "nowhere")


@pytest.mark.parametrize(("pooling", "task"), [("last", "SEQ_CLS"), ("mean", "FEATURE_EXTRACTION")])
def test_only_a_role_that_scores_the_last_token_is_saved_as_a_classifier(
    base_folder: Path, tmp_path: Path, pooling: str, task: str
) -> None:
    base = load(base_folder)
    add_adapter_role(base, "reward", head=True)
    base.scalar_role("reward").pooling = pooling
    save_role(base, "reward", tmp_path / "reward", kind="reward")
    config = json.loads((tmp_path / "reward" / "adapter_config.json").read_text())
    assert config["task_type"] == task and (config["modules_to_save"] == ["score"]) == (pooling == "last")
    assert base.adapter_config("reward").task_type == "CAUSAL_LM"


def test_scores_that_were_never_measured_have_no_moments(base_folder: Path, tmp_path: Path) -> None:
    base = load(base_folder)
    add_adapter_role(base, "reward", head=True)
    save_role(base, "reward", tmp_path / "reward", kind="reward")
    card = read_card(tmp_path / "reward")
    role = load_role(load(base_folder), "reward", tmp_path / "reward", kinds=("reward",))
    assert card.score_mean is card.score_std is None
    assert isinstance(role, ScalarRole) and role.moments == Moments(0.0, 1.0, measured=False)


def test_equal_scores_have_a_mean_and_no_scale(base_folder: Path, tmp_path: Path) -> None:
    base = load(base_folder)
    add_adapter_role(base, "reward", head=True)
    base.scalar_role("reward").moments = Moments(0.5, 0.0, measured=True)
    save_role(base, "reward", tmp_path / "reward", kind="reward")
    card = read_card(tmp_path / "reward")
    role = load_role(load(base_folder), "reward", tmp_path / "reward", kinds=("reward",))
    assert (card.score_mean, card.score_std) == (0.5, None)
    assert isinstance(role, ScalarRole) and role.moments == Moments(0.0, 1.0, measured=False)


# --------------------------------------------------------------------------------------------------------- a full disk


def test_a_full_disk_while_saving_leaves_the_older_role_and_no_temporary(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load(base_folder)
    base.add_role("policy", adapter=lora_config(base.model, r=2, alpha=4))
    save_role(base, "policy", tmp_path / "policy", kind="policy")
    before = {path.name: path.read_bytes() for path in (tmp_path / "policy").iterdir()}
    disturb(base, "policy")

    def full_disk(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DoesNotFitError, match="policy: the disk is full; nothing was half-written") as caught:
        save_role(base, "policy", tmp_path / "policy", kind="policy")
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "policy").iterdir()} == before
    assert os.listdir(tmp_path) == ["policy"]
