"""Losses and gradients of TRL 1.16's own trainers on a tiny model and six rows; writes `golden.json` beside this file.

TRL is no dependency of onebase, and this file imports nothing of it. From the root of the repository:

    python -m venv trl-env
    trl-env/bin/pip install torch==2.13.0 trl==1.16.0 peft
    trl-env/bin/python -m bench.parity.trl_losses

`tests/recipes/test_trl_parity.py` reads the file and computes the same through onebase. Every trainer is built as a
user would build it, from texts and a LoRA configuration, prepares its own data, and is asked for `compute_loss` on
batches of its own collator: all rows at once, and every row alone. That the tokens that count are the completions of
`model.py` and no others is checked for every trainer.

Where TRL and onebase differ, and what the test does about it:

- `label_smoothing` does nothing to `sigmoid` of DPOTrainer; in onebase that is cDPO. TRL has cDPO as `aot` on one row
  (it sorts the rows of a batch, and one is in order), compared row by row, and as CPO's `sigmoid` with a reference that
  is uniform.
- The NLL mixed into a loss (`sft` of DPOTrainer, `cpo_alpha`, ORPO) is a mean over all tokens of the batch in TRL, and
  the mean over completions of their means over tokens in onebase. Alike on a batch of one row, compared there; TRL's on
  all rows is put together again from the log-probs of onebase.
- ORPO's NLL counts the tokens of the prompt too, but the first. The test runs the prompt as part of a completion.
- `simpo` of CPOTrainer adds the NLL unless `cpo_alpha` is 0, and is smoothed by `label_smoothing`; in onebase neither.
- KTO's KL puts completion i - 1 behind prompt i in TRL, i + 1 in onebase: the test gives onebase the rows in reverse,
  which makes the pairs the same. TRL estimates it per device batch, onebase per optimizer step.
- All means are over a device batch in TRL, and the loss of a step is their mean over the accumulation steps; in onebase
  they are over the whole optimizer step. Seen only where microbatches hold different numbers of rows or tokens.
- TRL ends every completion with the end token, and CPO and ORPO begin every prompt with the token that begins texts,
  where there is one. The rows here leave it nothing to add.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import peft
import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from bench.parity.model import LORA, formula_weights, rows, tiny_llama, tokenizer, unpaired_rows

TRAINERS = {
    "dpo": (trl.DPOTrainer, trl.DPOConfig),
    "cpo": (CPOTrainer, CPOConfig),
    "orpo": (ORPOTrainer, ORPOConfig),
    "kto": (trl.KTOTrainer, trl.KTOConfig),
}

PAIRED: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid": ("dpo", {"loss_type": ["sigmoid"], "beta": 0.3}),
    "sigmoid_smoothed": ("dpo", {"loss_type": ["aot"], "beta": 0.3, "label_smoothing": 0.1}),
    "sigmoid_norm": ("dpo", {"loss_type": ["sigmoid_norm"], "beta": 2.0}),
    "sigmoid_sft": ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1], "beta": 0.3}),
    "robust": ("dpo", {"loss_type": ["robust"], "beta": 0.3, "label_smoothing": 0.1}),
    "hinge": ("dpo", {"loss_type": ["hinge"], "beta": 0.3}),
    "ipo": ("dpo", {"loss_type": ["ipo"], "beta": 0.3}),
    "cpo": ("cpo", {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 1.0}),
    "cpo_smoothed": ("cpo", {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 0.0, "label_smoothing": 0.1}),
    "simpo": ("cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
    "orpo": ("orpo", {"beta": 0.2}),
}
"""The trainer and its arguments."""

UNPAIRED: dict[str, tuple[list[int], dict[str, Any]]] = {
    "kto": ([0, 3, 2, 5, 4, 1], {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.5}),
    "kto_no_kl": ([0, 1, 2, 3, 4, 5], {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.5}),
}
"""The rows in their order, and the arguments of KTOTrainer. The second's KL estimate is below 0, and counts as 0."""

GRADIENTS = ("layers.0.self_attn.q_proj.lora_A", "layers.1.mlp.down_proj.lora_B")
"""Parameters whose gradient under `sigmoid` is kept entry by entry."""

MEASURED = (
    "logps/chosen",
    "logps/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "nll_loss",
    "log_odds_ratio",
    "log_odds_chosen",
    "kl",
)
"""Metrics of TRL that are kept, where a trainer has them."""


def make_trainer(kind: str, data: Sequence[dict[str, Any]], arguments: dict[str, Any], folder: str) -> Any:
    """A trainer on rows of ids, whose policy is the adapter of `model.py`."""
    trainer_class, config_class = TRAINERS[kind]
    config = config_class(
        output_dir=folder,
        per_device_train_batch_size=len(data),
        max_length=64,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        **arguments,
    )
    trainer = trainer_class(
        tiny_llama(),
        args=config,
        train_dataset=Dataset.from_list([as_text(row) for row in data]),
        processing_class=tokenizer(),
        peft_config=peft.LoraConfig(**LORA),
    )
    # PEFT starts an adapter at zero, where policy and reference are one. This is the state after some training.
    weights = formula_weights(get_peft_model_state_dict(trainer.model), size=0.2)
    set_peft_model_state_dict(trainer.model, weights)
    trainer.model.train()
    check_tokens(trainer.data_collator(list(trainer.train_dataset)), data)
    return trainer


def as_text(row: dict[str, Any]) -> dict[str, Any]:
    """A row of ids in words."""
    words = tokenizer().convert_ids_to_tokens
    return {
        key: value if key == "label" else " ".join(words(value)) + " " * (key == "prompt") for key, value in row.items()
    }


def check_tokens(batch: dict[str, Any], data: Sequence[dict[str, Any]]) -> None:
    """Stops unless a batch of TRL holds the rows' prompts and counts the rows' completions, token by token."""
    if "chosen_labels" in batch:  # CPO and ORPO lay chosen and rejected apart
        sides = ("chosen", "rejected")
        ids = [row for side in sides for row in batch[f"{side}_input_ids"]]
        attended = [row for side in sides for row in batch[f"{side}_attention_mask"]]
        counted = [labels != -100 for side in sides for labels in batch[f"{side}_labels"]]
    else:
        ids, attended, counted = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    expected = [(row["prompt"], row[key]) for key in ("chosen", "rejected", "completion") for row in data if key in row]
    for row, seen, mask, (prompt, completion) in zip(ids, attended, counted, expected, strict=True):
        kept, rest = row[seen.bool()].tolist(), len(row) - len(prompt) - len(completion)
        if kept != prompt + completion or mask.int().tolist() != [0] * len(prompt) + [1] * len(completion) + [0] * rest:
            raise SystemExit(f"TRL changed a row: {kept}, expected {prompt} + {completion}")


def measure(trainer: Any, batch: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The loss on a batch, the norm of its gradient, and TRL's metrics; leaves the gradient on the model."""
    metrics = getattr(trainer, "_metrics", None) or trainer._stored_metrics
    metrics["train"].clear()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(trainer.data_collator(list(batch))))
    loss.backward()
    norms = [parameter.grad.norm() for parameter in trainer.model.parameters() if parameter.grad is not None]
    kept = {name: float(metrics["train"][name][-1]) for name in MEASURED if name in metrics["train"]}
    return {"loss": loss.item(), "grad_norm": torch.stack(norms).norm().item(), **kept}


def gradients(trainer: Any) -> dict[str, list[list[float]]]:
    """What `measure` left on the parameters of `GRADIENTS`."""
    found = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    return {part: next(g for name, g in found.items() if part in name).tolist() for part in GRADIENTS}


def main() -> None:
    """Measures every loss and writes `golden.json`."""
    disable_progress_bars()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    golden: dict[str, Any] = {
        "versions": {m.__name__: m.__version__ for m in (trl, torch, transformers, peft)},
        "paired": {},
        "unpaired": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (kind, arguments) in PAIRED.items():
            trainer = make_trainer(kind, rows(), arguments, folder)
            each = [measure(trainer, [row]) for row in trainer.train_dataset]
            golden["paired"][name] = {
                "trainer": type(trainer).__name__,
                "arguments": arguments,
                "all_rows": measure(trainer, trainer.train_dataset),
                "each_row": each,
            }
            if name == "sigmoid":
                golden["paired"][name]["gradients"] = gradients(trainer)
                batch = trainer.data_collator(list(trainer.train_dataset))
                chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
                golden["reference_logps"] = {"chosen": chosen.tolist(), "rejected": rejected.tolist()}
        for name, (order, arguments) in UNPAIRED.items():
            trainer = make_trainer("kto", [unpaired_rows()[i] for i in order], arguments, folder)
            golden["unpaired"][name] = {
                "trainer": type(trainer).__name__,
                "arguments": arguments,
                "rows": order,
                "all_rows": measure(trainer, trainer.train_dataset),
            }
    for name, entry in (golden["paired"] | golden["unpaired"]).items():
        print(f"{name:<18}{entry['all_rows']['loss']:>12.6f}")
    (Path(__file__).parent / "golden.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
