"""A scaling law of our own: small models trained with `onebase pretrain`, and larger and longer runs held back.

    python -m bench.own_law                 # beside ../shared/data; writes docs/planning.md between its two marks
    python -m bench.own_law --report        # the page and the picture again, from bench/own_law.json
    python -m bench.own_law --known 20      # how often the interval holds a run held back, where the law is known

Six computes, and sizes from 4 thousand to 10 million parameters, five or six at each: what isoFLOP profiles are made of
(Hoffmann et al. 2022, approach 2). The runs held back are predicted from the others by what `onebase plan scaling
--fit` does. A run that is in bench/own_law.json is not trained again, so that a stopped benchmark goes on where it was.

The text is English (Shakespeare, Grimm, Wikipedia, short stories), a token is a byte, and no run sees a text twice. A
run uses one thread and repeats byte for byte. Seconds are of the processor, which other work on the machine disturbs
little.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.results import keep, read_results, stamp
from bench.side import ROOT
from onebase.cli.main import main as onebase
from onebase.files import write_atomically
from onebase.planning.fit import Fitted, Run, fit, profiles
from onebase.planning.laws import Parametric
from onebase.planning.picture import draw_law
from onebase.planning.scaling import count

TEXTS = ROOT.parent / "shared" / "data" / "text_en"
RESULTS = Path(__file__).with_name("own_law.json")
PAGE = ROOT / "docs" / "planning.md"
PICTURE = ROOT / "docs" / "planning" / "own_law.png"
WIDE_PICTURE = PICTURE.with_name("own_law_wide.png")
MARKS = ("<!-- written by bench/own_law.py -->\n", "<!-- end of what it wrote -->\n")
VOCABULARY = 260
"""256 bytes, 3 special tokens and one merge: the smallest vocabulary there is."""
BLOCK, MINIBATCH = 128, 8
"""Bytes of a sequence, and sequences of a step."""
HELD_OUT = 0.03
FEWEST_STEPS = 60
"""With fewer a run has hardly left its warm-up."""
MOST_STEPS = 3920
"""As many as the texts are long."""
WARMUP = 0.05
LEARNING_RATE = 0.5
"""Times the width: the best rate falls about as 1 / width (Yang et al. 2022, "Tensor Programs V")."""


@dataclass(frozen=True, slots=True)
class Size:
    """A model's shape."""

    width: int
    layers: int

    @property
    def parameters(self) -> int:
        """All weights, with the embeddings, which are tied."""
        inner = -(-self.width * 8 // 3 // 16) * 16
        layer = 4 * self.width**2 + 3 * self.width * inner + 2 * self.width
        return VOCABULARY * self.width + self.layers * layer + self.width


@dataclass(frozen=True, slots=True)
class Planned:
    """A run: a size, and the steps that use its compute up."""

    size: Size
    compute: float

    @property
    def steps(self) -> int:
        return round(self.compute / (6 * self.size.parameters * BLOCK * MINIBATCH))

    @property
    def name(self) -> str:
        return f"{self.size.parameters / 1e6:.2f}M-{self.compute:.1e}"


SIZES = tuple(Size(*shape) for shape in ((48, 3), (64, 4), (96, 4), (128, 5), (176, 6), (256, 6), (352, 7)))
"""0.1 to 10 million parameters, which the law is fitted to."""
SMALLER_SIZES = tuple(Size(width, 2) for width in (8, 16, 24, 32))
"""4 to 35 thousand parameters: the best for the least compute is among these."""
COMPUTES = (5e10, 1e11, 2e11, 5e11, 1.25e12, 5e12)


def runs_with(sizes: Sequence[Size]) -> list[Planned]:
    """The runs of these sizes: every compute that gives neither too few steps nor more than there are texts."""
    runs = [Planned(size, compute) for compute in COMPUTES for size in sizes]
    return [run for run in runs if FEWEST_STEPS <= run.steps <= MOST_STEPS]


FITTED, SMALLER = runs_with(SIZES[:-1]), runs_with(SMALLER_SIZES)
HELD_BACK = [Planned(SIZES[-1], 5e12), Planned(SIZES[3], 2.5e12)]
"""One larger than any other, one with a compute between those of the others."""

KNOWN, NOISE = Parametric("known", e=0.5, a=15.0, b=25.0, alpha=0.34, beta=0.23), 0.015
"""A law and its noise that are near what small models of bytes give."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, default=TEXTS, help="folder of .txt.gz files")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "own_law", help="where the runs are kept")
    parser.add_argument("--report", action="store_true", help="train nothing; write the page again")
    parser.add_argument("--known", type=int, metavar="SEEDS", help="train nothing; make losses by a known law instead")
    options = parser.parse_args()
    if options.known:
        inside = sum(holds(seed) for seed in range(options.known))
        print(f"{inside} of {options.known * len(HELD_BACK)} runs held back lie in their interval")
        return 0
    if options.report:
        write_page()
        return 0
    texts = sorted(options.texts.glob("*.txt.gz"))
    if not texts:
        print(f"error: {options.texts}: no .txt.gz file here; give a folder with --texts", file=sys.stderr)
        return 2
    write_texts(texts, options.folder)
    for planned in [*FITTED, *SMALLER, *HELD_BACK]:
        train(planned, options.folder)
    write_page()
    return 0


def write_texts(files: Sequence[Path], folder: Path, *, seed: int = 0) -> None:
    """Writes train.txt and held_out.txt: the files' paragraphs, shuffled, each once."""
    paragraphs = [
        part.strip()
        for file in files
        for part in gzip.decompress(file.read_bytes()).decode("utf-8").split("\n\n")
        if part.strip()
    ]
    paragraphs = sorted(set(paragraphs))
    random.Random(seed).shuffle(paragraphs)
    held_out = round(HELD_OUT * len(paragraphs))
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in (("held_out.txt", paragraphs[:held_out]), ("train.txt", paragraphs[held_out:])):
        write_atomically(folder / name, "\n\n".join(own) + "\n")


def train(planned: Planned, folder: Path) -> None:
    """Trains one model unless that is done, and keeps its figures.

    Raises:
        SystemExit: the run failed; it has said why.
    """
    if planned.name in read_results(RESULTS).get("runs", {}):
        return
    size, steps = planned.size, planned.steps
    config = {
        "output_dir": str(folder / planned.name),
        "threads": 1,
        "max_steps": steps,
        "tiny": {
            "vocab_size": VOCABULARY,
            "hidden_size": size.width,
            "num_layers": size.layers,
            "num_heads": 4,
            "max_length": BLOCK,
        },
        "data": {"train": str(folder / "train.txt"), "eval": str(folder / "held_out.txt")},
        "optimizer": {
            "learning_rate": LEARNING_RATE / size.width,
            "schedule": "cosine",
            "warmup_steps": max(1, round(WARMUP * steps)),
        },
        "batch": {"minibatch": MINIBATCH, "microbatch_tokens": 4096},
        "block_length": BLOCK,
    }
    path = folder / f"{planned.name}.yaml"
    write_atomically(path, json.dumps(config))
    began, worked = time.perf_counter(), time.process_time()
    code = onebase(["pretrain", str(path)])
    if code:
        raise SystemExit(code)
    summary = json.loads((folder / planned.name / "summary.json").read_text(encoding="utf-8"))
    rows = (folder / planned.name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    tokens = sum(json.loads(row)["num_tokens"] for row in rows)
    assert summary["parameters"] == size.parameters
    keep(
        planned.name,
        {
            "parameters": summary["parameters"],
            "tokens": tokens,
            "loss": summary["eval_loss_after"],
            "cpu_seconds": round(time.process_time() - worked, 1),
            "seconds": round(time.perf_counter() - began, 1),
            **stamp(),
        },
        RESULTS,
        within="runs",
    )


def holds(seed: int) -> int:
    """How many of the runs held back lie in their intervals, if all losses are of the known law and its noise."""
    draw = random.Random(seed)

    def made(planned: Planned) -> Run:
        size, tokens = planned.size.parameters, planned.steps * BLOCK * MINIBATCH
        return Run(size, tokens, KNOWN.loss(size, tokens) * math.exp(draw.gauss(0.0, NOISE)), planned.name)

    fitted = fit([made(planned) for planned in FITTED])
    found = 0
    for run in map(made, HELD_BACK):
        _, low, high = fitted.loss(run.parameters, run.tokens)
        found += low <= run.loss <= high
    return found


def runs_of(planned: Sequence[Planned], measured: Mapping[str, Any]) -> list[Run]:
    """Those of the planned runs that are done."""
    return [
        Run(measured[one.name]["parameters"], measured[one.name]["tokens"], measured[one.name]["loss"], one.name)
        for one in planned
        if one.name in measured
    ]


def text(measured: Mapping[str, Any], fitted: Fitted, wide: Fitted, held_back: Sequence[Run]) -> str:
    """Everything between the marks: the law of the sizes that it is asked for, then that of all runs."""
    machine = measured[fitted.runs[0].name]
    seconds = sum(measured[run.name]["cpu_seconds"] for run in (*wide.runs, *held_back))
    lines = [
        f"{len(fitted.runs)} runs, {len(wide.runs) - len(fitted.runs)} smaller ones, and {len(held_back)} held back: "
        f"{seconds:,.0f} seconds of one core, which other work slowed down",
        f"({machine['processor']}, {machine['date']}). English, a byte a token, every text seen once.",
        "",
        "| parameters | tokens | 6 N D | loss | the law says |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in sorted(fitted.runs, key=lambda run: (run.parameters * run.tokens // 1e10, run.parameters)):
        says = fitted.law.loss(run.parameters, run.tokens)
        lines.append(f"| {_amounts(run)} | {run.loss:.3f} | {says:.3f} |")
    for run in held_back:
        lines.append(f"| {_amounts(run)} | {run.loss:.3f}, held back | {_predicted(fitted, run)} |")
    lines += ["", *_law(fitted), "", f"![loss over data and size, and at equal compute](planning/{PICTURE.name})", ""]
    sizes = [run.parameters for run in wide.runs if run not in fitted.runs]
    span = f"{count(min(sizes))} to {count(max(sizes))} parameters"
    lines += [
        f"**With the {len(sizes)} smaller runs**, of {span}, among which the best size is for the least compute:",
        "",
        *_law(wide),
        *(f"Held back, {count(run.parameters)}: {run.loss:.3f}; {_predicted(wide, run)}." for run in held_back),
        "",
        f"![the same with the smaller runs](planning/{WIDE_PICTURE.name})",
        "",
    ]
    return "\n".join(lines)


def _predicted(fitted: Fitted, run: Run) -> str:
    says, low, high = fitted.loss(run.parameters, run.tokens)
    return f"{says:.3f} [{low:.3f}, {high:.3f}]: {'inside' if low <= run.loss <= high else '**outside**'}"


def _law(fitted: Fitted) -> list[str]:
    """The law in figures, and the best size at every compute."""
    law = fitted.law
    lines = [
        f"L(N, D) = {law.e:.3g} + {law.a:.3g} / N^{law.alpha:.2f} + {law.b:.3g} / D^{law.beta:.2f} nats a byte; single "
        f"runs scatter by {100 * fitted.noise:.1f} % about it."
    ]
    if fitted.undecided:
        what = " and ".join(fitted.undecided)
        lines.append(f"The runs leave {what} open: they lie at the edge of what the fit tries.")
    found = profiles(fitted.runs)
    for profile in found:
        if profile.best is not None:
            size, loss = profile.best
            lines.append(f"At {profile.compute:.1e} FLOP the best size is {count(size)}, with a loss of {loss:.3f}.")
    if outside := [f"{profile.compute:.1e}" for profile in found if profile.best is None]:
        lines.append(f"At {', '.join(outside)} FLOP the best size is smaller or larger than all runs.")
    return lines


def _amounts(run: Run) -> str:
    return f"{count(run.parameters)} | {count(run.tokens)} | {6 * run.parameters * run.tokens:.1e}"


def fits(measured: Mapping[str, Any]) -> tuple[Fitted, Fitted]:
    """The law fitted to the runs that it is asked for, and to all."""
    runs = runs_of(FITTED, measured)
    return fit(runs), fit([*runs, *runs_of(SMALLER, measured)])


def write_page() -> None:
    """Fits the laws, draws them, and puts all between the marks of docs/planning.md."""
    measured = read_results(RESULTS)["runs"]
    (fitted, wide), held_back = fits(measured), runs_of(HELD_BACK, measured)
    PICTURE.parent.mkdir(exist_ok=True)
    draw_law(fitted, PICTURE, held_back=tuple(held_back))
    draw_law(wide, WIDE_PICTURE, held_back=tuple(held_back))
    page = PAGE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    assert begin and end, f"{PAGE.name} has lost the marks {MARKS}"
    write_atomically(PAGE, f"{before}{begin}\n{text(measured, fitted, wide, held_back)}\n{end}{after}")


if __name__ == "__main__":
    sys.exit(main())
