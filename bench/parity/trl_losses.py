"""Writes `golden.json`: losses and gradients of TRL 1.16's own trainers on a tiny model and six rows.

onebase does not depend on TRL, and this file does not import onebase. From the root of the repository:

    python -m venv trl-env
    trl-env/bin/pip install torch==2.13.0 trl==1.16.0 peft
    trl-env/bin/python -m bench.parity.trl_losses

`tests/recipes/test_trl_parity.py` reads the file and computes the same through onebase. Every trainer is built as a
user would build it, from texts and a LoRA configuration, prepares its own data, and computes `compute_loss` on batches
from its own collator: all rows at once, and each row alone. A check for every trainer makes sure that exactly the
completions of `model.py` are counted.

Differences between TRL and onebase, and how the test treats them:

- `label_smoothing` does not affect DPOTrainer's `sigmoid`; in onebase it gives cDPO. TRL has cDPO as `aot` on one row
  (`aot` sorts a batch, and one row is always in order), compared row by row, and as CPO's `sigmoid` with a uniform
  reference.
- The NLL mixed into a loss (DPOTrainer's `sft`, `cpo_alpha`, ORPO) is a mean over all tokens of the batch in TRL; in
  onebase it is the mean over completions of their token means. The two agree on one row and are compared there; TRL's
  value on all rows is rebuilt from onebase's log-probs.
- ORPO's NLL also counts the prompt's tokens except the first. The test runs the prompt as part of a completion.
- CPOTrainer's `simpo` adds the NLL unless `cpo_alpha` is 0, and applies `label_smoothing`; onebase does neither.
- KTO's KL pairs prompt i with completion i - 1 in TRL and i + 1 in onebase. The test gives onebase the rows in reverse,
  which makes the pairs equal. TRL estimates the KL per device batch, onebase per optimizer step.
- TRL takes means over a device batch and averages these over the accumulation steps; onebase takes them over the whole
  optimizer step. This shows only if microbatches hold different numbers of rows or tokens.
- TRL ends every completion with the end token, and CPO and ORPO start every prompt with the beginning token, if there
  is one. The rows here leave nothing to add.
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
