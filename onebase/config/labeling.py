"""The config of `onebase label`: what is ranked, by how many people, and where the page is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from onebase.config.values import (
    Columns,
    Count,
    Device,
    Float,
    Group,
    Int,
    Paths,
    PathText,
    Positive,
    Said,
    Share,
    Strings,
    Whole,
    fail_on,
)


class AnswersGroup(Group):
    """Answers sampled from roles while people rank, so that there is always something to rank."""

    roles: Strings = []
    """Folders of policy roles on one base, in turn; empty = nothing is sampled."""
    prompts: Paths = []
    """Files with the prompts to answer, each asked once."""
    model: PathText | None = None
    """Folder or hub name of the base; null = where the roles say."""
    per_prompt: Annotated[Int, Field(ge=2, le=9)] = 4
    """Answers to rank per prompt, 2 to 9."""
    temperature: Positive = 1.0
    """Divides the logits."""
    top_p: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Sample among the likeliest tokens that together have this probability; 1 = off."""
    max_tokens: Count = 512
    """Longest answer, in tokens."""
    queue: Count = 20
    """How many tasks are to wait for a judgement; more are sampled whenever there are fewer."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1; auto = the first GPU, else cpu."""


class OverlapGroup(Group):
    """How many tasks several people judge, which is what agreement is measured on."""

    share: Annotated[Float, Field(ge=0, le=1)] = 0.2
    """Share of the tasks that go to several people."""
    people: Annotated[Int, Field(ge=2)] = 2
    """How many people judge each of these."""


class LabelConfig(Group):
    """Have people rank answers in a browser."""

    name: Said = "Ranking"
    """What the pages are headed with."""
    database: Said = "sqlite:///label.db"
    """sqlite:///FILE, beside this file unless it is absolute, or postgresql://USER@HOST/NAME."""
    tasks: Paths = []
    """Data files whose rows have a prompt and 2 to 9 answers; grades in them are not shown to anybody."""
    gold: Paths = []
    """Data files whose rows have grades: questions with a known answer, mixed in unseen."""
    columns: Columns | None = None
    """What the keys of these files are read as, as data.columns."""
    answers: AnswersGroup = AnswersGroup()
    overlap: OverlapGroup = OverlapGroup()
    gold_share: Share = 0.1
    """Share of what a person is asked that is a gold question, while there are any."""
    rubric: Said | None = None
    """What to judge by, in Markdown: a text, or a file that ends in .md; shown beside the answers."""
    lease_seconds: Annotated[Int, Field(ge=30)] = 1800
    """How long a task is kept for the person who opened it."""
    daily_goal: Whole = 50
    """Rankings a day that the bar counts towards; 0 = no bar."""
    language: Literal["auto", "en", "zh"] = "auto"
    """Language of the pages; auto = the browser's."""
    host: Said = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every one of this machine, best behind a proxy that speaks https."""
    port: Annotated[Int, Field(ge=0, le=65535)] = 8100
    """Port to listen on; 0 = any free one."""
    address: Said | None = None
    """Address under which people reach the page, such as https://rank.example.org; null = where it listens."""
    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    """Which tasks overlap, and the sampled answers."""

    @model_validator(mode="after")
    def _there_is_something_to_rank(self) -> LabelConfig:
        problems = []
        if bool(self.answers.roles) != bool(self.answers.prompts):
            missing, given = ("prompts", "roles") if self.answers.roles else ("roles", "prompts")
            problems.append(f"'answers.{given}' needs 'answers.{missing}' beside it")
        if self.address is not None and not self.address.startswith(("https://", "http://")):
            problems.append(f"'address' = {self.address} should start with https:// or http://")
        fail_on(problems)
        return self


def rubric_of(config: LabelConfig, folder: Path) -> Path | str | None:
    """The rubric's file, a name that ends in .md and stands in the project's folder, or its text."""
    if config.rubric is not None and "\n" not in config.rubric and config.rubric.strip().endswith(".md"):
        return folder / config.rubric.strip()
    return config.rubric
