"""Config models and the reader of files and overrides."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from onebase.config import VERB_CONFIGS, PPOConfig, PretrainConfig, RewardConfig, SFTConfig
from onebase.config_files import config_keys, describe_config, dump_config, load_config
from onebase.errors import ConfigError

SFT = ["output_dir=runs/x", "model.model_name_or_path=base", "data.train=a.jsonl"]
PPO = [*SFT, "policy=runs/sft/policy", "reward.role=runs/reward/reward"]
BEST_OF = [*SFT, "reward.callable=m:f"]
REQUIRED = {"pretrain": [SFT[0], SFT[2]], "sft": SFT, "reward": SFT, "dpo": SFT, "ppo": PPO, "best-of": BEST_OF,
            "iterate": BEST_OF}  # fmt: skip


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
        assert f"--{key} " in text


def test_the_help_text_shows_type_and_default() -> None:
    text = describe_config(PPOConfig)
    assert "--ppo.kl_estimator k1|k2|k3 = k1\n" in text
    assert "--ppo.value_clip number|null = 0.2\n" in text
    assert "--data.train [text, ...] (required)\n" in text
    assert "--batch.microbatch_tokens integer|auto = auto\n" in text
    assert "--lora.layers text|[integer, ...] = all\n" in text
    assert "ppo: Proximal policy optimization.\n" in text


def test_a_partly_given_group_keeps_the_defaults_of_its_verb() -> None:
    sft = load_config(SFTConfig, None, [*SFT, "optimizer.weight_decay=0.1"])
    ppo = load_config(PPOConfig, None, [*PPO, "optimizer.weight_decay=0.1"])
    assert (sft.optimizer.learning_rate, ppo.optimizer.learning_rate) == (2e-4, 5e-5)


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
    words = ["--generation.stop", "\n\nHuman:", "--generation.temperature", ".5", "--ppo.value_clip", "null"]
    config = load_config(PPOConfig, None, [*PPO, *words, "--ppo.score_baseline", "-1", "--data.eval", "['1', b]"])
    assert config.generation.stop == ["\n\nHuman:"]
    assert config.generation.temperature == 0.5
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
    path = written(tmp_path, "ppo:\n  kl_coef: 0.1\nlearning_rate: 1e-5\npolcy: a\n")
    found = messages(PPOConfig, *PPO, "--ppo.kl_horizn", "3", path=path)
    assert found == [
        "run.yaml: 'ppo.kl_coef' is unknown; did you mean 'ppo.kl_coefficient'?",
        "run.yaml: 'learning_rate' is unknown; did you mean 'optimizer.learning_rate'?",
        "run.yaml: 'polcy' is unknown; did you mean 'policy'?",
        "command line: 'ppo.kl_horizn' is unknown; did you mean 'ppo.kl_horizon'?",
    ]


def test_an_unknown_key_near_nothing_lists_what_there_is() -> None:
    assert messages(SFTConfig, *SFT, "--lora.zzz=1") == [
        "command line: 'lora.zzz' is unknown; the keys of lora are r, alpha, dropout, target_modules, layers"
    ]
    (line,) = messages(SFTConfig, *SFT, "--qqq={}")
    assert "'qqq' is unknown; the keys of the config are output_dir, seed, report_to, checkpoint, max_steps, " in line


def test_a_wrong_value_is_named_with_its_key_and_what_is_expected() -> None:
    words = ["--model.dtype", "fp16", "--ppo.gamma", "3", "--batch.microbatch_tokens", "many", "--lora.r", "x"]
    words += ["--data.eval", "[a, [b]]", "--optimizer.learning_rate", "0"]
    assert messages(PPOConfig, *PPO, *words) == [
        "command line: 'model.dtype' = fp16: it should be 'auto', 'float32' or 'bfloat16'",
        "command line: 'lora.r' = x: it should be a valid integer, unable to parse string as an integer",
        "command line: 'data.eval' = [a, [b]]: item 1: it should be a valid string",
        "command line: 'ppo.gamma' = 3: it should be less than or equal to 1",
        "command line: 'optimizer.learning_rate' = 0: it should be greater than 0",
        "command line: 'batch.microbatch_tokens' = many: "
        "it should be a valid integer, unable to parse string as an integer, or it should be 'auto'",
    ]


def test_infinity_is_not_a_learning_rate(tmp_path: Path) -> None:
    for text in (".inf", "1e999", ".nan"):
        (line,) = messages(SFTConfig, *SFT, path=written(tmp_path, f"optimizer: {{learning_rate: {text}}}"))
        assert "it should be a finite number" in line


def test_a_missing_key_is_told_with_its_meaning() -> None:
    assert messages(SFTConfig, "seed=1") == [
        "command line: 'output_dir' is missing: folder of the run: resolved config, metrics, checkpoints, roles",
        "command line: 'model.model_name_or_path' is missing: folder or hub name of the base model",
        "command line: 'data.train' is missing: one file or a list of files (.jsonl, .json, .txt; .gz too)",
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
        "command line: '--seed' is given twice; a list is written --seed '[a, b]'",
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
        f"no config file '{tmp_path}/qqqqqqqqqqq'; there are run.yaml"
    ]
    assert messages(SFTConfig, path=tmp_path) == [f"'{tmp_path}' is a folder; give the YAML file in it"]
    assert messages(SFTConfig, path=tmp_path / "no" / "run.yaml") == [
        f"no config file '{tmp_path}/no/run.yaml': there is no folder '{tmp_path}/no'"
    ]
    (tmp_path / "run.yaml").unlink()
    assert messages(SFTConfig, path=tmp_path / "a.yaml")[0].endswith("; no YAML file is there")


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
        raise PermissionError  # root, who runs many test machines, may read everything

    monkeypatch.setattr(Path, "read_text", refuse)
    path = tmp_path / "run.yaml"
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
        (["generation.random_min_new_tokens=80"], "= 80 is above 'generation.max_new_tokens' = 64"),
        (["generation.temperature=0"], "'generation.temperature' = 0: it should be greater than 0"),
        (["generation.top_p=1.5"], "'generation.top_p' = 1.5: it should be less than or equal to 1"),
        (["data.eval_fraction=1"], "'data.eval_fraction' = 1: it should be less than 1"),
        (
            ["reward.callable=a:b"],
            "'reward' needs exactly one of 'reward.role', 'reward.callable' and 'reward.model'; got",
        ),
        (["reward.role=null"], "'reward.role', 'reward.callable' and 'reward.model'; got none of them"),
        (["reward.role=null", "reward.callable=ab"], "'reward.callable' = 'ab': it should be written module:function"),
        (
            ["reward.role=null", "reward.model=m", "ppo.critic_start=reward"],
            "'ppo.critic_start' = reward needs 'reward.role'",
        ),
        (["lora.dropout=0.1"], "'lora.dropout' above 0 would make noise of PPO's probability ratios; leave it at 0"),
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
    (line,) = messages(PretrainConfig, *words, "block_length=512")
    assert "'block_length' = 512 is above 'tiny.max_length' = 256" in line
    assert load_config(PretrainConfig, None, [*words, "block_length=256"]).model.model_name_or_path is None


@pytest.mark.parametrize(
    ("text", "value"), [("8-15", "8-15"), ("8", "8"), ("[1, 3]", [1, 3]), ("upper-half", "upper-half"), ("all", "all")]
)
def test_layers_are_named_or_counted(text: str, value: object) -> None:
    assert load_config(SFTConfig, None, [*SFT, "--lora.layers", text]).lora.layers == value
