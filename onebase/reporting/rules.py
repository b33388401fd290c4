"""The flight recorder's rules: what may be going wrong in the metrics of a run of ppo or rft, and what to change.

A rule looks at a window of rollouts and fires if its condition holds in four out of five, so that one noisy rollout
neither triggers nor silences it. It fires once, and again each time the fault has doubled. "The start" is the first
rollout, which is sampled before any update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import correlation, median
from typing import Any

WINDOW = 5
"""Rollouts a rule looks at: enough to average out noise, few enough to act in time."""
SHARE = 0.8
"""Share of the window in which the condition must hold."""
WORSE = 2.0
"""A rule fires again at this multiple: an explosion is reported again, a constant fault is not."""

NEGATIVE_KL = -0.05
"""Nats per completion. The mean of k1 is at least 0 but for sampling noise, which stays smaller in healthy runs."""
LARGE_KL, LARGE_KL_PER_TOKEN = 20.0, 0.2
"""Nats per completion, or per token if that is more; the best of a million samples is 13 nats away."""
LOGP_DIFFERENCE = 0.05
"""Nats per token, a quarter of the usual clip range; rounding gives 1e-6 in float32, below 0.01 in bfloat16."""
RATIO = 0.2
"""Distance of the mean ratio from 1, its expectation: the usual clip range."""
CLIPPED = 0.3
"""Share of tokens whose gradient is clipped; healthy runs start at 0.05 to 0.3 and fall."""
STILL, STILL_WINDOW = 1e-6, 10
"""Approximate KL of the updates in nats per token, as from ratios that move by a thousandth; and the window."""
EXPLAINED, EXPLAINED_WINDOW = 0.05, 15
"""Explained variance that a critic that learns exceeds within so many rollouts, or at least approaches."""
ENDED, ENDED_AT_START = 0.25, 0.2
"""Fraction of the starting rate of ended completions, and the least such rate: a continuation need not end."""
GROWN, CORRELATION, CORRELATION_WITHIN = 1.5, 0.8, 0.3
"""Growth of the mean length since the start (healthy runs often grow by a quarter); its correlation with the score
from rollout to rollout, and within a rollout: without the latter the two merely rise at the same time."""
SHRUNK = 1 / 3
"""Mean length relative to the start: an answer seldom loses two thirds of its words and still answers."""
ENTROPY = 0.2
"""Entropy relative to the start; healthy runs keep half of it."""
ALIKE = 0.9
"""Share of prompts whose completions all score the same: beyond, one prompt in ten teaches anything."""
MARGINS = 2.0
"""Fall on held-out prompts, in half-widths of the 95 % interval, as the best of many evaluations may be a fluke."""

Rows = Sequence[Mapping[str, Any]]
Seen = tuple[float, dict[str, float]]
"""Severity, above 0, and the numbers in the sentence."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is going wrong and what to change, in English and in Chinese."""

    step: int
    """The rollout, counted from 1."""
    rule: str
    en: str
    zh: str

    def line(self, lang: str) -> str:
        """Returns the sentence, prefixed with its rollout."""
        return f"rollout {self.step}：{self.zh}" if lang == "zh" else f"rollout {self.step}: {self.en}"


@dataclass(frozen=True, slots=True)
class Rule:
    """What to look for, and what to say: what is wrong, a semicolon, what to change."""

    name: str
    look: Callable[[Rows], Seen | None]
    en: str
    zh: str
    rft: tuple[str, str] | None = None
    """What to change in a run of rft, in English and Chinese; None: what the sentences say."""

    def sentences(self, verb: str) -> tuple[str, str]:
        """Returns the English and the Chinese sentence with the keys of this verb."""
        if verb != "rft" or self.rft is None:
            return self.en, self.zh
        return f"{self.en.partition('; ')[0]}; {self.rft[0]}", f"{self.zh.partition('；')[0]}；{self.rft[1]}"


def findings(rows: Rows, *, verb: str = "ppo") -> list[Finding]:
    """Returns what the rules say about these rollouts; later rows only append to the list.

    Args:
        rows: as in `metrics.jsonl`; metrics that are missing, None or not finite are skipped. A first row with step 0
            may hold the held-out figures measured before training.
        verb: ppo or rft, whose keys the advice names.
    """
    said: dict[str, float] = {}
    so_far: list[Mapping[str, Any]] = []
    found = []
    for row in rows:
        so_far.append(row)
        found += look(so_far, said, verb=verb)
    return found


def look(rows: Rows, said: dict[str, float], *, verb: str = "ppo") -> list[Finding]:
    """Returns what is new with the last of these rollouts.

    Args:
        said: how severe each rule's last finding was, by its name; updated here.
    """
    found = []
    for rule in RULES:
        seen = rule.look(rows)
        if seen is not None and seen[0] >= WORSE * said.get(rule.name, 0.0):
            said[rule.name], numbers = seen
            en, zh = (sentence.format(**numbers) for sentence in rule.sentences(verb))
            found.append(Finding(int(rows[-1]["step"]), rule.name, en, zh))
    return found


def _has(row: Mapping[str, Any], *names: str) -> bool:
    return all(row.get(name) is not None and math.isfinite(row[name]) for name in names)


def _recent(rows: Rows, name: str, window: int) -> list[float]:
    """Returns the last `window` values, oldest first; [] if there are fewer."""
    values: list[float] = []
    for row in reversed(rows):
        if _has(row, name):
            values.append(row[name])
            if len(values) == window:
                return values[::-1]
    return []


def _mostly(rows: Rows, name: str, wrong: Callable[[float], bool], window: int = WINDOW) -> float | None:
    """Returns the median of the last values if enough of them are wrong, else None."""
    values = _recent(rows, name, window)
    return median(values) if values and sum(map(wrong, values)) >= SHARE * window else None


def _start(rows: Rows, name: str) -> float:
    return next((float(row[name]) for row in rows if _has(row, name)), math.nan)


def _negative_kl(rows: Rows) -> Seen | None:
    kl = _mostly(rows, "objective/kl", lambda kl: kl < NEGATIVE_KL)
    return None if kl is None else (-kl, {"kl": kl})


def _large_kl(rows: Rows) -> Seen | None:
    length = _recent(rows, "completions/mean_length", 1) or [0.0]
    kl = _mostly(rows, "objective/kl", lambda kl: kl > max(LARGE_KL, LARGE_KL_PER_TOKEN * length[0]))
    return None if kl is None else (kl, {"kl": kl})


def _sampler(rows: Rows) -> Seen | None:
    difference = _mostly(rows, "sampling/logp_difference", lambda nats: nats > LOGP_DIFFERENCE)
    return None if difference is None else (difference, {"difference": difference})


def _ratio(rows: Rows) -> Seen | None:
    ratio = _mostly(rows, "policy/ratio", lambda ratio: abs(ratio - 1) > RATIO)
    return None if ratio is None else (abs(ratio - 1), {"ratio": ratio})


def _clipped(rows: Rows) -> Seen | None:
    share = _mostly(rows, "policy/clipfrac", lambda share: share > CLIPPED)
    return None if share is None else (share, {"share": share})


def _still(rows: Rows) -> Seen | None:
    clipped = _mostly(rows, "policy/clipfrac", lambda share: share == 0, STILL_WINDOW)
    kl = _mostly(rows, "policy/approxkl", lambda kl: kl < STILL, STILL_WINDOW)
    # With one optimizer step per rollout the ratio is always 1.
    if clipped is None or kl is None or _recent(rows, "train/optimizer_steps", 1) == [1]:
        return None
    rates = [row["learning_rate"] for row in rows if _has(row, "learning_rate")]
    by_design = rates and rates[-1] < max(rates) / 2  # the schedule is near its end
    return None if by_design else (1.0, {"kl": kl})


def _critic(rows: Rows) -> Seen | None:
    explained = _mostly(rows, "val/explained_variance", lambda share: share < EXPLAINED, EXPLAINED_WINDOW)
    values = _recent(rows, "val/explained_variance", EXPLAINED_WINDOW)
    # A critic that began far off may take its time, as long as it improves.
    if explained is None or median(values[-WINDOW:]) > median(values[:WINDOW]) + EXPLAINED:
        return None
    return max(1.0, -explained), {"explained": explained, "n": EXPLAINED_WINDOW}


def _endless(rows: Rows) -> Seen | None:
    start = _start(rows, "completions/ended")
    ended = _mostly(rows, "completions/ended", lambda share: start >= ENDED_AT_START and share < ENDED * start)
    return None if ended is None else (1.0, {"ended": ended, "start": start})


WITHIN = "completions/score_length_correlation"


def _longer(rows: Rows) -> Seen | None:
    start = _start(rows, "completions/mean_length")
    length = _mostly(rows, "completions/mean_length", lambda tokens: tokens > GROWN * start)
    if length is None:
        return None
    both = [row for row in rows if _has(row, "completions/mean_length", "objective/scores")]
    scores, lengths = ([row[name] for row in both] for name in ("objective/scores", "completions/mean_length"))
    within = [row[WITHIN] for row in rows if _has(row, WITHIN)]
    if len(set(scores)) < 2 or (r := correlation(scores, lengths)) < CORRELATION:
        return None
    if within and median(within) < CORRELATION_WITHIN:
        return None
    return length / start, {"length": length, "start": start, "r": r}


def _shorter(rows: Rows) -> Seen | None:
    start = _start(rows, "completions/mean_length")
    length = _mostly(rows, "completions/mean_length", lambda tokens: tokens < SHRUNK * start)
    return None if length is None else (1.0, {"length": length, "start": start})


def _entropy(rows: Rows) -> Seen | None:
    start = _start(rows, "objective/entropy")
    entropy = _mostly(rows, "objective/entropy", lambda nats: nats < ENTROPY * start)
    return None if entropy is None else (1.0, {"entropy": entropy, "start": start})


def _alike(rows: Rows) -> Seen | None:
    share = _mostly(rows, "groups/without_variance", lambda share: share > ALIKE)
    scores = _recent(rows, "objective/scores", 1)
    return None if share is None or not scores else (1.0, {"share": share, "score": scores[0]})


def _fell(rows: Rows, rising: str, falling: str) -> Seen | None:
    """Detects that in the last two evaluations `falling` is well below its best, and `rising` above its value then."""
    needed = (rising, falling, f"{falling}_error")
    points = [row for row in rows if _has(row, *needed)] if _has(rows[-1], *needed) else []
    if len(points) < 3:
        return None
    best = max(points[:-2], key=lambda row: float(row[falling]))
    for row in points[-2:]:
        margin = MARGINS * max(best[f"{falling}_error"], row[f"{falling}_error"])
        if not (row[falling] < best[falling] - margin and row[rising] > best[rising]):
            return None
    last = points[-1]
    return best[falling] - last[falling], {
        "best": best[falling],
        "rollout": best["step"],
        "now": last[falling],
        "score": last[rising],
        "score_then": best[rising],
    }


def _judge(rows: Rows) -> Seen | None:
    return _fell(rows, "eval/score", "eval/judge")


def _held_out(rows: Rows) -> Seen | None:
    return _fell(rows, "objective/scores", "eval/score")


def _refused(rows: Rows) -> Seen | None:
    share = rows[-1].get("train/refused_steps") or 0.0
    return (share, {"share": share}) if share > 0 else None


RULES = (
    Rule(
        "negative_kl",
        _negative_kl,
        "the KL to the reference is negative ({kl:.2f} nats per completion), which is impossible: completions are "
        "sampled from a different distribution than the one being trained; set model.dtype: float32 and check that "
        "sampling/logp_difference falls",
        "与参考模型的 KL 为负（每条回答 {kl:.2f} nats），而 KL 不可能为负：采样分布与训练分布不一致；请设置 "
        "model.dtype: float32，并确认 sampling/logp_difference 随之下降",
    ),
    Rule(
        "large_kl",
        _large_kl,
        "the KL to the reference has reached {kl:.1f} nats per completion: this far away, the score says little about "
        "the text; raise ppo.kl_coefficient, or set ppo.kl_target or ppo.kl_budget",
        "与参考模型的 KL 已达每条回答 {kl:.1f} nats：偏离过大，奖励分数已不能反映回答的好坏；请调高 "
        "ppo.kl_coefficient，或设置 ppo.kl_target 或 ppo.kl_budget",
        (
            "raise rft.kl_coefficient, or lower optimizer.learning_rate",
            "请调高 rft.kl_coefficient，或调低 optimizer.learning_rate",
        ),
    ),
    Rule(
        "sampler",
        _sampler,
        "the sampler's log-probs differ from the training pass by {difference:.2f} nats per token: the policy is not "
        "learning from its own samples; set model.dtype: float32 and, if that does not help, model.layout: separate",
        "采样与训练前向算出的 log-prob 平均每个 token 相差 {difference:.2f} nats：策略学到的并非自己的样本；请设置 "
        "model.dtype: float32，若仍无效，再设置 model.layout: separate",
    ),
    Rule(
        "ratio",
        _ratio,
        "the updates' mean probability ratio is {ratio:.2f}, far from 1: they train too hard on each rollout; "
        "lower optimizer.learning_rate or ppo.num_ppo_epochs",
        "更新中的平均概率比为 {ratio:.2f}，明显偏离 1：在同一批样本上更新过猛；请调低 optimizer.learning_rate 或 "
        "ppo.num_ppo_epochs",
        (
            "lower optimizer.learning_rate or rft.num_epochs",
            "请调低 optimizer.learning_rate 或 rft.num_epochs",
        ),
    ),
    Rule(
        "clipped",
        _clipped,
        "{share:.0%} of the tokens are clipped: within one rollout the policy moves further than its samples "
        "justify; lower optimizer.learning_rate or ppo.num_ppo_epochs, or set ppo.max_kl",
        "{share:.0%} 的 token 被裁剪：策略在单个 rollout 内变化过大，超出了样本所能支撑的范围；请调低 "
        "optimizer.learning_rate 或 ppo.num_ppo_epochs，或设置 ppo.max_kl",
        (
            "lower optimizer.learning_rate or rft.num_epochs, or, where they are narrow, raise rft.clip_low "
            "and rft.clip_high",
            "请调低 optimizer.learning_rate 或 rft.num_epochs；若裁剪范围本来就很窄，可调高 "
            "rft.clip_low 和 rft.clip_high",
        ),
    ),
    Rule(
        "still",
        _still,
        "the policy is not moving: its updates shift it by {kl:.0e} nats per token, and nothing is clipped; raise "
        "optimizer.learning_rate, and check in objective/scores_std that the reward tells completions apart",
        "策略几乎没有变化：每次更新平均每个 token 仅移动 {kl:.0e} nats，且没有任何裁剪；请调高 "
        "optimizer.learning_rate，并查看 objective/scores_std，确认奖励能区分不同的回答",
    ),
    Rule(
        "critic",
        _critic,
        "the critic predicts nothing (explained variance {explained:.2f} over {n} rollouts), so the "
        "advantages are mostly noise; raise ppo.critic_learning_rate, set ppo.critic_warmup_rollouts, or, if scores "
        "are far from 0, shift them with ppo.score_baseline",
        "critic 没有预测能力（最近 {n} 个 rollout 的 explained variance 为 {explained:.2f}），优势估计几乎全是噪声；"
        "请调高 ppo.critic_learning_rate 或设置 ppo.critic_warmup_rollouts；"
        "若分数整体远离 0，可用 ppo.score_baseline 将其平移到 0 附近",
        (
            "raise rft.critic_learning_rate, set rft.critic_warmup_rollouts, or do without a critic (advantage: group)",
            "请调高 rft.critic_learning_rate 或设置 rft.critic_warmup_rollouts，"
            "或改用不需要 critic 的优势估计（advantage: group）",
        ),
    ),
    Rule(
        "endless",
        _endless,
        "only {ended:.0%} of the completions still end on their own ({start:.0%} at the start): the policy is "
        "forgetting the end token; raise ppo.missing_end_penalty, and check whether the reward pays for length",
        "只有 {ended:.0%} 的回答能自行结束（训练开始时为 {start:.0%}）：策略正在忘记结束符；请调高 "
        "ppo.missing_end_penalty，并检查奖励是否偏爱长回答",
        (
            "raise generation.max_new_tokens, set rft.overlong_buffer, and check whether the reward pays for length",
            "请调高 generation.max_new_tokens、设置 rft.overlong_buffer，并检查奖励是否偏爱长回答",
        ),
    ),
    Rule(
        "length",
        _longer,
        "completions have grown from {start:.1f} to {length:.1f} tokens, and the score with them (correlation "
        "{r:.2f}): the reward may be paying for length alone; set ppo.length_penalty, or let evaluation.judge "
        "check what the reward cannot see",
        "回答平均长度从 {start:.1f} 个 token 增至 {length:.1f} 个，分数也随之上升（相关系数 {r:.2f}）："
        "奖励可能只是偏爱长回答；请设置 ppo.length_penalty，或用 evaluation.judge 引入不参与训练的评判",
        (
            "set rft.overlong_buffer, or let evaluation.judge check what the reward cannot see",
            "请设置 rft.overlong_buffer，或用 evaluation.judge 引入不参与训练的评判",
        ),
    ),
    Rule(
        "short",
        _shorter,
        "completions have shrunk from {start:.1f} to {length:.1f} tokens: the policy stops as soon as it can; check "
        "how the reward scores the shortest answers, lower ppo.length_penalty, and set ppo.score_baseline if scores "
        "are far from 0",
        "回答平均长度从 {start:.1f} 个 token 降至 {length:.1f} 个：策略一有机会就结束；"
        "请检查奖励给最短的回答打了多少分，并调低 ppo.length_penalty；若分数整体远离 0，请设置 ppo.score_baseline",
        (
            "check how the reward scores the shortest answers, or add the verifier length to reward.verifiers",
            "请检查奖励给最短的回答打了多少分，或在 reward.verifiers 中加入 length",
        ),
    ),
    Rule(
        "entropy",
        _entropy,
        "the entropy has collapsed from {start:.2f} to {entropy:.2f} nats per token: the policy gives the same "
        "answers every time and no longer explores; lower optimizer.learning_rate, raise ppo.kl_coefficient, or set "
        "ppo.entropy_coefficient",
        "熵从每个 token {start:.2f} nats 塌缩到 {entropy:.2f}：策略每次的回答几乎相同，不再探索；请调低 "
        "optimizer.learning_rate、调高 ppo.kl_coefficient，或设置 ppo.entropy_coefficient",
        (
            "lower optimizer.learning_rate, raise rft.clip_high or rft.kl_coefficient, or set rft.entropy_coefficient",
            "请调低 optimizer.learning_rate、调高 rft.clip_high 或 rft.kl_coefficient，或设置 rft.entropy_coefficient",
        ),
    ),
    Rule(
        "alike",
        _alike,
        "for {share:.0%} of the prompts all completions score the same (mean score {score:.2f}), so there is nothing "
        "to learn from them: they are too easy or too hard; set rft.dynamic_sampling, take other data, or raise "
        "generation.temperature",
        "{share:.0%} 的 prompt 的各条回答得分完全相同（平均分 {score:.2f}），从中学不到任何东西：题目过易或过难；"
        "请设置 rft.dynamic_sampling、更换数据，或调高 generation.temperature",
    ),
    Rule(
        "judge",
        _judge,
        "since rollout {rollout} the held-out score has risen from {score_then:.2f} to {score:.2f}, but the judge's "
        "has fallen from {best:.2f} to {now:.2f}: the policy is gaming the reward; return to the roles in best/, raise "
        "ppo.kl_coefficient, and fix the reward",
        "自 rollout {rollout} 以来，留出集上的奖励分数从 {score_then:.2f} 升至 {score:.2f}，评判的分数却从 {best:.2f} "
        "降至 {now:.2f}：策略在钻奖励的空子；请退回 best/ 中保存的角色，调高 ppo.kl_coefficient，并修正奖励",
        (
            "return to the roles in best/, raise rft.kl_coefficient, and fix the reward",
            "请退回 best/ 中保存的角色，调高 rft.kl_coefficient，并修正奖励",
        ),
    ),
    Rule(
        "held_out",
        _held_out,
        "since rollout {rollout} the score has risen from {score_then:.2f} to {score:.2f}, but on held-out prompts it "
        "has fallen from {best:.2f} to {now:.2f}: the policy is memorising its prompts; add prompts, or keep the roles "
        "in best/",
        "自 rollout {rollout} 以来，训练 prompt 上的分数从 {score_then:.2f} 升至 {score:.2f}，留出集上却从 {best:.2f} "
        "降至 {now:.2f}：策略只是记住了训练用的 prompt；请增加 prompt，或直接采用 best/ 中保存的角色",
    ),
    Rule(
        "refused",
        _refused,
        "{share:.0%} of the optimizer steps were refused because their loss or gradient was not finite; lower "
        "optimizer.learning_rate, and check their examples in refused/ and the reward for extreme values",
        "{share:.0%} 的优化步因 loss 或梯度出现 NaN 或无穷大而被拒绝；请调低 optimizer.learning_rate，并检查 refused/ "
        "中的样本以及奖励中的极端值",
    ),
)
