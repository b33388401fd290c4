"""`onebase merge`: what is written is the role, read by plain transformers, or nothing is written."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from onebase.cli.main import main
from onebase.data.chat import chat_format
from onebase.data.tree import build_tree_batch
from onebase.engines.forward import completion_scores, token_logprobs
from onebase.engines.opening import load_base
from onebase.models.base import OneBase
from onebase.models.classifier import save_classifier
from onebase.models.role_files import load_role, save_base, save_role
from onebase.records import Example
from onebase.sampling.local import generate
from onebase.sampling.sampler import Sampling
from tests.exporting.conftest import Made, Make
from tests.tiny_models import EOS, PAD, add_adapter_role, disturb, random_ids, save_tiny

ARCHITECTURES = ["llama", "qwen3", "gpt2"]
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.3}
"""Nats on a single token."""


def merged(capsys: pytest.CaptureFixture[str], role: Path, out: Path, *words: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    found = main(["merge", str(role), str(out), "--device", "cpu", *words])
    printed = capsys.readouterr()
    assert found == code, printed.err
    return printed.out, printed.err


def role_on_base(made: Made, name: str, dtype: str = "float32", quantization: str = "none") -> OneBase:
    base = load_base(str(made.base), dtype=dtype, quantization=quantization, device="cpu")
    load_role(base, name, getattr(made, name), kinds=(name,))
    return base


def examples() -> list[Example]:
    return [Example(random_ids(7, seed=k), [random_ids(3 + 4 * k, seed=10 + k) + [EOS]]) for k in range(4)]


@torch.no_grad()
def logprobs_of(model: PreTrainedModel) -> Tensor:
    """Of the examples' completions by plain transformers, end to end."""
    found = []
    for example in examples():
        ids = torch.tensor([example.tokens(0)])
        every = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        found.append(every.gather(-1, ids[0, 1:, None])[-len(example.completions[0]) :, 0])
    return torch.cat(found)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def beside(path: Path) -> list[str]:
    """What an unfinished write would leave."""
    return [each.name for each in path.parent.iterdir() if each.name.endswith((".tmp", ".old"))]


# ---------------------------------------------------------------------------------------------- policies


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plain_transformers_reads_a_merged_policy_as_the_role(
    architecture: str, stored: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(architecture, stored)
    before = bytes_of(made.base)
    out, _ = merged(capsys, made.policy, tmp_path / "out")
    assert f"1 weight file, {stored}" in out and "of 8 greedy answers are the same" in out
    assert bytes_of(made.base) == before
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert plain.dtype == getattr(torch, stored)
    base = role_on_base(made, "policy", stored)
    batch = build_tree_batch(examples())
    with torch.no_grad():
        expected = token_logprobs(base, batch, role="policy")
        base.add_role("base")
        untrained = token_logprobs(base, batch, role="base")
    found = logprobs_of(plain)
    assert (expected - untrained).abs().mean() > 10 * (found - expected).abs().mean()  # the role is in it
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[stored])
    if stored == "float32":
        prompt = random_ids(9, seed=5)
        (sample,) = generate(
            base, [prompt], role="policy", sampling=Sampling(12, temperature=0, stop_ids=(EOS,)), seeds=[0]
        )
        answer = plain.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=PAD)
        assert answer[0, len(prompt) :].tolist() == sample.ids


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_role_trained_in_4_bits_is_merged_into_the_stored_weights_and_the_change_is_said(
    architecture: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(architecture, "bfloat16", "nf4")
    out, _ = merged(capsys, made.policy, tmp_path / "out")
    assert "trained on the base in 4 bits (NF4, computing in bfloat16), merged into its weights in bfloat16" in out
    said = float(out.split("changes log-probs by ")[1].split()[0])
    assert 0.01 < said < 5
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert plain.dtype == torch.bfloat16
    with torch.no_grad():
        expected = token_logprobs(role_on_base(made, "policy", "bfloat16"), build_tree_batch(examples()), role="policy")
    torch.testing.assert_close(logprobs_of(plain), expected, rtol=0, atol=TOLERANCE["bfloat16"])


def test_the_folder_has_the_tokenizer_template_and_end_tokens_of_training(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make()
    merged(capsys, made.policy, tmp_path / "out")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    own = chat_format(tokenizer)
    assert own.fingerprint == chat_format(tokenizer, "chatml").fingerprint
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == EOS == own.end_token_id


def test_every_end_token_that_the_role_stops_at_ends_the_merged_models_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base_folder = save_tiny(tmp_path / "base", "llama")
    settings = base_folder / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": [7, 9], "temperature": 0.6, "do_sample": False}))
    base = load_base(str(base_folder), dtype="float32", device="cpu")
    add_adapter_role(base, "policy", seed=1)
    save_role(base, "policy", tmp_path / "policy", kind="policy")
    out, _ = merged(capsys, tmp_path / "policy", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [EOS, 7, 9]
    assert "generation settings contradict each other" in out


def test_large_weights_are_written_in_shards(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make()
    out, _ = merged(capsys, made.policy, tmp_path / "out", "--max-shard-size", "40KB")
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1 and f"in {len(shards)} weight files" in out
    whole: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    merged(capsys, made.policy, tmp_path / "one", "--no-verify")
    torch.testing.assert_close(
        logprobs_of(whole), logprobs_of(AutoModelForCausalLM.from_pretrained(tmp_path / "one")), rtol=0, atol=0
    )


def test_a_policy_trained_in_full_is_written_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = load_base(str(save_tiny(tmp_path / "base", "llama")), dtype="float32", device="cpu")
    base.add_role("policy")
    base.train_base("policy")
    disturb(base, "policy", size=0.05)
    save_base(base, tmp_path / "policy", chat=chat_format(base.tokenizer, "chatml"))
    out, _ = merged(capsys, tmp_path / "policy", tmp_path / "out")
    assert "8 of 8 greedy answers are the same" in out
    expected = logprobs_of(base.model)
    torch.testing.assert_close(logprobs_of(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected)


def test_a_role_that_changes_next_to_nothing_is_merged_with_a_line_that_the_check_is_blind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_base(str(save_tiny(tmp_path / "base", "llama")), dtype="float32", device="cpu")
    add_adapter_role(base, "policy", seed=1)
    with torch.no_grad():
        for parameter in base.parameters("policy"):
            parameter.mul_(1e-3)
    save_role(base, "policy", tmp_path / "policy", kind="policy")
    out, _ = merged(capsys, tmp_path / "policy", tmp_path / "out")
    assert "cannot tell it from its base" in out


# ----------------------------------------------------------------------------------------------- rewards


def padded() -> tuple[Tensor, Tensor]:
    rows = [example.tokens(0) for example in examples()]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merged_reward_role_is_a_classifier_with_the_same_scores(
    architecture: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(architecture)
    out, _ = merged(capsys, made.reward, tmp_path / "out")
    assert "checked: scores of 16 answers differ by at most" in out
    plain: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert plain.config.num_labels == 1 and plain.config.pad_token_id == PAD
    ids, mask = padded()
    assert (mask == 0).any()
    with torch.no_grad():
        expected = completion_scores(role_on_base(made, "reward"), build_tree_batch(examples()), role="reward")
        batch = plain(input_ids=ids, attention_mask=mask).logits[:, 0]
        alone = torch.cat([plain(input_ids=torch.tensor([e.tokens(0)])).logits[:, 0] for e in examples()])
    assert expected.std() > 0.05
    torch.testing.assert_close(batch, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_reward_role_in_16_bits_is_checked_by_its_format(
    quantization: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make("llama", "bfloat16", quantization)
    out, _ = merged(capsys, made.reward, tmp_path / "out")
    assert "checked: scores of 16 answers" in out
    assert ("compared with training, scores of 16 answers" in out) == (quantization == "nf4")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype="auto")
    assert plain.dtype == torch.bfloat16


def test_a_reward_model_trained_in_full_is_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = load_base(str(save_tiny(tmp_path / "base", "llama")), dtype="float32", device="cpu")
    base.add_role("reward", head=True)
    base.train_base("reward")
    disturb(base, "reward", size=0.05)
    save_classifier(base, "reward", tmp_path / "model")
    out, _ = merged(capsys, tmp_path / "model", tmp_path / "out")
    assert "checked: every weight is the same" in out
    ids, mask = padded()
    with torch.no_grad():
        first, second = (
            AutoModelForSequenceClassification.from_pretrained(tmp_path / name)(input_ids=ids, attention_mask=mask)
            for name in ("model", "out")
        )
    assert torch.equal(first.logits, second.logits)


# ---------------------------------------------------------------------------------------------- refusals


def wrong(base: OneBase, name: str) -> None:
    """Doubles an adapter, as a merge that scales twice would."""
    with torch.no_grad():
        for key, parameter in base.model.named_parameters():
            if f"lora_B.{name}" in key:
                parameter.mul_(2)


@pytest.mark.parametrize(("kind", "stored"), [("policy", "float32"), ("policy", "bfloat16"), ("reward", "float32")])
def test_a_wrong_merge_is_refused_with_the_figures_and_leaves_nothing(
    kind: str,
    stored: str,
    make: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, right = make("llama", stored), OneBase.merged
    monkeypatch.setattr(OneBase, "merged", lambda base, name: (wrong(base, name), right(base, name))[1])
    _, err = merged(capsys, getattr(made, kind), tmp_path / "out", code=5)
    assert "merged, it is another model: " in err and f"in {stored}. Nothing was written" in err
    assert ("log-probs differ by" if kind == "policy" else "scores of 16 answers differ by") in err
    assert not (tmp_path / "out").exists() and not beside(tmp_path / "out")
    merged(capsys, getattr(made, kind), tmp_path / "out", "--no-verify")
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_disk_that_is_too_small_is_reported_before_anything_is_written(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    _, err = merged(capsys, make().policy, tmp_path / "out", code=4)
    assert "the model takes" in err and "and the disk has 1.0 kB free" in err
    assert not (tmp_path / "out").exists() and not beside(tmp_path / "out")


def test_folders_that_hold_something_are_left_alone(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    _, err = merged(capsys, made.policy, tmp_path / "full", code=2)
    assert "full is not empty; name a new folder" in err
    for inside in (made.policy / "merged", made.base / "merged"):
        _, err = merged(capsys, made.policy, inside, code=2)
        assert "which is only read here; name a folder elsewhere" in err and not inside.exists()
    (tmp_path / "empty").mkdir()
    merged(capsys, made.policy, tmp_path / "empty", "--no-verify")
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_what_cannot_be_a_plain_model_is_refused(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = role_on_base(make(), "reward")
    base.scalar_role("reward").pooling = "mean"
    save_role(base, "reward", tmp_path / "mean", kind="reward")
    _, err = merged(capsys, tmp_path / "mean", tmp_path / "out", code=2)
    assert "its scores are means over an answer's tokens (pooling mean)" in err
    save_role(base, "reward", tmp_path / "critic", kind="critic")
    _, err = merged(capsys, tmp_path / "critic", tmp_path / "out", code=2)
    assert "this is a critic role, and a policy or reward role is needed here" in err
    _, err = merged(capsys, make().policy, tmp_path / "out", "--max-shard-size", "5 GB", code=2)
    assert "--max-shard-size is 5 GB; write it like 5GB or 500MB" in err
    assert not (tmp_path / "out").exists() and not beside(tmp_path / "out")


def test_a_quantised_base_is_not_merged_into(make: Make) -> None:
    base = role_on_base(make("llama", "bfloat16", "nf4"), "policy", "bfloat16", "nf4")
    with pytest.raises(Exception, match="an adapter cannot be merged into a quantised base; load the base in 16 bits"):
        base.merged("policy")


def test_pickled_weights_are_refused_wherever_they_are_named(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make()
    shutil.copytree(made.policy, tmp_path / "policy")
    (tmp_path / "policy" / "adapter_model.safetensors").rename(tmp_path / "policy" / "adapter_model.bin")
    _, err = merged(capsys, tmp_path / "policy", tmp_path / "out", code=2)
    assert "its weights are pickled (adapter_model.bin)" in err
    shutil.copytree(made.base, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
    _, err = merged(capsys, made.policy, tmp_path / "out", "--model", str(tmp_path / "base"), code=2)
    assert "its weights are pickled (pytorch_model.bin)" in err
