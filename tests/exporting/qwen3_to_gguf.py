"""A small converter with llama.cpp's command line, for Qwen 3: FOLDER --outfile FILE --outtype f32 (or bf16).

It stands where llama.cpp's own is not installed, so that what is done with a file can be tested. With SPOIL=weights it
writes one weight wrongly, with SPOIL=tokens two tokens in each other's place, and with SPOIL=fail nothing.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import gguf
from safetensors.torch import load_file

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def main() -> int:
    folder, file, spoil = Path(sys.argv[1]), sys.argv[3], os.environ.get("SPOIL")
    if spoil == "fail":
        print("INFO: loading", file=sys.stderr)
        print("NotImplementedError: BPE pre-tokenizer was not recognized", file=sys.stderr)
        return 1
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "qwen3")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if spoil == "tokens":
        tokens[40], tokens[41] = tokens[41], tokens[40]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_eos_token_id(config["eos_token_id"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        array = tensor.float().numpy()
        if spoil == "weights" and name.endswith("0.mlp.down_proj.weight"):
            array = array * 1.5
        writer.add_tensor(_name(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return 0


def _name(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole or name == "lm_head.weight":
        return whole.get(name, "output.weight")
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


if __name__ == "__main__":
    sys.exit(main())
