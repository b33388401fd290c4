from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPTNeoConfig,
    MptConfig,
    PreTrainedConfig,
)

from onebase.data.tree import build_tree_batch
from onebase.errors import ModelError
from onebase.models import loading
from onebase.models.forward import token_logprobs
from onebase.models.loading import (
    base_fingerprint,
    detect_layout,
    hardware_dtype,
    load_base,
    load_tokenizer,
    tensors_fingerprint,
    tokenizer_fingerprint,
    wrap_model,
)
from onebase.records import Example
from tests.tiny_models import VOCABULARY, random_ids, save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama"), "llama")


@pytest.mark.parametrize(
    ("architecture", "layout"),
    [
        ("llama", "tree"), ("gpt2", "tree"), ("qwen3", "tree"), ("neox", "tree"), ("mistral", "tree"),
        ("gemma2", "tree"), ("gemma3", "tree"), ("bloom", "separate"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("initializer_range", [0.02, 0.15])
def test_a_tree_is_used_where_it_is_exact(architecture: str, layout: str, initializer_range: float) -> None:
    assert detect_layout(tiny_model(architecture, initializer_range=initializer_range)) == layout


@pytest.mark.parametrize(("architecture", "layout"), [("llama", "tree"), ("bloom", "separate")])
def test_the_layout_is_found_in_bfloat16_too(architecture: str, layout: str) -> None:
    assert detect_layout(tiny_model(architecture).bfloat16()) == layout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        # A window longer than the tree that is tried, counted in columns.
        GPTNeoConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64, window_size=64,
            attention_types=[[["global", "local"], 1]], max_position_embeddings=128,
        ),
        # ALiBi: the positions are the columns.
        MptConfig(vocab_size=VOCABULARY, d_model=32, n_heads=2, n_layers=2, max_seq_len=128),
    ],
    ids=["gpt_neo", "mpt"],
)  # fmt: skip
def test_models_that_count_columns_get_separate_rows(config: PreTrainedConfig, dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    assert detect_layout(model) == "separate"


def test_a_model_whose_own_logits_are_not_reproduced_is_refused() -> None:
    model = tiny_model("llama")
    forward = model.forward

    def with_a_shift(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits = output.logits + torch.linspace(0, 1, VOCABULARY)
        return output

    model.forward = with_a_shift
    with pytest.raises(ModelError, match="LlamaForCausalLM: the log-probs from its trunk and output layer differ"):
        detect_layout(model)


def test_checking_the_layout_leaves_the_random_state_alone() -> None:
    model = tiny_model("llama")
    state = torch.get_rng_state()
    detect_layout(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loaded_base_is_frozen_and_gives_the_models_own_logprobs(llama: Path) -> None:
    one = load_base(str(llama), dtype="float32", device="cpu")
    assert one.layout == "tree" and one.name_or_path == str(llama)
    assert not one.model.training and not any(parameter.requires_grad for parameter in one.model.parameters())
    one.add_role("policy")
    prompt, completion = random_ids(5, seed=1), random_ids(4, seed=2)
    logits = AutoModelForCausalLM.from_pretrained(llama)(torch.tensor([prompt + completion])).logits[0, 4:-1]
    expected = logits.log_softmax(-1)[torch.arange(4), torch.tensor(completion)]
    found = token_logprobs(one, build_tree_batch([Example(prompt, [completion])]), role="policy")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_dtype_is_the_one_asked_for(llama: Path, dtype: str, expected: torch.dtype) -> None:
    one = load_base(str(llama), dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in one.model.parameters()} == {expected}
    one.add_role("policy")
    batch = build_tree_batch([Example([5], [[6, 7]])])
    assert token_logprobs(one, batch, role="policy").dtype == torch.float32


def test_auto_dtype_is_bfloat16_only_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in [
        ({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32),
    ]:  # fmt: skip
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert hardware_dtype(torch.device("cpu")) == expected
    assert hardware_dtype(torch.device("meta")) == torch.float32


# -------------------------------------------------------------------------------------------------- what is refused


def one_line(caught: pytest.ExceptionInfo[ModelError]) -> bool:
    return "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="no/such/model: no such folder; model.model_name_or_path takes a folder"):
        load_base("no/such/model")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{tmp_path}: no model could be loaded: ") as caught:
        load_base(str(tmp_path))
    assert one_line(caught)


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no tokenizer could be loaded: ") as caught:
        load_base(str(tmp_path), device="cpu")
    assert one_line(caught)
    with pytest.raises(ModelError, match="no tokenizer could be loaded: "):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_a_truncated_weights_file_is_refused_in_one_line(llama: Path, tmp_path: Path, kept: int) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ModelError, match=f"{folder}: no model could be loaded: ") as caught:
        load_base(str(folder), device="cpu")
    assert one_line(caught)


@pytest.mark.parametrize("text", ["{", "{}", '{"model_type": "llama", "hidden_size": "many"}'])
def test_a_broken_config_is_refused_in_one_line(llama: Path, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=f"{folder}: no model could be loaded: ") as caught:
        load_base(str(folder), device="cpu")
    assert one_line(caught)


def test_weights_of_another_shape_than_the_config_says_are_refused(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(ModelError, match=f"{folder}: no model could be loaded: ") as caught:
        load_base(str(folder), device="cpu")
    assert one_line(caught)


def test_a_model_without_its_output_layer_is_refused_and_not_given_a_random_one(llama: Path, tmp_path: Path) -> None:
    classifier = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1)
    classifier.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="lm_head.weight") as caught:
        load_base(str(tmp_path), device="cpu")
    assert one_line(caught)


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused() -> None:
    with pytest.raises(ModelError, match="the tokenizer of small has 259 ids and the embedding only 258 rows"):
        wrap_model(tiny_model("llama", vocab_size=VOCABULARY - 1), tiny_tokenizer(), name_or_path="small")


# ------------------------------------------------------------------------------------------------------ fingerprints


def test_the_fingerprint_of_a_base_is_the_same_however_it_is_loaded_or_sharded(llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    sharded = save_tiny(tmp_path / "sharded", "llama", max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    expected = base_fingerprint(str(llama))
    assert base_fingerprint(str(sharded)) == expected
    moved = shutil.copytree(llama, tmp_path / "moved")
    for folder, dtype, quantization in [
        (llama, "float32", "none"),
        (moved, "bfloat16", "none"),
        (sharded, "float32", "nf4"),
        (llama, "bfloat16", "nf4"),
    ]:
        one = load_base(str(folder), dtype=dtype, quantization=quantization, device="cpu")
        assert one.fingerprint == expected, (folder, dtype, quantization)


def test_another_seed_layer_or_architecture_is_another_fingerprint(llama: Path, tmp_path: Path) -> None:
    expected = base_fingerprint(str(llama))
    others = [
        save_tiny(tmp_path / "seed", "llama", seed=1),
        save_tiny(tmp_path / "layers", "llama", num_hidden_layers=1),
        save_tiny(tmp_path / "gpt2", "gpt2"),
    ]
    assert len({expected, *(base_fingerprint(str(folder)) for folder in others)}) == 4


def test_one_trained_tensor_is_another_fingerprint(llama: Path) -> None:
    weights = dict(AutoModelForCausalLM.from_pretrained(llama).state_dict())
    expected = tensors_fingerprint(weights)
    assert tensors_fingerprint({name: weights[name].clone() for name in reversed(weights)}) == expected
    for name in weights:
        changed = weights | {name: weights[name] * 1.01}
        assert tensors_fingerprint(changed) != expected, name


def test_a_model_in_memory_has_the_fingerprint_of_its_files(llama: Path) -> None:
    assert wrap_model(tiny_model("llama"), tiny_tokenizer()).fingerprint == base_fingerprint(str(llama))


def test_two_bases_without_safetensors_files_are_not_taken_for_one(llama: Path, tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        folder = save_tiny(tmp_path / str(seed), "llama", seed=seed)
        (folder / "model.safetensors").unlink()
        torch.save(tiny_model("llama", seed=seed).state_dict(), folder / "pytorch_model.bin")
        found.append(load_base(str(folder), dtype="float32", device="cpu").fingerprint)
    assert found[0] != found[1]
    assert found[0] == base_fingerprint(str(llama))


def test_the_fingerprint_of_a_tokenizer_is_of_its_mapping_from_text_to_ids(tmp_path: Path) -> None:
    expected = tokenizer_fingerprint(tiny_tokenizer())
    tiny_tokenizer().save_pretrained(tmp_path)
    assert tokenizer_fingerprint(load_tokenizer(str(tmp_path))) == expected
    used = tiny_tokenizer()
    used(["a", "longer text"], padding=True, truncation=True, max_length=4)  # leaves settings behind in the tokenizer
    assert tokenizer_fingerprint(used) == expected
    longer, other_end, lower = tiny_tokenizer(), tiny_tokenizer(), tiny_tokenizer()
    longer.add_tokens(["new"])
    other_end.eos_token = "a"
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert lower("Ab")["input_ids"] != tiny_tokenizer()("Ab")["input_ids"]
    for other in (longer, other_end, lower):
        assert tokenizer_fingerprint(other) != expected


def test_a_name_with_a_separator_or_a_dot_is_taken_for_a_folder() -> None:
    assert all(map(loading._looks_local, ["./model", "../model", "/model", "~/model", "a/b/c"]))
    assert not loading._looks_local("HuggingFaceTB/SmolLM2-135M")


def test_the_small_real_model_loads_with_its_tokenizer(shared: Path) -> None:
    one = load_base(str(shared / "models" / "stories260K" / "hf"), dtype="float32", device="cpu")
    assert one.layout == "tree" and one.hidden_size == 64 and one.context_length == 512
    assert sum(parameter.numel() for parameter in one.model.parameters()) == 260_032


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="the system does not say what is mapped from a file")
def test_weights_of_layers_with_one_input_lie_together_unless_they_are_pages_of_a_file(llama: Path) -> None:
    def num_products(dtype: str) -> list[int]:
        layer = load_base(str(llama), dtype=dtype).decoder.layers()[0]  # type: ignore[union-attr]
        return [len(part.weights) for part in (layer.query_key_value, layer.gate_up)]

    assert num_products("bfloat16") == [1, 1]  # converted, so in memory of their own
    assert num_products("float32") == [3, 2]


def test_a_base_whose_weights_lie_together_is_saved_as_it_was(llama: Path, tmp_path: Path) -> None:
    one = load_base(str(llama), dtype="bfloat16")
    one.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    original = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    assert list(again.state_dict()) == list(original.state_dict())
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in again.state_dict().items())
