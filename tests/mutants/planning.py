"""Mutants of `onebase/planning`: operations, bytes, seconds, money, and what a machine keeps."""

from tests.mutants.mutant import Mutant

OPERATIONS = "onebase/planning/operations.py"
WORK = "onebase/planning/work.py"
RATES = "onebase/planning/rates.py"
TIME = "onebase/planning/time.py"
CALIBRATION = "onebase/planning/calibration.py"
FIRST_STEPS = "onebase/planning/first_steps.py"

TEST_OPERATIONS = "tests/planning/test_operations.py"
TEST_TIME = "tests/planning/test_time.py"
TEST_RATES = "tests/planning/test_rates.py"
TEST_CALIBRATION = "tests/planning/test_calibration.py"
TEST_FIRST_STEPS = "tests/planning/test_first_steps.py"

MUTANTS = [
    Mutant(OPERATIONS, "prompt * (prompt + 1) / 2 +", "prompt * prompt / 2 +",
           "a prompt's tokens do not attend to themselves", TEST_OPERATIONS),
    Mutant(OPERATIONS, "2 * 2 * parameters * tokens.real", "2 * parameters * tokens.real",
           "full training counts no gradients of weights", TEST_OPERATIONS),
    Mutant(OPERATIONS, "parameters - below +", "parameters +",
           "gradients pass below the lowest adapter", TEST_OPERATIONS),
    Mutant(OPERATIONS, "self.base.layers - (min(self.adapter.layers", "self.base.layers - 0 * (min(self.adapter.layers",
           "adapters on upper layers cost as much as on all", TEST_OPERATIONS),
    Mutant(WORK, "max(0.0, longest - 1)", "longest",
           "the first token is decoded a second time", TEST_TIME),
    Mutant(WORK, "pairs = drawn * (prompt + new_tokens / 2)", "pairs = drawn * new_tokens / 2",
           "decoding does not read the prompt's keys", TEST_TIME),
    Mutant(WORK, "passes * weights * weight_bytes +", "weights * weight_bytes +",
           "weights are read once for all passes", TEST_TIME),
    Mutant(WORK, "math.ceil(together / fit - 1e-9)", "math.floor(together / fit)",
           "a microbatch holds more than its budget", TEST_TIME),
    Mutant(WORK, "forward.moved + again +", "forward.moved +",
           "the backward pass reads no weights", TEST_TIME),
    Mutant(WORK, "NF4_BYTES_PER_WEIGHT + 2 * number", "NF4_BYTES_PER_WEIGHT",
           "expanding four bits costs nothing", TEST_TIME),
    Mutant(WORK, "run.steps * trained * float(OPTIMIZER_BYTES)", "trained * float(OPTIMIZER_BYTES)",
           "the optimizer takes one step", TEST_TIME),
    Mutant(WORK, "spread = 1 + (lengths", "spread = 1 + 0 * (lengths",
           "uneven lengths have no more pairs than even ones", TEST_TIME),
    Mutant(RATES, "(solved >= 0).all() and", "",
           "a part of a rate is negative", TEST_RATES),
    Mutant(RATES, "wanted = 1 - rows[:, 2] / best", "wanted = numpy.ones(len(rows))",
           "what the best product takes is counted twice", TEST_RATES),
    Mutant(RATES, "rate.of_operation * self.products[self.dtype]", "rate.of_operation / self.products[self.dtype]",
           "a faster number format takes longer", TEST_RATES),
    Mutant(TIME, "seconds / 3600 * price_per_hour", "seconds / 60 * price_per_hour",
           "a price by the hour is taken by the minute", TEST_TIME),
    Mutant(TIME, "1000 * total / tokens if tokens", "total / tokens if tokens",
           "a thousand tokens cost as much as one", TEST_TIME),
    Mutant(TIME, "seconds(item.work) / run.processes", "seconds(item.work)",
           "processes do not share the work", TEST_TIME),
    Mutant(TIME, 'return "generate" if item.kind == "decode" else "score"', 'return "update"',
           "evaluations are corrected as updates are", TEST_TIME),
    Mutant(CALIBRATION, "each.measured / each.planned\n", "each.planned / each.measured\n",
           "a correction doubles the error", TEST_CALIBRATION),
    Mutant(CALIBRATION, "like[-LATEST:]", "like",
           "old runs correct as much as new ones", TEST_CALIBRATION),
    Mutant(CALIBRATION, "if phase == MEMORY else rates.source", "if phase == MEMORY else each.source",
           "runs from before a calibration correct it", TEST_CALIBRATION),
    Mutant(FIRST_STEPS, "really = times_of(as_sampled(run, rows), rates)", "really = times_of(run, rates)",
           "short answers are taken for a fast machine", TEST_FIRST_STEPS),
    Mutant(FIRST_STEPS, "statistics.median(values)", "statistics.fmean(values)",
           "a slow first step counts in full", TEST_FIRST_STEPS),
]  # fmt: skip
