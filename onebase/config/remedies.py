"""Remedies: what to do about an error, in the command line's keys and flags.

Code below the recipes raises errors that state facts and name one of these remedies; braces take the error's values.
"""

from __future__ import annotations

from onebase.errors import OnebaseError

REMEDIES = {
    # Files and rows.
    "file-named-twice": "name it once (for more visits raise optimizer.num_epochs)",
    "unusable-rows": "correct these rows, or allow a larger share (data.max_dropped_share)",
    "not-streamed": "set data.streaming: false",
    "no-text": "set model.chat_template, or use `onebase sft`",
    "no-cache": "set ONEBASE_CACHE to a folder that can be written, or data.streaming: false",
    "no-rows-left": "look at data.train, data.limit and data.eval_fraction",
    "nothing-to-hold-out": "give more data, or data.eval",
    "evaluated-on-training-data": "leave data.eval out; a share of data.train is then held out",
    "unknown-layout": "map its keys with data.columns (or --columns), for a start {mapping}, or rename them",
    "beside-the-prompt": "data.columns can join keys, such as prompt: {template}",
    "two-readings": "choose with data.columns, such as {mapping}",
    "turn-weights": "choose the turns that count with data.train_on",
    # Lengths.
    "prompt-too-long": (
        "set data.truncate_prompt to left (leaves out the oldest turns) or drop (leaves out the row), or shorten it"
    ),
    "prompts-dropped": "set data.truncate_prompt: left, or allow a larger share (data.max_dropped_share)",
    "prompts-do-not-fit": (
        "raise data.max_prompt_tokens, shorten what stands beside the last turn (system text, tools), or allow more "
        "(data.max_dropped_share)"
    ),
    "answers-cut-to-equal": (
        "raise data.max_completion_tokens, lower data.max_prompt_tokens, or allow a larger share "
        "(data.max_dropped_share)"
    ),
    "no-end-learned": (
        "raise data.max_completion_tokens, lower data.max_prompt_tokens, take a model with a longer context, or give "
        "answers that end"
    ),
    "no-room-for-prompts": "lower generation.max_new_tokens",
    "engine-unanswered": (
        "see that the server runs (its own log says why not), or raise generation.timeout; the same command resumes"
    ),
    "engine-refused": (
        "start it with --enable-lora, a --max-lora-rank of at least lora.r, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True "
        "in its environment, where output_dir is under the same path; and look at generation.url and generation.url_key"
    ),
    "engine-start": "correct generation.start; the command's own words are in {log}",
    "not-delivered": (
        "see that {where} serves the base of this run in the same number format, with --enable-lora and "
        "--logprobs-mode processed_logprobs, and that nothing else loads adapters there"
    ),
    "context-exceeded": "lower generation.max_new_tokens or data.max_prompt_tokens",
    "stop-of-several-tokens": "choose another string for generation.stop, or leave it out",
    # Chat templates.
    "template": "correct it, or set model.chat_template to another",
    "template-power": "take it out, or set model.chat_template to another",
    "template-refuses-row": "correct the row, or set model.chat_template to another",
    "template-without-tools": (
        "set model.chat_template to one that writes tools (qwen, llama-3, or the tokenizer's own), or drop these rows"
    ),
    "answers-begin-apart": "put them into rows of their own, or set model.chat_template to another",
    "template-loses-turn": "write it into a turn that is kept, or set model.chat_template to another",
    "template-loses-answer": "set model.chat_template to another",
    "template-rewrites-turns": "train on the completion, or set model.chat_template to another",
    "template-not-text": "correct chat_template in tokenizer_config.json, or set model.chat_template",
    "template-unread": "correct model.chat_template",
    "no-template": "set model.chat_template to one of {names}, or to the path of a .jinja file",
    "no-default-template": "save one as a .jinja file and set model.chat_template to its path",
    # The base, its adapters and roles.
    "no-device": "set model.device (or --device) to auto or cpu",
    "no-target-modules": "set lora.target_modules to all-linear, or to some of {names}",
    "unknown-target-module": "correct lora.target_modules",
    "unknown-layers": "correct lora.layers",
    "train-an-adapter": "train an adapter instead: lora.r >= 1",
    "quantised-in-full": "set model.quantization: none, or lora.r >= 1",
    "stored-quantised": "use the model it was made from, with model.quantization: nf4 if memory is short",
    "classifier-not-base": "to use it as a reward, set reward.model in ppo to it",
    "model-not-role": "set model.model_name_or_path to it, or reward.model if it is a classifier",
    "no-padding-token": "give it a pad_token, or train an adapter: lora.r >= 1",
    "no-tokenizer": "set tiny.tokenizer to a folder with a tokenizer.json",
    # The reward.
    "reward-import-timeout": "look at what its module waits for, or raise reward.timeout",
    "reward-timeout": "look at what it waits for, or raise reward.timeout",
    "reward-unanswered": (
        "see that the server runs (onebase serve) and has time, or raise reward.timeout; the same command resumes"
    ),
    "reward-refused": "correct reward.url_role or reward.url_key, or what the server serves",
    "which-reward-role": "name one by reward.url_role",
    "reward-exchanged": "serve the first weights again and run the same command, or choose another --output_dir",
    "reward-without-tools": "drop these rows, or set reward.role to the role's folder",
    "no-reward-model": "set reward.model to another",
    "no-held-out-scores": "train it to the end with held-out data, or set reward.normalize: none",
    "equal-held-out-scores": "train it further, or set reward.normalize: none",
    # Verifiers.
    "no-gold": "correct these rows, name the right column (reward.gold, or --gold in eval), or take that verifier out",
    "code-not-allowed": "add --allow-code-execution if the model's programs may run here, in a sandbox",
    "no-sandbox": "install bubblewrap, or allow user namespaces and Python's own folder to be read",
    # Memory.
    "new-model-too-large": "lower tiny.hidden_size or tiny.num_layers",
    "example-does-not-fit": (
        "lower data.max_prompt_tokens or data.max_completion_tokens, adapt only upper layers "
        "(lora.layers: upper-half), or set model.gradient_checkpointing: true"
    ),
    "example-out-of-memory": (
        "lower data.max_prompt_tokens or data.max_completion_tokens, or set model.quantization: nf4"
    ),
    "microbatch-out-of-memory": "set batch.microbatch_tokens to less",
    "completions-do-not-fit": (
        "lower generation.samples_per_prompt, generation.max_new_tokens or data.max_prompt_tokens"
    ),
    "unmeasured-machine": "measure it with `onebase plan --calibrate`, or name one like it with --hardware",
    # Training.
    "not-finite": "lower optimizer.learning_rate, or look at the data and the reward for extreme values",
    "never-finite": "no step was taken yet: look at the base's weights, the data and the reward for extreme values",
    "no-tracker": "pip install {name}, or leave it out of report_to",
    # The run's folder.
    "no-folder": "name it in output_dir",
    "zero-in-folder": "take it out of output_dir",
    "another-folder": "choose another --output_dir",
    "another-or-empty-folder": "choose another --output_dir, or remove that folder first",
    "another-configuration": "resume with {kept}, choose another --output_dir, or remove that folder first",
    "finished-run": (
        "choose another --output_dir, or remove that folder first. To train it further, raise {lengths} and leave "
        "everything else as it was"
    ),
    "no-more-steps": "raise max_steps, or choose another --output_dir",
    "more-steps-done": "raise max_steps (or optimizer.num_epochs), or choose another --output_dir",
    "no-last-checkpoint": (
        "choose another --output_dir (where the base trains in full, a run keeps its last checkpoint only with "
        "checkpoint.every_steps)"
    ),
    "no-checkpoint-left": "remove them to start from the beginning, or choose another --output_dir",
    "unfit-checkpoint": "remove it to resume from the one before, or choose another --output_dir",
    "inputs-changed": "put it back, or choose another --output_dir",
    "stopped": "run the same command to resume",
    "paused": "run the same command to resume from {checkpoint}",
}


def with_remedy(error: OnebaseError) -> str:
    """The whole line for a person: what happened and, if a remedy is named, what to do."""
    if not error.remedy:
        return str(error)
    return f"{error}; {REMEDIES[error.remedy].format(**error.facts)}"
