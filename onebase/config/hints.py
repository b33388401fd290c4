"""Suggestions for an unknown key: our key for another tool's name, or the key with the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

LENGTHS = ("block_length", "data.max_completion_tokens", "data.max_prompt_tokens")
MINIBATCH = ("batch.minibatch", "ppo.minibatch_prompts")
EPOCHS = ("optimizer.num_epochs", "ppo.num_ppo_epochs")
USUAL_NAMES: dict[str, tuple[str, ...] | str] = {
    "lr": ("optimizer.learning_rate",),
    "wd": ("optimizer.weight_decay",),
    "lr_scheduler_type": ("optimizer.schedule",),
    "scheduler": ("optimizer.schedule",),
    "warmup": ("optimizer.warmup_steps",),
    "warmup_ratio": "the warm-up is set in steps, by optimizer.warmup_steps",
    "optim": "the optimizer is AdamW; its keys are optimizer.learning_rate, weight_decay and max_grad_norm",
    "max_norm": ("optimizer.max_grad_norm",),
    "grad_clip": ("optimizer.max_grad_norm",),
    "epochs": EPOCHS,
    "num_epochs": EPOCHS,
    "num_train_epochs": EPOCHS,
    "ppo_epochs": ("ppo.num_ppo_epochs",),
    "steps": ("max_steps",),
    "batch_size": MINIBATCH,
    "train_batch_size": MINIBATCH,
    "global_batch_size": MINIBATCH,
    "per_device_train_batch_size": MINIBATCH,
    "per_device_batch_size": MINIBATCH,
    "mini_batch_size": MINIBATCH,
    "per_device_eval_batch_size": ("batch.microbatch_tokens",),
    "micro_batch_size": ("batch.microbatch_tokens",),
    "gradient_accumulation_steps": "a minibatch is split to fit memory automatically; leave it out (its size "
    "is batch.minibatch, or ppo.minibatch_prompts)",
    "rollout_batch_size": ("ppo.rollout_prompts",),
    "num_generations": ("generation.samples_per_prompt",),
    "n_samples_per_prompt": ("generation.samples_per_prompt",),
    "model": ("model.model_name_or_path",),
    "model_name": ("model.model_name_or_path",),
    "model_name_or_path": ("model.model_name_or_path",),
    "model_path": ("model.model_name_or_path",),
    "base_model": ("model.model_name_or_path",),
    "pretrain": ("model.model_name_or_path",),
    "adapter_name_or_path": ("start_from",),
    "policy": ("start_from",),
    "ref_model": ("reference_role",),
    "reward": ("ranking",),
    "reward_model": ("reward.role", "reward.model"),
    "reward_fn": ("reward.callable",),
    "reward_funcs": ("reward.callable",),
    "template": ("model.chat_template",),
    "bf16": "set model.dtype: bfloat16",
    "fp16": "set model.dtype: bfloat16; training in float16 is not supported",
    "torch_dtype": ("model.dtype",),
    "precision": ("model.dtype",),
    "load_in_4bit": "set model.quantization: nf4",
    "load_in_8bit": "8 bits are not supported; model.quantization: nf4 keeps the base in 4",
    "quantization_bit": "set model.quantization: nf4",
    "data": ("data.train",),
    "dataset": ("data.train",),
    "dataset_name": ("data.train",),
    "dataset_path": ("data.train",),
    "datasets": ("data.train",),
    "train_file": ("data.train",),
    "train_data": ("data.train",),
    "data_path": ("data.train",),
    "prompt_data": ("data.train",),
    "eval_dataset": ("data.eval",),
    "eval_data": ("data.eval",),
    "validation_file": ("data.eval",),
    "val_size": ("data.eval_fraction",),
    "max_samples": ("data.limit",),
    "max_length": LENGTHS,
    "max_seq_length": LENGTHS,
    "max_seq_len": LENGTHS,
    "max_len": LENGTHS,
    "cutoff_len": LENGTHS,
    "block_size": LENGTHS,
    "max_prompt_length": ("data.max_prompt_tokens",),
    "prompt_max_len": ("data.max_prompt_tokens",),
    "max_completion_length": ("generation.max_new_tokens", "data.max_completion_tokens"),
    "generate_max_len": ("generation.max_new_tokens",),
    "response_length": ("generation.max_new_tokens",),
    "max_new_tokens": ("generation.max_new_tokens",),
    "max_tokens": ("generation.max_new_tokens",),
    "temperature": ("generation.temperature",),
    "top_p": ("generation.top_p",),
    "packing": "rows are not packed; rows of similar length are batched together, without padding on a CPU",
    "lora_r": ("lora.r",),
    "lora_rank": ("lora.r",),
    "rank": ("lora.r",),
    "lora_alpha": ("lora.alpha",),
    "lora_dropout": ("lora.dropout",),
    "lora_target": ("lora.target_modules",),
    "lora_target_modules": ("lora.target_modules",),
    "use_peft": "an adapter is the default; lora.r: 0 trains the whole base",
    "finetuning_type": "an adapter is the default; lora.r: 0 trains the whole base",
    "beta": ("preference.beta", "ppo.kl_coefficient"),
    "pref_beta": ("preference.beta",),
    "loss_type": ("loss",),
    "pref_loss": ("loss",),
    "init_kl_coef": ("ppo.kl_coefficient",),
    "kl_coef": ("ppo.kl_coefficient",),
    "cliprange": ("ppo.clip_low",),
    "eps_clip": ("ppo.clip_low",),
    "vf_coef": ("ppo.value_coefficient",),
    "lambd": ("ppo.lam",),
    "gae_lambda": ("ppo.lam",),
    "output": ("output_dir",),
    "out": ("output_dir",),
    "output_path": ("output_dir",),
    "save_path": ("output_dir",),
    "save_dir": ("output_dir",),
    "run_name": ("output_dir",),
    "save_steps": ("checkpoint.every_steps",),
    "save_total_limit": ("checkpoint.save_total_limit",),
    "eval_steps": ("evaluation.every_steps",),
    "logging_steps": "every step is logged, to metrics.jsonl in output_dir",
    "logging_dir": "metrics go to output_dir; see report_to for trackers",
    "wandb": "set report_to: wandb",
    "resume_from_checkpoint": "run the same command again: it resumes from the newest checkpoint in output_dir",
    "overwrite_output_dir": "a run is never overwritten; choose another output_dir, or remove that folder first",
    "data_seed": ("seed",),
    "learning_rate": ("optimizer.learning_rate",),
    "weight_decay": ("optimizer.weight_decay",),
    "gradient_checkpointing": ("model.gradient_checkpointing",),
    "streaming": ("data.streaming",),
    "max_train_samples": ("data.limit",),
    "interleave_probs": "give every file of data.train a weight: {path: .., weight: ..}",
    "mix_strategy": "files of data.train are mixed by their sizes, or by weights: {path: .., weight: ..}",
    **dict.fromkeys(
        ("trust_remote_code", "allow_remote_code"),
        "code in a model's folder is never run; the architecture has to be one of transformers'",
    ),
    **dict.fromkeys(
        (
            "deepspeed",
            "fsdp",
            "fsdp_config",
            "fsdp_version",
            "parallelism_config",
            "tensor_parallel_size",
            "dp_shard_size",
        ),
        "a base that does not fit one device is spread over those of all processes with model.shard: true",
    ),
    **dict.fromkeys(
        ("ddp_timeout", "ddp_backend", "ddp_find_unused_parameters", "local_rank"),
        "processes are started by --processes N, or by torchrun, whose options these are",
    ),
    **dict.fromkeys(
        ("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "preprocessing_num_workers"),
        "rows are read and tokenized in threads of their own, beside training",
    ),
    **dict.fromkeys(
        ("dataset_num_proc", "dataset_processes", "dataset_prepared_path", "overwrite_cache", "tokenized_path"),
        "tokenized rows are kept by their fingerprint, and made anew when anything in it changes",
    ),
    **dict.fromkeys(
        (
            "flash_attention",
            "flash_attn",
            "attn_implementation",
            "xformers_attention",
            "sdp_attention",
            "use_flash_attention_2",
        ),
        "the kernel is chosen for the device when the base is loaded",
    ),
    **dict.fromkeys(
        ("use_liger_kernel", "liger_kernel", "liger_rms_norm", "enable_liger_kernel", "use_unsloth", "torch_compile"),
        "layers have their own kernels here, and no others can be chosen",
    ),
    **dict.fromkeys(("plot_loss", "include_num_input_tokens_seen"), "every finished run has its curves in report.html"),
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict", "predict_with_generate"), "the verb of the command line says what is done"
    ),
    **dict.fromkeys(
        ("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "optimizer"),
        "the optimizer is AdamW with PyTorch's betas and epsilon",
    ),
    **dict.fromkeys(
        ("lr_scheduler_kwargs", "cosine_min_lr_ratio"), "schedules have no options of their own; they end at 0"
    ),
    **dict.fromkeys(
        ("tf32", "bf16_full_eval", "fp16_full_eval", "pure_bf16"), "the base's number format is model.dtype"
    ),
    **dict.fromkeys(
        ("gradient_checkpointing_kwargs", "gradient_checkpointing_use_reentrant"),
        "layers are recomputed without reentry",
    ),
    **dict.fromkeys(
        (
            "sample_packing",
            "eval_sample_packing",
            "neat_packing",
            "eval_packing",
            "pad_to_sequence_len",
            "group_by_length",
        ),
        "rows are not packed; rows of similar length are batched together, without padding on a CPU",
    ),
    **dict.fromkeys(
        ("logging_first_step", "logging_strategy", "disable_tqdm", "log_level"),
        "every step is logged, to metrics.jsonl in output_dir",
    ),
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo"), "nothing is uploaded to a hub"
    ),
    **dict.fromkeys(("use_vllm", "vllm_mode", "vllm_gpu_memory_utilization"), "sampling runs on the base in memory"),
    **dict.fromkeys(
        ("wandb_project", "wandb_entity", "wandb_name", "wandb_watch", "wandb_log_model"),
        "wandb reads its own environment variables (WANDB_PROJECT, ...); report_to: wandb turns it on",
    ),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), "best/ keeps the best roles"
    ),
    **dict.fromkeys(("model_type", "tokenizer_type"), "the model's folder says its classes"),
    **dict.fromkeys(
        ("special_tokens", "tokens", "add_tokens"), "a tokenizer is used as it is; give it its tokens first"
    ),
}
"""Names that TRL, LLaMA-Factory, OpenRLHF and others use, with our keys for the same thing (the first one that the verb
has is suggested), or a sentence if there is no such key."""


NOT_IN_EVERY_VERB = {"streaming": "this verb reads its prompts at once; data.limit bounds how many"}
"""What to say of a key that other verbs have."""


def hint(key: str, keys: Collection[str], groups: Mapping[str, Collection[str]], top: Collection[str]) -> str:
    """What the user may have meant by a key that this verb does not have.

    Args:
        keys: dotted names of the verb's keys.
        groups: its groups, with the names of their members.
        top: the top-level names of its config.
    """
    usual = USUAL_NAMES.get(key.rpartition(".")[2])
    if isinstance(usual, str):
        return usual
    if found := next((name for name in usual or () if (name in keys or name in groups) and name != key), None):
        return f"did you mean '{found}'?"
    if sentence := NOT_IN_EVERY_VERB.get(key.rpartition(".")[2]):
        return sentence
    names = [*keys, *groups]

    def closeness(name: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, key, name).ratio()
        last = difflib.SequenceMatcher(None, key.rpartition(".")[2], name.rpartition(".")[2]).ratio()
        return max(last, (whole + last) / 2), whole

    nearest = max(names, key=closeness)
    if closeness(nearest)[0] >= 0.6:
        return f"did you mean '{nearest}'?"
    group = key.rpartition(".")[0]
    members = groups[group] if group in groups else top
    return f"the keys of {group if group in groups else 'the config'} are {', '.join(members)}"
