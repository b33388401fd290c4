"""`onebase export`: folders for vLLM, llama.cpp, Ollama and TGI, and what these do not take."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from onebase.cli.main import main
from onebase.data.tree import build_tree_batch
from onebase.engines.forward import token_logprobs
from onebase.engines.opening import load_base
from onebase.exporting import gguf, vllm
from onebase.exporting.source import find_source
from onebase.models.role_files import load_role, save_base
from tests.exporting.conftest import Made, Make, role_on
from tests.exporting.test_merge import beside, examples, logprobs_of
from tests.tiny_models import EOS, save_tiny


@pytest.fixture
def exported(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `onebase export`; returns what it printed, or the error line."""

    def run(role: Path, out: Path, to: str, code: int = 0) -> str:
        capsys.readouterr()
        found = main(["export", str(role), str(out), "--to", to, "--device", "cpu"])
        printed = capsys.readouterr()
        assert found == code, printed.err
        if code:
            assert not out.exists() and not beside(out)
        return printed.err if code else printed.out

    return run


def changed(made: Made, tmp_path: Path, **entries: Any) -> Path:
    """A copy of the policy with entries of its adapter's configuration changed."""
    folder = tmp_path / f"policy-{'-'.join(entries)}"
    shutil.copytree(made.policy, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


# -------------------------------------------------------------------------------------------------- vllm


def test_a_folder_for_vllm_is_a_peft_folder_and_the_command_names_all_it_needs(
    make: Make, tmp_path: Path, exported: Callable[..., str]
) -> None:
    made, out = make("llama", "bfloat16"), tmp_path / "out"
    words = shlex.split(exported(made.policy, out, "vllm").splitlines()[0])
    assert words[:3] == ["vllm", "serve", str(made.base)]
    del words[words.index("--enable-lora")]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options == {
        "--dtype": "bfloat16",
        "--tokenizer": str(out),
        "--generation-config": str(out),
        "--max-lora-rank": "8",
        "--lora-modules": f"policy={out}",
    }
    base = load_base(str(made.base), dtype="bfloat16", device="cpu")
    load_role(base, "policy", made.policy, kinds=("policy",))
    plain: Any = AutoModelForCausalLM.from_pretrained(made.base, dtype="auto")
    with torch.no_grad():
        expected = token_logprobs(base, build_tree_batch(examples()), role="policy")
        found = logprobs_of(PeftModel.from_pretrained(plain, out).eval())
    torch.testing.assert_close(found, expected, rtol=0, atol=0.3)
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(made.policy).chat_template
    assert GenerationConfig.from_pretrained(out).eos_token_id == [EOS]
    assert shlex.join(["--max-lora-rank", "8"]) in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"use_dora": True}, "does not take DoRA; make it a plain model with onebase merge"),
        ({"peft_type": "IA3"}, "does not take adapters of the kind IA3, only LoRA"),
        ({"modules_to_save": ["lm_head"]}, "layers trained in full beside the adapter (modules_to_save)"),
        ({"rank_pattern": {"q_proj": 2}}, "ranks that differ from layer to layer (rank_pattern)"),
        ({"alpha_pattern": {"q_proj": 2}}, "alphas that differ from layer to layer (alpha_pattern)"),
        ({"lora_bias": True}, "a bias in the adapter (lora_bias)"),
        ({"bias": "all"}, "trained biases (bias)"),
        ({"layer_replication": [[0, 1]]}, "replicated layers (layer_replication)"),
        ({"fan_in_fan_out": True}, "adapters on GPT-2's layers (Conv1D)"),
        ({"r": 1000}, "r is 1000, and the weights beside it have rank 4"),
    ],
)
@pytest.mark.parametrize("to", ["vllm", "tgi"])
def test_what_servers_of_adapters_do_not_take_is_refused_with_what_to_do(
    entries: dict[str, Any], says: str, to: str, make: Make, tmp_path: Path, exported: Callable[..., str]
) -> None:
    assert says in exported(changed(make(), tmp_path, **entries), tmp_path / "out", to, code=2)


def test_an_adapter_that_does_not_belong_to_its_base_is_refused(
    make: Make, tmp_path: Path, exported: Callable[..., str]
) -> None:
    made, out = make("llama", "bfloat16"), tmp_path / "out"

    def refused(name: str, change: Callable[[Path], object]) -> str:
        shutil.copytree(made.policy, tmp_path / name)
        change(tmp_path / name)
        return exported(tmp_path / name, out, "vllm", code=2)

    def card(**entries: str) -> Callable[[Path], object]:
        def change(folder: Path) -> None:
            path = folder / "role.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | entries))

        return change

    def cut(folder: Path) -> None:
        weights = load_file(folder / "adapter_model.safetensors")
        weights.pop(sorted(weights)[-1])
        save_file(weights, folder / "adapter_model.safetensors")

    assert "a: made on another base: " in refused("a", card(base_fingerprint="0" * 16))
    assert "b: made with another tokenizer (" in refused("b", card(tokenizer_fingerprint="0" * 16))
    assert "1 tensors missing and 0 unexpected" in refused("c", cut)
    assert "chat_template.jinja cannot be read" in refused(
        "d", lambda folder: (folder / "chat_template.jinja").unlink()
    )


def test_heads_full_models_and_large_ranks_are_refused(
    make: Make, tmp_path: Path, exported: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make()
    err = exported(made.reward, tmp_path / "out", "vllm", code=2)
    assert "vLLM does not take a trained head, which a reward role has beside its adapter" in err
    base = load_base(str(save_tiny(tmp_path / "base", "llama")), dtype="float32", device="cpu")
    base.add_role("policy")
    base.train_base("policy")
    save_base(base, tmp_path / "full")
    err = exported(tmp_path / "full", tmp_path / "out", "vllm", code=2)
    assert "is a full model and has no adapter; vLLM serves its folder as it is" in err
    monkeypatch.setattr(vllm, "RANKS", (1, 2))
    assert "its rank is 4, and vLLM takes at most 2" in exported(made.policy, tmp_path / "out", "vllm", code=2)
    err = exported(made.reward, tmp_path / "out", "gguf", code=2)
    assert "GGUF is for models that write text, and this is a reward" in err


@pytest.mark.parametrize(("rank", "limit"), [(1, 8), (8, 8), (9, 16), (33, 64), (257, 320), (512, 512)])
def test_the_rank_limit_is_the_next_that_vllm_has(
    rank: int, limit: int, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr(vllm, "check_adapter", lambda source, engine: None)
    monkeypatch.setattr(vllm, "rank_of", lambda source: rank)
    monkeypatch.setattr(vllm, "serve_command", lambda source, output, *, rank, dtype: found.append(rank) or "")
    vllm.run(find_source(str(make().policy), model=None), tmp_path / "out")
    assert found == [limit]


def test_a_role_trained_in_another_format_than_the_servers_says_so(
    make: Make, tmp_path: Path, exported: Callable[..., str]
) -> None:
    out = exported(make("llama", "bfloat16", "nf4").policy, tmp_path / "nf4", "vllm")
    assert "trained on the base in 4 bits (NF4" in out and "--quantization bitsandbytes" in out
    out = exported(make().policy, tmp_path / "fp32", "vllm")
    assert "--dtype bfloat16" in out and "trained on the base in float32; the command runs it in bfloat16" in out


# --------------------------------------------------------------------------------------------------- tgi


def test_a_folder_for_tgi_has_the_containers_environment(
    make: Make, tmp_path: Path, exported: Callable[..., str]
) -> None:
    made, out = make("llama", "bfloat16", "nf4"), tmp_path / "out"
    words = shlex.split(exported(made.policy, out, "tgi").splitlines()[0])
    assert words[:2] == ["docker", "run"] and words[-1].startswith("ghcr.io/huggingface/text-generation-inference:")
    assert f"{out}:/role:ro" in words and f"{made.base}:/base:ro" in words and str(out / "tgi.env") in words
    settings = dict(line.split("=", 1) for line in (out / "tgi.env").read_text().splitlines())
    assert settings == {
        "HF_MODEL_ID": "/base",
        "MODEL_ID": "/base",
        "LORA_ADAPTERS": "policy=/role",
        "QUANTIZE": "bitsandbytes-nf4",
        "MAX_INPUT_TOKENS": "64",
        "MAX_TOTAL_TOKENS": "128",
        "TOKENIZER_CONFIG_PATH": "/role/tokenizer_config.json",
    }
    template = json.loads((out / "tokenizer_config.json").read_text())["chat_template"]
    assert template == (made.policy / "chat_template.jinja").read_text()


# --------------------------------------------------------------------------------------- gguf and ollama


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter for Qwen 3 on PATH, under llama.cpp's name."""
    pytest.importorskip("gguf")
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "convert_hf_to_gguf.py"
    script.write_text(Path(__file__).with_name("qwen3_to_gguf.py").read_text())
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(gguf, "COMMANDS", ("convert_hf_to_gguf.py",))


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_gguf_file_is_read_back_and_says_what_the_role_says(
    stored: str, converter: None, make: Make, tmp_path: Path, exported: Callable[..., str]
) -> None:
    made, out = make("qwen3", stored), tmp_path / "out"
    said = exported(made.policy, out, "gguf")
    assert said.splitlines()[0] == f"llama-cli -m {out / 'policy.gguf'} -cnv"
    assert "the GGUF file, read back: log-probs differ by" in said
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "policy.gguf"]
    base = load_base(str(made.base), dtype=stored, device="cpu")
    load_role(base, "policy", made.policy, kinds=("policy",))
    config = AutoConfig.from_pretrained(made.base)  # transformers takes the size of heads from no Qwen 3 file
    plain: Any = AutoModelForCausalLM.from_pretrained(out, gguf_file="policy.gguf", config=config, dtype=torch.float32)
    with torch.no_grad():
        expected = token_logprobs(base, build_tree_batch(examples()), role="policy")
    torch.testing.assert_close(logprobs_of(plain), expected, rtol=0, atol=1e-4 if stored == "float32" else 0.3)


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        ("weights", 5, "the GGUF file read back is another model: log-probs differ by"),
        ("tokens", 5, "the GGUF file's token 40 is "),
        ("fail", 2, "llama.cpp's converter cannot convert this model: NotImplementedError: BPE pre-tokenizer was not"),
    ],
)
def test_a_spoilt_gguf_file_is_refused_and_nothing_is_left(
    spoil: str,
    code: int,
    says: str,
    converter: None,
    make: Make,
    tmp_path: Path,
    exported: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPOIL", spoil)
    assert says in exported(make("qwen3").policy, tmp_path / "out", "gguf", code=code)


def test_without_the_converter_or_the_reader_the_missing_package_is_named(
    make: Make, tmp_path: Path, exported: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    err = exported(make().policy, tmp_path / "out", "gguf", code=6)
    assert "llama.cpp's converter is not installed: no convert-hf-to-gguf or convert_hf_to_gguf.py on PATH" in err
    assert "is not installed" in exported(make("qwen3").policy, tmp_path / "out", "ollama", code=6)
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    assert 'pip install "onebase[gguf]"' in exported(make().policy, tmp_path / "out", "gguf", code=6)


@pytest.mark.slow
def test_llama_cpps_own_converter_makes_a_file_that_says_the_same(
    shared: Path, tmp_path: Path, exported: Callable[..., str]
) -> None:
    try:
        gguf.find_converter()
    except Exception as error:
        pytest.skip(str(error))
    role = role_on(shared / "models" / "stories260K" / "hf", tmp_path / "policy")
    said = exported(role, tmp_path / "out", "gguf")
    assert "the GGUF file, read back: " in said and "8 of 8 greedy answers are the same" in said.splitlines()[-1]


def test_ollama_gets_a_modelfile_with_template_and_end_tokens_beside_the_model(
    make: Make, tmp_path: Path, exported: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "COMMANDS", ())  # no converter: the safetensors that Ollama imports itself
    made, out = make(), tmp_path / "out"
    said = exported(made.policy, out, "ollama")
    assert said.splitlines()[0] == f"ollama create policy -f {out / 'Modelfile'}"
    text = (out / "Modelfile").read_text()
    assert text.startswith('FROM .\nTEMPLATE """') and (out / "model.safetensors").is_file()
    assert text.endswith('PARAMETER stop "</s>"\nPARAMETER num_ctx 128\n')
    user = '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
    assert user in text and '{{ end }}{{ end }}<|im_start|>assistant\n"""' in text


def test_ollama_gets_gguf_where_a_converter_is(
    converter: None, make: Make, tmp_path: Path, exported: Callable[..., str]
) -> None:
    exported(make("qwen3").policy, tmp_path / "out", "ollama")
    assert (tmp_path / "out" / "Modelfile").read_text().startswith("FROM ./policy.gguf\n")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.tags[-1] == "ollama"
