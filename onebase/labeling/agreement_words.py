"""The words of the report on agreement, in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping

from onebase.labeling.agreement import FEWEST_TASKS, Figure
from onebase.labeling.words import Language

WORDS: Mapping[str, tuple[str, str]] = {
    # Why there is no figure
    "few-shared": (
        "Too few shared tasks: {number}; at least {fewest} are needed.",
        "共同完成的任务太少：只有 {number} 个，至少需要 {fewest} 个。",
    ),
    "few-people": (
        "Needs three people with at least {fewest} shared tasks each.",
        "需要三个人，每人至少与他人共同完成 {fewest} 个任务。",
    ),
    "no-gold": ("No gold question ranked yet.", "还没有对标准题排序。"),
    "all-alike": (
        "Undefined: everybody said the same of everything.",
        "无法计算：所有人的判断完全相同。",
    ),
    "nothing-shared": (
        "No two people have ranked the same task yet; agreement shows once they have.",
        "还没有两个人对同一任务排序；有了之后才能计算一致性。",
    ),
    "nobody": ("Nobody has judged a task yet.", "还没有人完成任务。"),
    "no-disputes": ("Nobody disagrees.", "没有分歧。"),
    # The page
    "summary": (
        "Judgements: {judgements}. Tasks: {tasks}; ranked by two or more people: {shared}.",
        "{tasks} 个任务共有 {judgements} 次判断；{shared} 个任务由两人或更多人排序。",
    ),
    "brackets": ("In brackets: 95 % intervals.", "方括号内为 95% 置信区间。"),
    "overall": ("All people", "总体"),
    "coefficient": ("Coefficient", "系数"),
    "value": ("Value", "数值"),
    "meaning": ("Meaning", "含义"),
    "rests-on": ("Tasks", "任务数"),
    "pairwise_agreement": ("Pairwise agreement", "两两一致率"),
    "alpha_nominal": ("Krippendorff's α, pairs", "Krippendorff α（成对结果）"),
    "alpha_ordinal": ("Krippendorff's α, places", "Krippendorff α（名次）"),
    "kendalls_w": ("Kendall's W", "Kendall W"),
    "fleiss_kappa": ("Fleiss' κ", "Fleiss κ"),
    "pairwise_agreement-means": (
        "how often two people say the same of two answers (better, tied, worse)",
        "两个人对一对回答给出相同判断（更好、相当、更差）的比例",
    ),
    "alpha_nominal-means": (
        "the same, corrected for chance: 1 is perfect, 0 is guessing",
        "同上，但扣除偶然一致：1 为完全一致，0 为随机",
    ),
    "alpha_ordinal-means": (
        "the same for the places of answers: a near miss costs less than a reversal",
        "按名次计算：相差一名比完全颠倒扣得少",
    ),
    "kendalls_w-means": (
        "how alike a task's rankings are, mean over tasks; by chance it is 1 / people, not 0",
        "同一任务各排序的相似程度，取各任务的平均；随机时为 1/人数，而不是 0",
    ),
    "fleiss_kappa-means": (
        "agreement on pairs beyond chance, over the tasks that the most people ranked",
        "成对判断在偶然之外的一致性，只用排序人数最多的任务",
    ),
    "people-title": ("Each person", "每个人"),
    "person": ("Person", "姓名"),
    "judged": ("Judged", "已判断"),
    "seconds": ("Seconds (median)", "用时（秒，中位数）"),
    "others": ("With the others", "与他人一致"),
    "bradley_terry": ("Reliability", "可靠度"),
    "gamma": ("Sharpness γ", "区分度 γ"),
    "dawid_skene": ("Accuracy (Dawid–Skene)", "准确率（Dawid–Skene）"),
    "gold": ("Gold questions", "标准题"),
    "skipped": ("Skipped", "跳过"),
    "all_bad": ("All bad", "全都不好"),
    "people-means": (
        "With the others: share of pairs as most others see them. Reliability: estimated share of pairs ordered right, "
        "without knowing the truth (Bradley–Terry). Gold questions: share of pairs in the known order.",
        "与他人一致：与多数人判断相同的比例。可靠度：在不知道正确答案时估计的排对比例（Bradley–Terry）。"
        "标准题：与已知顺序相同的比例。",
    ),
    "between-title": ("Two by two", "两两比较"),
    "between": ("Two people", "两人"),
    "kappa": ("Cohen's κ", "Cohen κ"),
    "agreement-share": ("Agreement", "一致率"),
    "disputed-title": ("Most disputed tasks", "分歧最大的任务"),
    "task": ("Task {id}", "任务 {id}"),
    "together": ("together: {order}", "综合：{order}"),
    "note": ("note: {note}", "备注：{note}"),
}


def say(key: str, language: Language, **values: object) -> str:
    """The words for a key."""
    return WORDS[key][language == "zh"].format(**values)


def shown_figure(figure: Figure, language: Language, *, digits: int = 2) -> str:
    """The figure with its interval, or a sentence that says why there is none."""
    if figure.interval is None:
        return say(figure.why, language, number=figure.number, fewest=FEWEST_TASKS)
    return figure.interval.text(digits)
