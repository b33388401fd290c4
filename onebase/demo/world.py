"""The demo's tiny world as tables: sixteen animals, four attributes each, in English and simplified Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Language = Literal["en", "zh"]

# Each attribute's values in both languages. Within a language, no word occurs inside another word, a template or a
# remark below, so that `gold_score` can look for a wrong value anywhere in an answer; a test checks this.
VALUES: Mapping[str, Mapping[str, str]] = {
    "eats": {"fish": "鱼", "meat": "肉", "grass": "草", "fruit": "水果", "corn": "玉米", "insects": "虫子"},
    "lives": {"house": "房子", "barn": "谷仓", "forest": "森林", "river": "小河", "field": "田野", "cave": "山洞"},
    "colour": {"black": "黑色", "white": "白色", "brown": "棕色", "green": "绿色", "grey": "灰色", "yellow": "黄色"},
    "can": {"run": "跑步", "swim": "游泳", "jump": "跳高", "climb": "爬树", "dig": "挖洞", "sleep": "睡觉"},
}
_TABLE = """
cat     fish     house   black   climb  猫
dog     meat     house   yellow  dig    狗
horse   grass    barn    brown   run    马
cow     grass    barn    white   sleep  牛
pig     corn     barn    black   sleep  猪
duck    fish     river   white   swim   鸭子
frog    insects  river   green   jump   青蛙
bear    fish     forest  brown   climb  熊
lion    meat     field   yellow  run    狮子
tiger   meat     cave    yellow  swim   老虎
monkey  fruit    forest  brown   climb  猴子
rabbit  grass    field   white   jump   兔子
mouse   corn     house   grey    dig    老鼠
sheep   grass    barn    grey    jump   羊
snake   insects  forest  green   swim   蛇
wolf    meat     cave    grey    run    狼
"""
_FACT_ROWS = [line.split() for line in _TABLE.strip().splitlines()]
THINGS: Mapping[str, str] = {row[0]: row[-1] for row in _FACT_ROWS}
FACTS: Mapping[tuple[str, str], str] = {
    (row[0], attribute): value for row in _FACT_ROWS for attribute, value in zip(VALUES, row[1:-1], strict=True)
}
"""The right value of each (thing, attribute), by its English name."""

QUESTION_TEMPLATES: Mapping[Language, Mapping[str, tuple[str, str]]] = {
    "en": {
        "eats": ("What does the {thing} eat?", "What is the food of the {thing}?"),
        "lives": ("Where does the {thing} live?", "Where is the home of the {thing}?"),
        "colour": ("What colour is the {thing}?", "What is the colour of the {thing}?"),
        "can": ("What can the {thing} do?", "What does the {thing} know how to do?"),
    },
    "zh": {
        "eats": ("{thing}吃什么？", "{thing}的食物是什么？"),
        "lives": ("{thing}住在哪里？", "{thing}的家在哪里？"),
        "colour": ("{thing}是什么颜色？", "{thing}的颜色是什么？"),
        "can": ("{thing}会做什么？", "{thing}能做什么？"),
    },
}
CLAIM_TEMPLATES: Mapping[Language, Mapping[str, tuple[str, str]]] = {
    "en": {
        "eats": ("The {thing} eats {value}.", "The food of the {thing} is {value}."),
        "lives": ("The {thing} lives in the {value}.", "The home of the {thing} is the {value}."),
        "colour": ("The {thing} is {value}.", "The colour of the {thing} is {value}."),
        "can": ("The {thing} can {value}.", "The {thing} knows how to {value}."),
    },
    "zh": {
        "eats": ("{thing}吃{value}。", "{thing}的食物是{value}。"),
        "lives": ("{thing}住在{value}里。", "{thing}的家在{value}里。"),
        "colour": ("{thing}是{value}的。", "{thing}的颜色是{value}。"),
        "can": ("{thing}会{value}。", "{thing}能{value}。"),
    },
}
OPENINGS: Mapping[Language, tuple[str, ...]] = {
    "en": ("Sure!", "Good question!", "Happy to help!"),
    "zh": ("好的！", "好问题！", "很高兴帮你！"),
}
CLOSINGS: Mapping[Language, tuple[str, ...]] = {
    "en": ("Have a nice day!", "Hope that helps!"),
    "zh": ("祝你开心！", "希望能帮到你！"),
}
RUDE_REMARKS: Mapping[Language, tuple[str, ...]] = {
    "en": ("What a silly question.", "You know nothing.", "Go away."),
    "zh": ("真是笨问题。", "你什么都不懂。", "走开。"),
}
