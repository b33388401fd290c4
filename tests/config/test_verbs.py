"""Config models and the reader of files and overrides."""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from onebase.config.files import config_keys, describe_config, dump_config, load_config
from onebase.config.hints import USUAL_NAMES
from onebase.config.language import PretrainConfig, SFTConfig
from onebase.config.preferences import DPOConfig, RewardConfig
from onebase.config.rollouts import IterateConfig, PPOConfig
from onebase.config.verbs import VERB_CONFIGS
from onebase.errors import ConfigError

SFT = ["output_dir=runs/x", "model.model_name_or_path=base", "data.train=a.jsonl"]
PPO = [*SFT, "start_from=runs/sft/policy", "reward.role=runs/reward/reward"]
BEST_OF = [*SFT, "reward.callable=m:f"]
REQUIRED = {
    "pretrain": [SFT[0], SFT[2]],
    "sft": SFT,
    "reward": SFT,
    "dpo": SFT,
    "ppo": PPO,
    "best-of": BEST_OF,
    "iterate": BEST_OF,
    "rft": [*SFT, "reward.verifiers=numeric"],
}


def messages(model_class: type, *words: str, path: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(model_class, path, words)
    return str(caught.value).splitlines()


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("verb", VERB_CONFIGS)
def test_a_dumped_config_reads_back_to_the_same_config(verb: str, tmp_path: Path) -> None:
    small = "generation.temperature=3e-7" if verb == "best-of" else "optimizer.learning_rate=3e-7"
    config = load_config(VERB_CONFIGS[verb], None, [*REQUIRED[verb], small])
    assert load_config(VERB_CONFIGS[verb], written(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize("verb", VERB_CONFIGS)
def test_every_key_has_a_help_line_and_stands_in_the_help_text(verb: str) -> None:
    text = describe_config(VERB_CONFIGS[verb])
    for key, field in config_keys(VERB_CONFIGS[verb]):
        assert field.description and "\n" not in field.description, key
        assert (f"--{key} " in text) != bool(field.exclude), key


def test_the_help_text_shows_type_and_default() -> None:
    text = describe_config(PPOConfig)
    assert "--ppo.kl_estimator k1|k2|k3 = k1\n" in text
    assert "--ppo.value_clip number|null = 0.2\n" in text
    assert "--data.train [path|{path: .., ..}, ...] (required)\n" in text
    assert "--batch.microbatch_tokens integer|auto = auto\n" in text
    assert "--lora.layers text|[integer, ...] = all\n" in text
    assert "ppo: Proximal policy optimization.\n" in text


def test_a_partly_given_group_keeps_the_defaults_of_its_verb() -> None:
    sft = load_config(SFTConfig, None, [*SFT, "optimizer.weight_decay=0.1"])
    ppo = load_config(PPOConfig, None, [*PPO, "optimizer.weight_decay=0.1"])
    assert (sft.optimizer.learning_rate, ppo.optimizer.learning_rate) == (2e-4, 2e-4)


def test_a_config_cannot_be_changed() -> None:
    config = load_config(SFTConfig, None, SFT)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]


def test_all_forms_of_an_override_mean_the_same() -> None:
    for words in (
        ["--ppo.kl_coefficient", "0.2"],
        ["--ppo.kl_coefficient=0.2"],
        ["ppo.kl_coefficient=0.2"],
        ["--ppo.kl-coefficient", "2e-1"],
        ["--ppo", "{kl_coefficient: 0.2}"],
    ):
        assert load_config(PPOConfig, None, [*PPO, *words]).ppo.kl_coefficient == 0.2


def test_an_override_wins_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "output_dir: a\nseed: 1\nmodel: {model_name_or_path: b}\ndata: {train: [c, d]}\n")
    config = load_config(SFTConfig, path, ["--seed", "2", "--data.train", "[e]"])
    assert (config.seed, config.data.train) == (2, ["e"])
    assert load_config(SFTConfig, path).seed == 1


def test_a_bare_flag_is_true_even_before_another_word() -> None:
    config = load_config(PPOConfig, None, ["--ppo.whiten_rewards", *PPO, "--ppo.whiten_advantages", "false"])
    assert config.ppo.whiten_rewards and not config.ppo.whiten_advantages
    assert load_config(PPOConfig, None, [*PPO, "--ppo.whiten-rewards"]).ppo.whiten_rewards


def test_override_values_are_yaml_only_where_marked_so() -> None:
    words = ["--generation.stop", "\n\nHuman:", "--ppo.clip-low", ".5", "--ppo.value_clip", "null"]
    config = load_config(PPOConfig, None, [*PPO, *words, "--ppo.score_baseline", "-1", "--data.eval", "['1', b]"])
    assert config.generation.stop == ["\n\nHuman:"]
    assert config.ppo.clip_low == 0.5
    assert config.ppo.value_clip is None
    assert config.ppo.score_baseline == -1
    assert config.data.eval == ["1", "b"]


def test_yaml_scalars_follow_version_1_2(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "output_dir: 2026-01-01\nseed: 010\nmodel: {model_name_or_path: no, chat_template: ~}\nlora:\n"
        "data: {train: on}\noptimizer: {learning_rate: 1e-4, weight_decay: .5, max_grad_norm: 1E+1}\n",
    )
    config = load_config(SFTConfig, path)
    assert (config.output_dir, config.seed, config.model.model_name_or_path) == ("2026-01-01", 10, "no")
    assert (config.data.train, config.model.chat_template) == (["on"], None)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.max_grad_norm) == (1e-4, 0.5, 10.0)


def test_dotted_and_dashed_keys_of_a_file_are_read(tmp_path: Path) -> None:
    text = "output-dir: a\nmodel.model-name-or-path: b\ndata: {train: c}\nlora.r: 4\n"
    config = load_config(SFTConfig, written(tmp_path, text))
    assert (config.output_dir, config.model.model_name_or_path, config.lora.r) == ("a", "b", 4)


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, "ppo:\n  kl_coef: 0.1\nlearning_rate: 1e-5\nstrat_from: a\n")
    found = messages(PPOConfig, *PPO, "--ppo.kl_horizn", "3", path=path)
    assert found == [
        "run.yaml: 'ppo.kl_coef' is unknown; did you mean 'ppo.kl_coefficient'?",
        "run.yaml: 'learning_rate' is unknown; did you mean 'optimizer.learning_rate'?",
        "run.yaml: 'strat_from' is unknown; did you mean 'start_from'?",
        "command line: 'ppo.kl_horizn' is unknown; did you mean 'ppo.kl_horizon'?",
    ]


def test_a_key_by_its_former_name_names_the_key_it_is_now() -> None:
    (line,) = messages(PPOConfig, *SFT, "policy=a", "reward.role=b")
    assert line == "command line: 'policy' is unknown; did you mean 'start_from'?"
    (line,) = messages(RewardConfig, *SFT, "--reward.max_pairs", "3")
    assert line == "command line: 'reward.max_pairs' is unknown; did you mean 'ranking.max_pairs'?"
    (line,) = messages(RewardConfig, *SFT, "reward={}")
    assert line == "command line: 'reward' is unknown; did you mean 'ranking'?"


def test_an_unknown_key_near_nothing_lists_what_there_is() -> None:
    assert messages(SFTConfig, *SFT, "--lora.zzz=1") == [
        "command line: 'lora.zzz' is unknown; the keys of lora are r, alpha, dropout, target_modules, layers"
    ]
    (line,) = messages(SFTConfig, *SFT, "--qqq={}")
    assert "'qqq' is unknown; the keys of the config are output_dir, seed, report_to, threads, checkpoint, " in line


def test_a_wrong_value_is_named_with_its_key_and_what_is_expected() -> None:
    words = ["--model.dtype", "fp16", "--ppo.gamma", "3", "--batch.microbatch_tokens", "many", "--lora.r", "x"]
    words += ["--data.eval", "[a, [b]]", "--optimizer.learning_rate", "0"]
    assert messages(PPOConfig, *PPO, *words) == [
        "command line: 'model.dtype' = fp16: it should be 'auto', 'float32' or 'bfloat16'",
        "command line: 'lora.r' = x: it should be a whole number",
        "command line: 'data.eval' = [a, [b]]: item 1: it should be a valid string",
        "command line: 'ppo.gamma' = 3: it should be less than or equal to 1",
        "command line: 'optimizer.learning_rate' = 0: it should be greater than 0",
        "command line: 'batch.microbatch_tokens' = many: it should be a whole number, or it should be 'auto'",
    ]


def test_infinity_is_not_a_learning_rate(tmp_path: Path) -> None:
    for text in (".inf", "1e999", ".nan"):
        (line,) = messages(SFTConfig, *SFT, path=written(tmp_path, f"optimizer: {{learning_rate: {text}}}"))
        assert "it should be a finite number" in line


def test_a_missing_key_is_told_with_its_meaning() -> None:
    assert messages(SFTConfig, "seed=1") == [
        "command line: 'output_dir' is missing: folder of the run: resolved config, metrics, checkpoints, roles",
        "command line: 'model.model_name_or_path' is missing: folder or hub name of the base model",
        "command line: 'data.train' is missing: files, folders, patterns or Hub datasets, in any known format; one may "
        "be {path: .., weight: .., limit: ..}",
    ]


def test_groups_and_values_are_not_mixed_up() -> None:
    assert messages(SFTConfig, *SFT, "--lora", "8", "--seed.a", "1") == [
        "command line: 'lora' = 8: it is a group of keys: r, alpha, dropout, target_modules, layers",
        "command line: 'seed' takes one value, not keys of its own: 'seed.a'",
    ]


def test_words_that_are_no_override_are_told() -> None:
    words = ["stray", "--lora.r", "--seed", "1", "--seed", "2", "--data.eval", "[a", "--max_steps"]
    assert messages(SFTConfig, *SFT, *words) == [
        "command line: 'stray' is neither the config file, which comes first, nor --key value, nor key=value; "
        "a list is written '[a, b]'",
        "command line: '--lora.r' needs a value",
        "command line: '--seed' is given twice; give it once",
        "command line: the value of '--data.eval' is not valid YAML: [a",
        "command line: '--max_steps' needs a value",
    ]


def test_a_key_given_twice_in_a_file_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 1\nlora:\n  r: 1\nlora.r: 2\nseed: 3\n")
    assert messages(SFTConfig, *SFT, path=path) == [
        "run.yaml: 'lora.r' is given twice, in lines 3 and 4; remove one",
        "run.yaml: 'seed' is given twice, in lines 1 and 5; remove one",
    ]


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    written(tmp_path, "")
    assert messages(SFTConfig, path=tmp_path / "rum.yaml") == [
        f"no config file '{tmp_path}/rum.yaml'; did you mean '{tmp_path}/run.yaml'?"
    ]
    assert messages(SFTConfig, path=tmp_path / "qqqqqqqqqqq") == [
        f"no config file '{tmp_path}/qqqqqqqqqqq'; the folder has run.yaml"
    ]
    assert messages(SFTConfig, path=tmp_path) == [f"'{tmp_path}' is a folder; name the YAML file in it"]
    assert messages(SFTConfig, path=tmp_path / "no" / "run.yaml") == [
        f"no config file '{tmp_path}/no/run.yaml': there is no folder '{tmp_path}/no'"
    ]
    (tmp_path / "run.yaml").unlink()
    assert messages(SFTConfig, path=tmp_path / "a.yaml")[0].endswith("; the folder has no YAML file")


def test_files_that_are_not_yaml_mappings_are_told_in_one_line(tmp_path: Path) -> None:
    for text, message in (
        ("a: [1\nb: 2\n", r"run.yaml: line 2, column 2: not valid YAML: .+"),
        ("- a\n- b\n", r"run.yaml: should hold 'key: value' lines, but it is one list"),
        ("hello", r"run.yaml: should hold 'key: value' lines, but it is one value"),
        ("a: \x07", r"run.yaml: not valid YAML: .+"),
        ("a: !!python/object:os.system {}", r"run.yaml: line 1, column 4: .+could not determine a constructor.+"),
    ):
        lines = messages(SFTConfig, *SFT, path=written(tmp_path, text))
        assert len(lines) == 1 and re.fullmatch(message, lines[0]), lines
    (tmp_path / "run.yaml").write_bytes(b"output_dir: \xff\xfe")
    assert messages(SFTConfig, path=tmp_path / "run.yaml") == ["run.yaml: not UTF-8 text (byte 12); save it as UTF-8"]


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")  # root may read everything

    path = written(tmp_path, "seed: 1\n")
    monkeypatch.setattr(Path, "open", refuse)
    assert messages(SFTConfig, path=path) == [f"cannot read the config file '{path}': permission denied"]


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "# nothing\n")
    assert load_config(SFTConfig, path, SFT) == load_config(SFTConfig, None, SFT)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["lora.r=0"],
            "ppo trains adapters: with 'lora.r' = 0 the base would change under the other roles; set lora.r",
        ),
        (["ppo.minibatch_prompts=5"], "'ppo.minibatch_prompts' = 5 does not divide 'ppo.rollout_prompts' = 32"),
        (["ppo.kl_placement=loss"], "'ppo.kl_placement' = loss needs 'ppo.kl_estimator' = k2 or k3"),
        (["ppo.ptx_coefficient=1"], "go together; 'ppo.ptx_data' is not set"),
        (["ppo.ptx_data=a.txt"], "go together; 'ppo.ptx_coefficient' is not set"),
        (["ppo.ptx_columns={text: a}"], "'ppo.ptx_columns' would change nothing without 'ppo.ptx_data'"),
        (["generation.random_min_new_tokens=80"], "= 80 is above 'generation.max_new_tokens' = 64"),
        (["generation.temperature=0"], "'generation.temperature' = 0: it should be greater than 0"),
        (["generation.top_p=1.5"], "'generation.top_p' = 1.5: it should be less than or equal to 1"),
        (["data.eval_fraction=1"], "'data.eval_fraction' = 1: it should be less than or equal to 0.9"),
        (
            ["reward.callable=a:b"],
            "'reward' takes one of 'reward.role', 'reward.callable', 'reward.model' and 'reward.url'; got role and",
        ),
        (["reward.role=null"], "'reward.role', 'reward.callable', 'reward.model' and 'reward.url'; got none of them"),
        (["reward.role=null", "reward.url=http://h:1?key=1"], "'reward.url' = http://h:1?key=1: it should be a place"),
        (["reward.role=null", "reward.url=http://h", "reward.url_key=a b"], "the name of an environment variable"),
        (["reward.url_role=judge"], "'reward.url_role' would change nothing without 'reward.url'"),
        (["generation.url=http://h:1"], "'generation.url' = http://h:1 would change nothing without"),
        (["generation.ahead=1"], "'generation.ahead' = 1 would change nothing without 'generation.engine' = vllm"),
        (["generation.engine=vllm"], "'generation.engine' = vllm needs 'generation.url', where the server answers"),
        (["reward.role=null", "reward.callable=ab"], "'reward.callable' = 'ab': it should be written module:function"),
        (
            ["reward.role=null", "reward.model=m", "ppo.critic_start=reward"],
            "'ppo.critic_start' = reward needs 'reward.role'",
        ),
        (["lora.dropout=0.1"], "'lora.dropout' above 0 would add noise to the probability ratios; leave it at 0"),
        (["lora.layers=9-2"], "'lora.layers' = 9-2: it should be all, upper-half, upper-quarter, a range like 8-15"),
        (["data.train=[]"], "'data.train' = []: it should have at least 1 item"),
    ],
)
def test_values_that_do_not_go_together_are_refused_by_ppo(words: list[str], message: str) -> None:
    names = {word.split("=")[0] for word in words}
    (line,) = messages(PPOConfig, *(word for word in PPO if word.split("=")[0] not in names), *words)
    assert line.startswith("command line: ") and message in line


def test_several_disagreements_are_told_at_once() -> None:
    words = ["ppo.minibatch_prompts=5", "ppo.kl_placement=loss", "lora.alpha=-1"]
    assert len(messages(PPOConfig, *PPO, *words)) == 3


def test_four_bit_weights_cannot_be_trained_in_full() -> None:
    message = "'model.quantization' = nf4 cannot be trained in full: set lora.r >= 1, or quantization to none"
    for config in (SFTConfig, RewardConfig):
        assert messages(config, *SFT, "model.quantization=nf4", "lora.r=0") == [f"command line: {message}"]
        load_config(config, None, [*SFT, "model.quantization=nf4"])
    (line,) = messages(PretrainConfig, *SFT, "model.quantization=nf4")
    assert "pretraining changes every weight of the base" in line


def test_a_model_from_scratch_has_parts_that_fit() -> None:
    words = REQUIRED["pretrain"]
    (line,) = messages(PretrainConfig, *words, "tiny.hidden_size=30")
    assert "'tiny.hidden_size' = 30 is not a multiple of twice 'tiny.num_heads' = 4" in line
    for key in ("tiny.max_length", "block_length"):  # one token has nothing to predict
        (line,) = messages(PretrainConfig, *words, f"{key}=1")
        assert f"'{key}' = 1: it should be greater than or equal to 2" in line
    (line,) = messages(PretrainConfig, *words, "block_length=512")
    assert "'block_length' = 512 is above 'tiny.max_length' = 256" in line
    assert load_config(PretrainConfig, None, [*words, "block_length=256"]).model.model_name_or_path is None


@pytest.mark.parametrize(
    ("text", "value"), [("8-15", "8-15"), ("8", "8"), ("[1, 3]", [1, 3]), ("upper-half", "upper-half"), ("all", "all")]
)
def test_layers_are_named_or_counted(text: str, value: object) -> None:
    assert load_config(SFTConfig, None, [*SFT, "--lora.layers", text]).lora.layers == value


# --------------------------------------------------------------------------------------- numbers, paths, names


def numeric_keys(model_class: type[BaseModel]) -> list[str]:
    def is_number(kind: object) -> bool:
        return kind in (int, float) or any(map(is_number, get_args(kind)))

    return [key for key, field in config_keys(model_class) if is_number(field.annotation)]


@pytest.mark.parametrize("verb", VERB_CONFIGS)
def test_no_numeric_key_takes_true_or_text_for_a_number(verb: str, tmp_path: Path) -> None:
    keys = numeric_keys(VERB_CONFIGS[verb])
    assert len(keys) > 10
    for text in ("true", "'8'", "1_000", "[true]", "'0.5'"):
        path = written(tmp_path, "".join(f"{key}: {text}\n" for key in keys if key != "lora.layers"))
        lines = messages(VERB_CONFIGS[verb], *REQUIRED[verb], path=path)
        told = {found[1] for line in lines if (found := re.match(r"run.yaml: '([\w.]+)' = ", line))}
        assert told == set(keys) - {"lora.layers"}, text


def test_whole_numbers_may_be_written_as_exact_floats() -> None:
    assert load_config(SFTConfig, None, [*SFT, "max_steps=1e3"]).max_steps == 1000
    for value in ("1.5", "1e-3", ".inf", "9" * 30, "1e300"):
        (line,) = messages(SFTConfig, *SFT, f"max_steps={value}")
        assert "'max_steps' = " in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["output_dir=''"], "'output_dir' = : it should be a path, but it is blank"),
        (["output_dir='  '"], "it should be a path, but it is blank"),
        (['output_dir="a\\0b"'], r"'output_dir' = a\x00b: it should be a path, but it contains control characters"),
        (["output_dir=" + "x" * 300], "it should be a path, but it is longer than a file system allows"),
        (["data.train=['']"], "'data.train' = ['']: item 0: it should be a path, but it is blank"),
        (["start_from=' '"], "'start_from' =  : it should be a path, but it is blank"),
        (["data.eval_fraction=0.999999999"], "'data.eval_fraction' = 0.999999999: it should be less than or equal"),
        (["model.device=meta"], "'model.device' = meta: it should be auto, cpu, cuda or cuda:1"),
        (["lora.target_modules=[]"], "it should have at least 1 item"),
        (["lora.target_modules=['']"], "it should be the name of a module, such as q_proj"),
        (["lora.layers=[]"], "it should have at least 1 item"),
        (["lora.layers=9999999999999-9999999999"], "it should be all, upper-half, upper-quarter, a range"),
        (["lora.layers=[true]"], "item 0: it should be a whole number"),
    ],
)
def test_values_that_no_run_could_use_are_refused(words: list[str], message: str) -> None:
    names = {word.split("=")[0] for word in words}
    (line,) = messages(SFTConfig, *(word for word in SFT if word.split("=")[0] not in names), *words)
    assert line.startswith("command line: ") and message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=0 sigmoid"], "'loss' = 0 sigmoid: every weight should be a finite number above 0"),
        (["loss=1e400 sigmoid"], "'loss' = 1e400 sigmoid: every weight should be a finite number above 0"),
        (["loss=sigmoid + sigmoid"], "'loss' = sigmoid + sigmoid names sigmoid twice; give it once, with one weight"),
        (["loss=sigmoid +"], "'loss' =  is unknown; there are sigmoid, "),
        (["loss=-1 sigmoid"], "'loss' = -1 sigmoid is unknown"),
        (
            ["loss=ipo", "preference.label_smoothing=0.3"],
            "'preference.label_smoothing' = 0.3 would change nothing: 'loss' = ipo does not read it, only sigmoid, ",
        ),
        (["preference.gamma=3"], "'loss' = sigmoid does not read it, only simpo does; leave it out"),
        (["preference.desirable_weight=3"], "only kto does; leave it out"),
        (["loss=orpo", "preference.beta=0.3"], "'preference.beta' = 0.3 would change nothing"),
    ],
)
def test_a_loss_that_says_nothing_or_a_key_it_does_not_read_is_refused(words: list[str], message: str) -> None:
    (line,) = messages(DPOConfig, *SFT, *words)
    assert line.startswith("command line: ") and message in line
    assert load_config(DPOConfig, None, [*SFT, "loss=simpo + .5 nll", "preference.gamma=3"]).loss_weights() == {
        "simpo": 1.0,
        "nll": 0.5,
    }


def test_keys_of_a_new_model_are_refused_beside_a_model_that_is_there() -> None:
    words = [*REQUIRED["pretrain"], "model.model_name_or_path=base", "tiny.hidden_size=64", "tiny.tokenizer=t"]
    assert messages(PretrainConfig, *words) == [
        f"command line: 'tiny.{key}' is for a new model, but 'model.model_name_or_path' names an existing one; "
        "leave one out".replace("' is", f"' = {value} is")
        for key, value in (("tokenizer", "t"), ("hidden_size", 64))
    ]
    (line,) = messages(IterateConfig, *BEST_OF, "learn=sft", "preference.beta=3")
    assert "'preference.beta' would change nothing: it is for 'learn' = dpo; leave it out" in line


@pytest.mark.parametrize(
    ("model_class", "words", "message"),
    [
        (DPOConfig, ["loss=kto", "preference.max_pairs=3"], "'preference.max_pairs' = 3 would change nothing: "),
        (DPOConfig, ["loss=orpo", "preference.reference=live"], "'preference.reference' = live would change nothing"),
        (DPOConfig, ["loss=simpo", "reference_role=r"], "'reference_role' = r would change nothing: 'loss' = simpo"),
        (SFTConfig, ["lora.r=0", "lora.alpha=3"], "'lora.alpha' = 3.0 would change nothing: 'lora.r' = 0"),
        (RewardConfig, ["lora.r=0", "lora.target_modules=[q]"], "'lora.target_modules' = ['q'] would change nothing"),
        (PPOConfig, ["ppo.kl_horizon=5000"], "'ppo.kl_horizon' = 5000 has no effect without 'ppo.kl_target'; set it"),
        (IterateConfig, ["learn=sft", "reference=kept"], "'reference' would change nothing: it is for 'learn' = dpo"),
    ],
)
def test_a_key_without_effect_is_refused(model_class: type[BaseModel], words: list[str], message: str) -> None:
    required = {PPOConfig: PPO, IterateConfig: BEST_OF, PretrainConfig: REQUIRED["pretrain"]}.get(model_class, SFT)
    assert any(message in line for line in messages(model_class, *required, *words))


# ------------------------------------------------------------------------------------------- names people know


@pytest.mark.parametrize(
    ("model_class", "key", "meant"),
    [
        (SFTConfig, "optimizer.lr", "did you mean 'optimizer.learning_rate'?"),
        (SFTConfig, "lr", "did you mean 'optimizer.learning_rate'?"),
        (SFTConfig, "dataset", "did you mean 'data.train'?"),
        (SFTConfig, "train_file", "did you mean 'data.train'?"),
        (SFTConfig, "model_name", "did you mean 'model.model_name_or_path'?"),
        (SFTConfig, "base_model", "did you mean 'model.model_name_or_path'?"),
        (SFTConfig, "num_train_epochs", "did you mean 'optimizer.num_epochs'?"),
        (SFTConfig, "per_device_train_batch_size", "did you mean 'batch.minibatch'?"),
        (PPOConfig, "per_device_train_batch_size", "did you mean 'ppo.minibatch_prompts'?"),
        (SFTConfig, "gradient_accumulation_steps", "a minibatch is split to fit memory automatically"),
        (SFTConfig, "max_seq_length", "did you mean 'data.max_completion_tokens'?"),
        (PretrainConfig, "max_seq_length", "did you mean 'block_length'?"),
        (SFTConfig, "lora_rank", "did you mean 'lora.r'?"),
        (SFTConfig, "warmup_ratio", "the warm-up is set in steps, by optimizer.warmup_steps"),
        (SFTConfig, "output", "did you mean 'output_dir'?"),
        (PPOConfig, "max_new_tokens", "did you mean 'generation.max_new_tokens'?"),
        (PPOConfig, "lora.lora_alpha", "did you mean 'lora.alpha'?"),
        (SFTConfig, "streaming", "did you mean 'data.streaming'?"),
        (PPOConfig, "data.streaming", "this verb reads its prompts at once; data.limit bounds how many"),
    ],
)
def test_the_usual_names_of_the_field_are_known(model_class: type[BaseModel], key: str, meant: str) -> None:
    (line,) = messages(model_class, *(PPO if model_class is PPOConfig else SFT), f"--{key}", "3")
    assert line.startswith(f"command line: '{key}' is unknown; {meant}"), line


def test_every_usual_name_leads_to_a_key_of_some_verb() -> None:
    every = {key for model_class in VERB_CONFIGS.values() for key, _ in config_keys(model_class)}
    every |= {key.partition(".")[0] for key in every}
    for name, meant in USUAL_NAMES.items():
        assert isinstance(meant, str) or set(meant) <= every, name


def test_a_model_given_as_text_is_its_name(tmp_path: Path) -> None:
    words = [word for word in SFT if not word.startswith("model")]
    assert load_config(SFTConfig, None, [*words, "--model", "base"]) == load_config(SFTConfig, None, SFT)
    path = written(tmp_path, "model: base\n")
    assert load_config(SFTConfig, path, words) == load_config(SFTConfig, None, SFT)
    assert load_config(SFTConfig, path, [*words, "--model", "b2"]).model.model_name_or_path == "b2"
    assert messages(SFTConfig, *words[:1], "--model=a", "--data", "a.jsonl")[0].endswith("; did you mean 'data.train'?")


def test_a_list_takes_several_words_and_repeated_flags() -> None:
    words = ["output_dir=a", "--model", "b"]
    for given in (
        ["--data.train", "a", "b", "--seed", "1"],
        ["--data.train", "a", "--data.train", "b", "--seed", "1"],
        ["--data.train", "a", "b", "seed=1"],
        ["--data.train", "[a]", "--seed=1", "data.train=b"],
    ):
        config = load_config(SFTConfig, None, [*words, *given])
        assert (config.data.train, config.seed) == (["a", "b"], 1)
    config = load_config(SFTConfig, None, [*SFT, "--lora.layers", "1", "3", "--lora.target-modules", "q", "k"])
    assert (config.lora.layers, config.lora.target_modules) == ([1, 3], ["q", "k"])


# ------------------------------------------------------------------------------- files that are no configuration


LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'lol'}]\n" for i in range(12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "line 2, column 10: not valid YAML: *a0 stands for a list or a mapping; write it out"),
        ("lora: &a {b: *a}\n", "*a stands for a list or a mapping; write it out"),
        ("a: " + "[" * 5000, "more than 12 nested lists and mappings"),
        ("a: " + "{a: " * 5000, "more than 12 nested lists and mappings"),
        (
            "data:\n  columns: {prompt: a,\n    prompt: b}\n",
            "line 3, column 5: not valid YAML: 'prompt' is given twice, in lines 2 and 3; remove one",
        ),
        ("seed: !!int abc\n", "line 1, column 7: not valid YAML: abc cannot be read as int"),
        ("seed: !!float abc\n", "abc cannot be read as float"),
        ("seed: !!bool maybe\n", "maybe cannot be read as bool"),
        ("seed: !!timestamp x\n", "x cannot be read as timestamp"),
        ("seed: " + "1" * 5000, "11... cannot be read as int"),
        ("? [a, b]\n: 1\n" * 3, "is unknown"),
        ("\n".join(f"k{i}: 1" for i in range(9000)), "is unknown too, and there may be more"),
        ("# " + "x" * 200_000, "it has 200,002 bytes, too many for a config"),
        ('"\\e[31mred": 1\n', r"'\x1b[31mred' is unknown"),
    ],
)
def test_hostile_yaml_is_refused_at_once(text: str, message: str, tmp_path: Path) -> None:
    path, start = written(tmp_path, text), time.process_time()
    lines = messages(SFTConfig, *SFT, path=path)
    assert any(message in line for line in lines) and "\x1b" not in "".join(lines), lines[:3]
    assert time.process_time() - start < 5 and len(lines) < 30


def test_an_alias_of_a_single_value_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "output_dir: &name a\nmodel: {model_name_or_path: *name}\ndata: {train: [*name]}\n")
    assert load_config(SFTConfig, path).data.train == ["a"]


def test_values_on_the_command_line_are_held_to_the_same() -> None:
    for words in (["--lora", "{x: &a {y: *a}}"], ["--seed", "1" * 5000], ["--lora", "[" * 3000]):
        (line,) = messages(SFTConfig, *SFT, *words)
        assert line.startswith(f"command line: the value of '{words[0]}' is not valid YAML: ") and len(line) < 200


def test_what_is_no_regular_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "gone.yaml").symlink_to("nowhere.yaml")
    for name, message in (
        ("pipe.yaml", "it is not a regular file"),
        ("/dev/zero", "it is not a regular file"),
        ("loop.yaml", "too many levels of symbolic links"),
        ("gone.yaml", "no such file or directory"),
        ("x" * 300, "no config file"),
        ("y/" * 3000, "there is no folder"),
        ("a\x00b", "no config file"),
    ):
        (line,) = messages(SFTConfig, *SFT, path=tmp_path / name)
        assert message in line and "\x00" not in line, line
