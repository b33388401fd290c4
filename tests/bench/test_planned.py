"""Which runs are measured beside their plans, how they are written down, and the table made of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bench import planned, planned_cells, planned_table
from bench.planned_cells import FORMATS, LENGTHS, SIZES, VERBS, WAYS, Cell, every_cell
from bench.planned_forks import merged
from bench.planned_table import Compared
from onebase.config.files import load_config
from onebase.config.verbs import VERB_CONFIGS
from onebase.errors import ConfigError
from tests.tiny_models import tiny_tokenizer

PLAIN = Cell("sft", "fp32", "lora", "small", 64)
REFUSED = {
    *(("sft", "nf4", "full"), ("reward", "nf4", "full")),
    *(("pretrain", number_format, way) for number_format in FORMATS for way in ("lora", "upper half")),
    *(("pretrain", "nf4", way) for way in WAYS),
    *((verb, number_format, "full") for verb in ("dpo", "ppo", "rft", "iterate") for number_format in FORMATS),
}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "base-small").mkdir()
    tiny_tokenizer().save_pretrained(tmp_path / "base-small")
    return tmp_path


def test_every_combination_is_a_cell_once_and_the_plainest_of_each_verb_come_first() -> None:
    cells = every_cell()
    assert len(set(cells)) == len(cells) == 8 * 3 * 3 * 3 * 2
    assert [cell.verb for cell in cells[:8]] == list(VERBS)
    assert {(c.number_format, c.way, c.size, c.length) for c in cells[:8]} == {("fp32", "lora", "small", 64)}
    assert len({cell.name for cell in cells}) == len(cells)


@pytest.mark.parametrize("verb", VERBS)
def test_a_configuration_is_one_that_the_verb_reads_or_is_known_to_refuse(work: Path, verb: str) -> None:
    for number_format in FORMATS:
        for way in WAYS:
            cell = Cell(verb, number_format, way, "small", 64)
            path = planned_cells.write_cell(cell, work)
            if (verb, number_format, way) in REFUSED:
                with pytest.raises(ConfigError):
                    load_config(VERB_CONFIGS[verb], path, [])
            else:
                config = load_config(VERB_CONFIGS[verb], path, [])
                assert config.batch.microbatch_tokens == 64


@pytest.mark.parametrize("length", LENGTHS)
def test_a_row_is_nearly_as_long_as_its_cell_says(work: Path, length: int) -> None:
    tokenizer = Tokenizer.from_file(str(work / "base-small" / "tokenizer.json"))
    rows = planned_cells.rows_of(Cell("sft", "fp32", "lora", "small", length), tokenizer)
    whole = f"\n\nHuman: {rows[0]['prompt']}\n\nAssistant: {rows[0]['completion']}"
    # A byte is a token here, and a word may be nine.
    assert length - 20 <= len(tokenizer.encode(whole).ids) + 1 <= length


def test_a_run_is_measured_with_what_its_children_hold(tmp_path: Path) -> None:
    script = "import subprocess, sys, time; held = b'x' * 90_000_000; subprocess.run([sys.executable, '-c', CHILD])"
    child = "import time; held = b'x' * 50_000_000; time.sleep(0.5)"
    process = subprocess.Popen([sys.executable, "-c", script.replace("CHILD", repr(child))])
    watch = planned.Watch(process.pid)
    watch.start()
    process.wait()
    watch.stop()
    assert 50e6 < watch.children < 85e6
    assert 90e6 < watch.anonymous < 130e6


def test_a_process_that_is_gone_holds_nothing() -> None:
    assert planned.read_status(2**30) == {}
    assert list(planned.descendants(2**30)) == []
    assert planned.private_bytes(2**30) == 0


def test_adjoining_pages_become_one_range() -> None:
    assert merged([(0, 4), (4, 4), (16, 4)]) == [(0, 8), (16, 4)]


def test_a_line_tells_which_cell_it_is_of() -> None:
    assert planned.name_of({**PLAIN.keys(), "peak_bytes": 1}) == "sft-fp32-lora-small-64"


def of(planned_bytes: float, measured: float, length: int = 64) -> Compared:
    return Compared(Cell("sft", "fp32", "lora", "small", length), round(measured), round(planned_bytes))


def test_a_cell_misses_if_it_is_above_a_gigabyte_and_off_by_more_than_a_tenth() -> None:
    assert [of(1.2e9, 1.1e9).misses, of(1.3e9, 1.1e9).misses, of(0.5e9, 0.9e9).misses] == [False, True, False]
    assert planned_table.within([of(1.2e9, 1.1e9), of(1.3e9, 1.1e9), of(0.5e9, 0.9e9)]) == "1 of 2 (50%)"
    assert planned_table.within([]) == "0 of 0"


def test_the_table_marks_misses_and_small_cells_and_says_why() -> None:
    compared = [of(1.3e9, 1.1e9), of(0.5e9, 0.9e9, 256)]
    text = planned_table.page_part(compared, {"too odd": [PLAIN]}, {"processor": "P", "memory_gib": 8})
    assert "| sft, fp32, lora | **1,300 / 1,100 (+18%)** | *500 / 900 (-44%)* |" in text
    assert "**0 of 1 (0%) of these are within 10%**" in text
    assert "- sft, fp32, lora, small, 64 (+18%): not explained yet" in text
    assert "- sft fp32 lora: too odd" in text
    assert len(SIZES) * len(LENGTHS) == text.split("| run |")[1].splitlines()[0].count("|")


def test_a_refusal_is_compared_without_the_name_of_its_file() -> None:
    said = "error: /a/config.yaml: 'lora.r' = 0 would train the base"
    assert planned_table.reason_of(said) == "'lora.r' = 0 would train the base"


def test_the_share_is_shown_by_verb_and_the_worst_cells_first() -> None:
    lines = planned_table.overview([of(1.2e9, 1.1e9), of(1.4e9, 1.1e9, 256)])
    assert lines[0] == "all: 1 of 2 (50%) cells above 1 GB within 10%"
    assert "  sft: 1 of 2 (50%), errors +9% .. +18% .. +27%" in lines
    assert [line[:6].strip() for line in lines if " MB measured" in line] == ["off", ""]
