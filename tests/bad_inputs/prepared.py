"""What cases start from, made by real short runs: bases, other models, roles, and runs with their records."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.bad_inputs.ending import command, forked

MODEL = "--model.model_name_or_path fix/base --model.dtype float32 --model.chat_template plain --output_dir out"
STEPS = "--max_steps 2 --batch.minibatch 4 --batch.microbatch_tokens 2048"
SAMPLES = "--generation.max_new_tokens 8 --generation.samples_per_prompt 2 --batch.microbatch_tokens 2048"
ROLLOUTS = f"--max_steps 2 {SAMPLES} --ppo.rollout_prompts 4 --ppo.minibatch_prompts 2 --evaluation.prompts 2"
CALLABLE = "--reward.callable rew:score"
DATA = "--data.train d.jsonl"

SFT = f"sft {MODEL} {STEPS} {DATA}"
REWARD = f"reward {MODEL} {STEPS} {DATA}"
DPO = f"dpo {MODEL} {STEPS} {DATA}"
PPO = f"ppo {MODEL} {ROLLOUTS} {DATA} {CALLABLE}"
BEST_OF = f"best-of {MODEL} {SAMPLES} {DATA} {CALLABLE}"
RFT = (
    f"rft {MODEL} --max_steps 2 {SAMPLES} --rft.rollout_prompts 4 --rft.minibatch_prompts 4 --evaluation.prompts 2 "
    f"{DATA} {CALLABLE}"
)
ITERATE = f"iterate {MODEL} {SAMPLES} --rounds 1 --prompts_per_round 4 --batch.minibatch 4 {DATA} {CALLABLE}"
PRETRAIN = (
    "pretrain --output_dir out --max_steps 2 --batch.minibatch 4 --batch.microbatch_tokens 2048 --data.train d.txt "
    "--tiny.hidden_size 16 --tiny.num_layers 1 --tiny.num_heads 2 --tiny.vocab_size 300 --tiny.max_length 32"
)
COMMANDS = {"sft": SFT, "reward": REWARD, "dpo": DPO, "ppo": PPO, "rft": RFT, "best-of": BEST_OF, "iterate": ITERATE,
            "pretrain": PRETRAIN}  # fmt: skip
"""A command of every training verb that works, with `rows_for` beside it."""

ANIMALS = ("cat", "dog", "bird", "fish", "horse", "mouse", "goat", "duck", "frog", "hen", "cow", "fox")
SENTENCES = [f"The {animal} is {word}. I like the {animal}." for animal in ANIMALS for word in ("good", "bad", "big")]
WORDS = ("red", "green", "black", "white", "brown", "pink", "orange", "purple", "silver", "golden", "grey", "blue")
TEXT = "\n\n".join(SENTENCES) + "\n"


def answered(count: int = 24) -> list[dict[str, object]]:
    return [{"prompt": f"Is the {ANIMALS[i % 12]} number {i}?", "completion": f"The {ANIMALS[i % 12]} is good."}
            for i in range(count)]  # fmt: skip


def pairs(count: int = 24) -> list[dict[str, object]]:
    return [{"prompt": f"Is the {ANIMALS[i % 12]} number {i}?", "chosen": f"The {ANIMALS[i % 12]} is good.",
             "rejected": f"The {ANIMALS[(i + 1) % 12]} is bad."} for i in range(count)]  # fmt: skip


def questions(count: int = 24) -> list[dict[str, object]]:
    return [{"prompt": f"Is the {ANIMALS[i % 12]} number {i}?"} for i in range(count)]


def files_for(verb: str) -> dict[str, object]:
    """The data file that a verb's command in `COMMANDS` reads."""
    rows = {"sft": answered, "reward": pairs, "dpo": pairs, "pretrain": lambda: TEXT}.get(verb, questions)
    return {"d.txt" if verb == "pretrain" else "d.jsonl": rows()}


def prepare(folder: Path) -> None:
    """Fills a folder with everything the cases start from."""
    shutil.rmtree(folder, ignore_errors=True)  # a role remembers where its base is: it is made where it stays
    folder.mkdir(parents=True)
    (folder / "fix").symlink_to(".")
    _in_a_process(lambda: _make_models(folder), folder)
    for name, verb, more in (
        ("run_sft", "sft", ""),
        ("run_rm", "reward", "--start_from fix/run_sft/policy"),
        ("run_dpo", "dpo", "--start_from fix/run_sft/policy"),
        ("run_ppo", "ppo", ""),
        ("run_pre", "pretrain", ""),
        ("run_best", "best-of", ""),
        ("run_steps", "sft", "--max_steps 4 --checkpoint.every_steps 1"),
        ("run_rolls", "ppo", "--max_steps 4 --checkpoint.every_steps 1"),
    ):
        _run(folder, name, verb, more)
    for name in ("run_steps", "run_rolls"):  # unfinished: to be gone on with
        (folder / name / "summary.json").unlink()
    (folder / "fix").unlink()
    (folder / "done").touch()


def _run(folder: Path, name: str, verb: str, more: str) -> None:
    from tests.bad_inputs.case import GOOD_REWARD, lay_out

    for file, content in {**files_for(verb), "rew.py": GOOD_REWARD}.items():
        lay_out(folder / file, content, folder)
    words = COMMANDS[verb].split()
    extra = more.split()
    for key, value in zip(extra[::2], extra[1::2], strict=True):
        if key in words:
            words[words.index(key) + 1] = value
        else:
            words += [key, value]
    words[words.index("--output_dir") + 1] = name
    ended = forked(lambda: command(words), folder, limit=120)
    assert ended.code == 0, ended.err


def _in_a_process(call: Callable[[], None], folder: Path) -> None:
    def code() -> int:
        call()
        return 0

    ended = forked(code, folder, limit=300)
    assert ended.code == 0, ended.err


def _make_models(folder: Path) -> None:
    os.chdir(folder)
    import torch
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        BertModel,
        LlamaConfig,
        LlamaForSequenceClassification,
        T5Config,
        T5ForConditionalGeneration,
    )  # fmt: skip

    tokenizer = _make_base(Path("base"), seed=0)
    _make_base(Path("base2"), seed=1)
    more = _make_base(Path("base_more"), seed=0, sentences=SENTENCES + [f"{word}ing the {word}ness" for word in WORDS])
    assert len(more) > len(tokenizer)
    size = len(tokenizer)
    torch.manual_seed(0)
    bert = BertConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                      intermediate_size=64, max_position_embeddings=96)  # fmt: skip
    llama = LlamaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=96, pad_token_id=0)  # fmt: skip
    t5 = T5Config(vocab_size=size, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0)
    made = {
        "m_bert": BertForMaskedLM(bert),
        "m_bertmodel": BertModel(bert),
        "m_seqcls_untied": LlamaForSequenceClassification(_labels(llama, 1)),
        "m_seqcls_tied": LlamaForSequenceClassification(_labels(llama, 1, tie_word_embeddings=True)),
        "m_seqcls3": LlamaForSequenceClassification(_labels(llama, 3)),
        "m_t5": T5ForConditionalGeneration(t5),
    }
    for name, model in made.items():
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)


def _labels(config: object, count: int, **more: object) -> object:
    import copy

    config = copy.deepcopy(config)
    for key, value in {"num_labels": count, **more}.items():
        setattr(config, key, value)
    return config


def _make_base(folder: Path, *, seed: int, sentences: list[str] = SENTENCES):  # type: ignore[no-untyped-def]
    import torch

    from onebase.models.scratch import make_llama, train_tokenizer

    tokenizer = train_tokenizer(sentences, vocab_size=360)
    model = make_llama(tokenizer, hidden_size=32, num_layers=2, num_heads=2, max_length=96, seed=seed)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer
