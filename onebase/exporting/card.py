"""Model cards: a README.md that says what a role is made of, from its run's record. What is unknown is said to be."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from onebase import __version__
from onebase.config.files import defaults_of
from onebase.config.verbs import VERB_CONFIGS, verb_of
from onebase.errors import DataError
from onebase.exporting.source import Source
from onebase.reading import hub
from onebase.reading.files import content_hash, expand
from onebase.reporting.page import FIGURES
from onebase.runs.finished import RunRecord, interval
from onebase.runs.finished import shown as value_shown
from onebase.shown import shown

NOT_A_SETTING = (
    "output_dir", "data.train", "data.eval", "data.replay", "model.model_name_or_path", "model.device", "start_from",
    "report_to", "checkpoint.", "threads", "lang", "on_finding", "reward.role", "reward.model", "reference_role",
)  # fmt: skip
"""Keys of a run that say where things were, not how it trained."""
TERMS = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*")
"""Files with a base's terms, which go along with it."""
METHODS = {
    "pretrain": "on plain text", "sft": "on answers (supervised fine-tuning)", "reward": "on preferences",
    "dpo": "on preferences directly (the DPO family)", "ppo": "by PPO", "rft": "by reinforcement fine-tuning",
    "iterate": "in rounds", "best-of": "on its best samples",
}  # fmt: skip


def write_card(
    folder: Path, source: Source, *, form: str, dtype: str, notes: Iterable[str] = (), usage: str = ""
) -> None:
    """Writes `README.md` into an exported folder, and copies the base's licence files beside it.

    Args:
        form: `policy` or `reward` for plain models, else what the folder is for: `adapter`, `gguf`, `ollama`.
        usage: how to load it, as Markdown; by default with transformers.
        notes: what was checked, and what differs from the role in training.
    """
    from huggingface_hub import ModelCard, ModelCardData

    licence, found_in = find_licence(source)
    entries: dict[str, Any] = dict(
        base_model=source.hub_base,
        base_model_relation=None if source.hub_base is None else "adapter" if form == "adapter" else "finetune",
        library_name={"policy": "transformers", "reward": "transformers", "adapter": "peft"}.get(form),
        pipeline_tag="text-classification" if source.kind == "reward" else "text-generation",
        tags=_tags(source, form),
        datasets=hub_datasets(source.run) or None,
        **licence,
    )
    data = ModelCardData(**entries)
    sections = [
        f"# {source.name}\n\n{_summary(source, form, dtype)}",
        "## Base\n\n" + _base(source),
        "## Data\n\n" + _data(source.run),
        "## Method\n\n" + _method(source),
        "## Results\n\n" + _results(source),
        "## Checks\n\n"
        + ("\n".join(f"- {shown(note)}" for note in notes if note) or "None: these are the role's own weights."),
        "## Licence\n\n" + found_in,
        "## How to load\n\n" + (usage or _usage(source)),
    ]
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"
    ModelCard(text)  # raises if the front matter cannot be read back
    (folder / "README.md").write_text(text, encoding="utf-8")
    for path in _terms(source):
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def _tags(source: Source, form: str) -> list[str]:
    verb = _verb(source.run)
    kind = str(source.adapter.get("peft_type") or "").lower()
    return [tag for tag in ("onebase", verb, kind, form if form in ("gguf", "ollama") else "") if tag]


def _verb(run: RunRecord | None) -> str:
    if run is None:
        return ""
    return run.verb if run.verb in VERB_CONFIGS else verb_of(run.config)


def _summary(source: Source, form: str, dtype: str) -> str:
    what = "reward model" if source.kind == "reward" else "policy"
    verb = _verb(source.run)
    how = f"trained {METHODS[verb]} " if verb else ""
    if form == "adapter":
        return f"A {what} {how}with onebase {__version__}: an adapter on the base below."
    made = "trained in full" if source.card is None else "base and adapter merged"
    return f"A {what} {how}with onebase {__version__}: {made}, in {dtype}."


def _base(source: Source) -> str:
    if source.hub_base:
        name = f"[{source.hub_base}](https://huggingface.co/{source.hub_base})"
    else:
        own = source.base if source.card else source.trained_from
        name = f"a local folder, `{shown(Path(str(own)).name, 100)}`" if own else "unknown"
    mark = f"`{source.card.base_fingerprint}`" if source.card else "not recorded"
    return f"- model: {name}\n- fingerprint of its weights: {mark}\n- in training: {source.trained_on}"


# --------------------------------------------------------------------------------------------------- data


def named_data(run: RunRecord | None) -> Iterator[tuple[str, str]]:
    """Yields what a run's configuration names as data: the key and the name."""
    data = run.config.get("data") if run else None
    for key in ("train", "eval", "replay"):
        value = data.get(key) if isinstance(data, dict) else None
        for entry in value if isinstance(value, list) else [value]:
            name = entry.get("path") if isinstance(entry, dict) else entry
            if isinstance(name, str) and name.strip():
                yield key, name


def hub_datasets(run: RunRecord | None) -> list[str]:
    """The datasets of a run that have a name on the Hub."""
    names = [name.partition(":")[0] for _, name in named_data(run) if _is_hub(name)]
    return list(dict.fromkeys(names))


def _is_hub(name: str) -> bool:
    return "\0" not in name and hub.is_name(name)


def _data(run: RunRecord | None) -> str:
    lines = [line for key, name in named_data(run) for line in _lines_of(key, name)]
    if not lines:
        return "Unknown: the record of the run that trained this is not beside it."
    return "| data | used to | SHA-256 |\n| --- | --- | --- |\n" + "\n".join(lines)


def _lines_of(key: str, name: str) -> Iterator[str]:
    use = {"train": "train", "eval": "evaluate", "replay": "train (replay)"}[key]
    if _is_hub(name):
        yield f"| [{name}](https://huggingface.co/datasets/{name.partition(':')[0]}) | {use} | on the Hub |"
        return
    try:
        files = expand(name)
        sums = [content_hash(path) for path in files]
    except (DataError, OSError, ValueError):
        yield f"| `{_cell(Path(name).name)}` | {use} | not there any more when this was written |"
        return
    for path, digest in zip(files, sums, strict=True):
        yield f"| `{_cell(path.name)}` | {use} | `{digest}` |"


def _cell(text: object) -> str:
    """Text that fits a table's cell and the code marks around it."""
    return shown(text, 200).replace("|", "\\|").replace("`", "'")


# ------------------------------------------------------------------------------------- method and results


def _method(source: Source) -> str:
    run, verb = source.run, _verb(source.run)
    lines = []
    if run is not None:
        defaults = defaults_of(VERB_CONFIGS[verb])
        changed = {key: value for key, (value, _) in run.changed(defaults).items() if not key.startswith(NOT_A_SETTING)}
        started = run.config.get("start_from")
        lines = [f"- verb: `onebase {verb}`, {run.steps} {run.step_name}s"]
        lines += [f"- started from: an earlier role, `{_cell('/'.join(Path(started).parts[-2:]))}`"] if started else []
        lines += [f"- `{key}`: {_cell(value_shown(value))}" for key, value in changed.items()]
        lines += ["- everything else as by default"]
    config = source.adapter
    if config:
        targets = config.get("target_modules")
        named = ", ".join(map(str, targets)) if isinstance(targets, list) else targets
        lines.append(
            f"- adapter: {_cell(config.get('peft_type'))}, rank {_cell(config.get('r', 'unknown'))}, alpha "
            f"{_cell(config.get('lora_alpha', 'unknown'))}, on {_cell(named)}"
        )
    return "\n".join(lines) or "Unknown: the record of the run that trained this is not beside it."


def _results(source: Source) -> str:
    run = source.run
    if run is None or not run.summary:
        return "Unknown: no finished run is beside this role."
    if Path(source.folder).resolve().parent != run.folder:
        return "Unknown: this role is from a checkpoint, and the run's results are those of its end."
    told = {key: value for key, value in run.summary.items() if key in FIGURES and value is not None}
    spans = {"eval_accuracy": told.pop("eval_accuracy_interval", None)}
    lines = []
    for key, value in told.items():
        if key == "score_rise" and isinstance(value, list):
            text = interval(value, "+")
        elif spans.get(key):
            text = f"{interval([value, *spans[key]])} (95 % interval)"
        else:
            text = value_shown(value)
        lines.append(f"| {FIGURES[key]} | {_cell(text)} |")
    if not lines:
        return "Nothing was held out to measure."
    return "| on held-out data | |\n| --- | --- |\n" + "\n".join(lines)


# ------------------------------------------------------------------------------------------------ licence


def find_licence(source: Source) -> tuple[dict[str, str], str]:
    """The licence that the base's own card names, as front matter, and a sentence that says where it was found."""
    path = _base_file(source, "README.md")
    found: dict[str, str] = {}
    if path is not None:
        from huggingface_hub import ModelCard

        try:
            known = ModelCard.load(path, ignore_metadata_errors=True).data
        except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
            known = None
        for key in ("license", "license_name", "license_link"):
            value = getattr(known, key, None)
            if isinstance(value, str):
                found[key] = value
    copied = ", ".join(f"`{_cell(term.name)}`" for term in _terms(source))
    also = f" Its terms are beside this file: {copied}." if copied else ""
    if "license" in found:
        return found, f"The base's card names `{_cell(found['license'])}`.{also}"
    if copied:
        return {}, f"The base's card names none.{also}"
    return {}, "Unknown: the base came with no licence that could be read here. Look it up before passing this on."


def _base_file(source: Source, name: str) -> Path | None:
    folder = Path(source.base)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.base, name)
    return Path(found) if isinstance(found, str) else None


def _terms(source: Source) -> Sequence[Path]:
    folder = Path(source.base)
    if not folder.is_dir():
        config = _base_file(source, "config.json")
        if config is None:
            return []
        folder = config.parent
    return sorted(path for pattern in TERMS for path in folder.glob(pattern) if path.is_file())


# -------------------------------------------------------------------------------------------------- usage

POLICY_USAGE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)
{ask}
answer = model.generate(**ids, max_new_tokens=128)[0, ids["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```"""
CHAT = """messages = [{"role": "user", "content": "Hello!"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""
TEXT = 'ids = tokenizer("Once upon a time", return_tensors="pt")'
REWARD_USAGE = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER).eval()
# as in training: the templated conversation up to the end of the answer, then one end token
messages = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": answer}]
text = tokenizer.apply_chat_template(messages, tokenize=False)
text = text[: text.rindex(answer) + len(answer)] + tokenizer.eos_token
score = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits
```

Rows of a batch are padded on the right (`padding_side="right"`), with the pad token of this tokenizer."""


def _usage(source: Source) -> str:
    if source.kind == "reward":
        return REWARD_USAGE
    templated = (Path(source.folder) / "chat_template.jinja").is_file()
    return POLICY_USAGE.replace("{ask}", CHAT if templated else TEXT)
