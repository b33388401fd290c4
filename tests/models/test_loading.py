from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import normalizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPTNeoConfig,
    Llama4TextConfig,
    MptConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from onebase.data.tree import build_tree_batch
from onebase.engines import padded
from onebase.engines.decoder import Decoder
from onebase.engines.exactness import detect_layout
from onebase.engines.forward import token_logprobs
from onebase.engines.opening import load_base, wrap_model
from onebase.errors import ModelError
from onebase.models.fingerprints import base_fingerprint, tensors_fingerprint, tokenizer_fingerprint
from onebase.models.loading import hardware_dtype, load_tokenizer
from onebase.models.role_card import check_model_name
from onebase.records import Example
from onebase.training.plan import describe_base
from tests.tiny_models import ARCHITECTURES, PAD, VOCABULARY, random_ids, save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama"), "llama")


@pytest.mark.parametrize(
    ("architecture", "layout"),
    [
        ("llama", "tree"),
        ("gpt2", "tree"),
        ("qwen3", "tree"),
        ("neox", "tree"),
        ("mistral", "tree"),
        ("gemma2", "tree"),
        ("gemma3", "tree"),
        ("bloom", "separate"),
    ],
)
@pytest.mark.parametrize("initializer_range", [0.02, 0.15])
def test_a_tree_is_used_where_it_is_exact(architecture: str, layout: str, initializer_range: float) -> None:
    assert detect_layout(tiny_model(architecture, initializer_range=initializer_range)).layout == layout


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"bloom", "llama through transformers"}))
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_tree_that_is_exact_in_float32_is_used_in_bfloat16(architecture: str, seed: int) -> None:
    model = tiny_model(architecture, seed=seed)
    assert detect_layout(model.bfloat16()).layout == "tree" and model.dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_a_tree_that_is_exact_in_float32_is_used_in_4_bits(architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = save_tiny(tmp_path, architecture, seed=1)
    assert load_base(str(folder), dtype="bfloat16", quantization="nf4", device="cpu").layout == "tree"


def test_a_fallback_says_why_and_what_it_costs(tmp_path: Path) -> None:
    (note,) = load_base(str(save_tiny(tmp_path, "bloom")), dtype="bfloat16", device="cpu").notes
    assert note.startswith("layout separate: this architecture reads positions from columns; prompts are computed once")


def mask_that_leaks(model: PreTrainedModel, allowed: Tensor) -> Tensor:
    """Every branch sees the others, as where an architecture makes nothing of a mask of its own."""
    return torch.ones_like(allowed).tril()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_a_tree_whose_branches_see_each_other_is_not_used(
    architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = padded.attention_mask
    monkeypatch.setattr(padded, "attention_mask", lambda rows, **named: mask_that_leaks(model, original(rows)))
    model = tiny_model(architecture, seed=1).to(dtype)
    found = detect_layout(model)
    assert found.layout == "separate"
    assert re.fullmatch(r"trees differ by \d[\d.]* nats from separate rows \(rounding alone: .*\)", found.reason)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_looks_ahead_is_refused_whatever_its_number_format(dtype: torch.dtype) -> None:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.15,
        pad_token_id=PAD,
    )
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with pytest.raises(ModelError, match="BertLMHeadModel: its log-probs of a row's beginning change by"):
        detect_layout(model)


def test_an_architecture_whose_code_fails_is_named() -> None:
    model = tiny_model("llama")
    model.forward = lambda **named: named["nothing"]
    with pytest.raises(ModelError, match="LlamaForCausalLM: this architecture cannot be used, a first pass fails: "):
        detect_layout(model)


def test_llama_4_is_refused_or_used_and_never_an_attribute_error() -> None:
    config = Llama4TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        intermediate_size_mlp=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        max_position_embeddings=128,
        pad_token_id=PAD,
    )
    with pytest.raises(ModelError, match="Llama4ForCausalLM: "):
        detect_layout(AutoModelForCausalLM.from_config(config).eval())


def test_the_small_real_model_is_run_in_trees_in_bfloat16(shared: Path) -> None:
    base = load_base(str(shared / "models" / "stories260K" / "hf"), dtype="bfloat16", device="cpu")
    assert base.layout == "tree" and base.packs and base.notes == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        # A window longer than the tree that is tried, counted in columns.
        GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            intermediate_size=64,
            window_size=64,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=128,
        ),
        # ALiBi: the positions are the columns.
        MptConfig(vocab_size=VOCABULARY, d_model=32, n_heads=2, n_layers=2, max_seq_len=128),
    ],
    ids=["gpt_neo", "mpt"],
)
def test_models_that_count_columns_get_separate_rows(config: PreTrainedConfig, dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    assert detect_layout(model).layout == "separate"


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
    base = load_base(str(llama), dtype="float32", device="cpu")
    assert base.layout == "tree" and base.name_or_path == str(llama)
    assert not base.model.training and not any(parameter.requires_grad for parameter in base.model.parameters())
    base.add_role("policy")
    prompt, completion = random_ids(5, seed=1), random_ids(4, seed=2)
    logits = AutoModelForCausalLM.from_pretrained(llama)(torch.tensor([prompt + completion])).logits[0, 4:-1]
    expected = logits.log_softmax(-1)[torch.arange(4), torch.tensor(completion)]
    found = token_logprobs(base, build_tree_batch([Example(prompt, [completion])]), role="policy")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_dtype_is_the_one_asked_for(llama: Path, dtype: str, expected: torch.dtype) -> None:
    base = load_base(str(llama), dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in base.model.parameters()} == {expected}
    base.add_role("policy")
    batch = build_tree_batch([Example([5], [[6, 7]])])
    assert token_logprobs(base, batch, role="policy").dtype == torch.float32


def test_auto_dtype_is_bfloat16_only_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert hardware_dtype(torch.device("cpu")) == expected
    assert hardware_dtype(torch.device("meta")) == torch.float32


# -------------------------------------------------------------------------------------------------- what is refused


def change_config(folder: Path, **entries: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


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
    with pytest.raises(ModelError, match="this is a LlamaForSequenceClassification; a causal language") as caught:
        load_base(str(tmp_path), device="cpu")
    assert one_line(caught)
    change_config(tmp_path, architectures=None)
    with pytest.raises(ModelError, match="lm_head.weight") as caught:
        load_base(str(tmp_path), device="cpu")
    assert one_line(caught)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"architectures": ["LlamaForTokenClassification"]}, "this is a LlamaForTokenClassification; a causal"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, r"this is an encoder \(bert\), which sees"),
        ({"model_type": "t5", "is_encoder_decoder": True}, r"this is an encoder-decoder model \(t5\); a causal"),
        ({"model_type": "vit"}, "transformers has no causal language model of the kind vit"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "its weights are stored quantised as gptq"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "its weights are stored quantised as awq"),
        ({"num_attention_heads": 3}, "no model could be loaded: "),
        ({"num_attention_heads": 0}, ""),
        ({"hidden_size": -64}, ""),
        ({"num_hidden_layers": "two"}, "no model could be loaded: "),
        ({"max_position_embeddings": 0}, "config.json says that the model reads 0 positions at once"),
        ({"max_position_embeddings": 1}, "config.json says that the model reads 1 positions at once"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}, "no model could be loaded: it needs Python code"),
    ],
)
def test_a_folder_that_can_be_no_base_is_refused_in_one_line_by_a_run_and_by_a_plan(
    llama: Path, tmp_path: Path, entries: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "yes")
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "own.py").write_text("raise SystemExit('the folder ran its own code')\n")
    change_config(folder, **entries)
    for use in (lambda: load_base(str(folder), device="cpu"), lambda: describe_base(str(folder), "none", "float32")):
        with pytest.raises(ModelError, match=f"{folder}: {message}") as caught:
            use()
        assert one_line(caught)


def test_stored_layers_that_the_configuration_leaves_out_are_refused(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    change_config(folder, num_hidden_layers=1)
    with pytest.raises(ModelError, match="9 stored weights have no place in the model .* 'model.layers.1.") as caught:
        load_base(str(folder), device="cpu")
    assert one_line(caught)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_base_with_nan_in_it_is_refused_with_the_place(llama: Path, tmp_path: Path, dtype: str) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][7, 40:42] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = "2 numbers of the weight 'model.layers.1.mlp.down_proj.weight' are NaN or infinite"
    with pytest.raises(ModelError, match=message) as caught:
        load_base(str(folder), dtype=dtype, device="cpu")
    assert one_line(caught)


def test_a_device_that_holds_no_numbers_is_refused(llama: Path) -> None:
    with pytest.raises(ModelError, match="the device 'meta' is not available here: ") as caught:
        load_base(str(llama), device="meta")
    assert caught.value.remedy == "no-device"


def test_a_tokenizer_with_more_ids_is_refused_before_weights_are_read(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|never heard of|>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="has 260 ids and the embedding only 259 rows") as caught:
        describe_base(str(folder), "none", "float32")
    assert one_line(caught)


def test_a_tokenizer_with_more_ids_than_than_the_embedding_has_rows_is_refused() -> None:
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
        base = load_base(str(folder), dtype=dtype, quantization=quantization, device="cpu")
        assert base.fingerprint == expected, (folder, dtype, quantization)


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


@pytest.mark.parametrize("shape", [(3000, 70), (4, 90, 60), (9000,), (2, 3)])
def test_a_change_anywhere_but_in_the_first_rows_is_another_fingerprint(shape: tuple[int, ...], tmp_path: Path) -> None:
    weights = {"weight": torch.randn(shape)}
    save_file(weights, tmp_path / "model.safetensors")
    expected = tensors_fingerprint(weights)
    assert base_fingerprint(str(tmp_path)) == expected
    later, last = weights["weight"].clone(), weights["weight"].clone()
    later[64:] += 1.0
    last[-1] += 1.0
    assert shape[0] <= 64 or tensors_fingerprint({"weight": later}) != expected
    assert tensors_fingerprint({"weight": last}) != expected


def test_a_model_in_memory_has_the_fingerprint_of_its_files(llama: Path) -> None:
    assert wrap_model(tiny_model("llama"), tiny_tokenizer()).fingerprint == base_fingerprint(str(llama))


def test_a_base_whose_weights_are_pickled_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "llama")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"its weights are pickled \(pytorch_model.bin\), and reading such a file can"):
        load_base(str(folder), dtype="float32", device="cpu")


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
    for name in ("./model", "../model", "/model", "~/model", "a/b/c"):
        with pytest.raises(ModelError, match=f"{name}: no such folder; model.model_name_or_path takes a folder"):
            check_model_name(name)
    check_model_name("HuggingFaceTB/SmolLM2-135M")
    with pytest.raises(ModelError, match="a b/c: neither a folder nor a hub name; reward.model takes one of them"):
        check_model_name("a b/c", key="reward.model")


def test_a_hub_that_cannot_be_reached_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*arguments: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("onebase.models.role_card.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    with pytest.raises(ModelError, match="org/none: no such folder here, and no model of that name in the cache"):
        check_model_name("org/none")


def test_the_small_real_model_loads_with_its_tokenizer(shared: Path) -> None:
    base = load_base(str(shared / "models" / "stories260K" / "hf"), dtype="float32", device="cpu")
    assert base.layout == "tree" and base.hidden_size == 64 and base.context_length == 512
    assert sum(parameter.numel() for parameter in base.model.parameters()) == 260_032


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="the system does not say what is mapped from a file")
def test_weights_of_layers_with_one_input_lie_together_unless_they_are_pages_of_a_file(llama: Path) -> None:
    def num_products(dtype: str) -> list[int]:
        base = load_base(str(llama), dtype=dtype)
        assert base.packs
        layer = Decoder(base.model).layers()[0]
        return [len(part.weights) for part in (layer.query_key_value, layer.gate_up)]

    assert num_products("bfloat16") == [1, 1]  # converted, so in memory of their own
    assert num_products("float32") == [3, 2]


def test_a_base_whose_weights_lie_together_is_saved_as_it_was(llama: Path, tmp_path: Path) -> None:
    base = load_base(str(llama), dtype="bfloat16")
    base.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    original = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    assert list(again.state_dict()) == list(original.state_dict())
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in again.state_dict().items())
