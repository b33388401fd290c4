"""Mutants of `onebase/planning`: parameters, and peak memory by part."""

from tests.mutants.mutant import Mutant

ARCHITECTURE = "onebase/planning/architecture.py"
MEMORY = "onebase/planning/memory.py"
WEIGHTS = "onebase/planning/weights.py"
PEAK = "onebase/planning/peak.py"
ACTIVATIONS = "onebase/planning/activations.py"
ALTERNATIVES = "onebase/planning/alternatives.py"
TEST_ARCHITECTURE = "tests/planning/test_architecture_table.py"
TEST_MEMORY = "tests/planning/test_memory.py"

MUTANTS = [
    Mutant(ARCHITECTURE, "return 0 if self.tied else", "return",
           "an output layer that is the embedding is counted twice", TEST_ARCHITECTURE),
    Mutant(ARCHITECTURE, "rank * (layer.inputs + layer.outputs)", "rank * layer.inputs",
           "adapters have no B", TEST_ARCHITECTURE),
    Mutant(ARCHITECTURE, "2 * self.head_size if family.head_norms", "0 if family.head_norms",
           "norms of heads are not counted", TEST_ARCHITECTURE),
    Mutant(WEIGHTS, "WEIGHT * base.linear_parameters + e *", "WEIGHT * base.parameters + e *",
           "four bits hold the embedding too", TEST_MEMORY),
    Mutant(MEMORY, "size / run.processes, f", "size, f",
           "a base that is spread is whole in every process", TEST_MEMORY),
    Mutant(ACTIVATIONS, "for index in range(lowest, base.layers)]", "for index in range(base.layers)]",
           "layers below the lowest adapter keep activations", TEST_MEMORY),
    Mutant(ACTIVATIONS, "base.hidden * e * len(above) + max(", "max(",
           "checkpointing keeps no layer's input", TEST_MEMORY),
    Mutant(ACTIVATIONS, "return float(2 * base.layers * base.kv_heads", "return float(2 * base.layers * base.heads",
           "every query head has keys of its own", TEST_MEMORY),
    Mutant(MEMORY, "size = MOMENTS * each * run.trained_parameters", "size = each * run.trained_parameters",
           "AdamW keeps one moment", TEST_MEMORY),
    Mutant(MEMORY, "found.append(max(passing", "found.append(min(passing",
           "of what passes while loading the smaller counts", TEST_MEMORY),
    Mutant(MEMORY, 'if base.packs and run.quantization == "none":', "if base.packs:",
           "weights in 4 bits are laid together", TEST_MEMORY),
    Mutant(PEAK, "return max(self.phases, key", "return min(self.phases, key",
           "the peak is the lowest phase", TEST_MEMORY),
    Mutant(ALTERNATIVES, "(WEIGHT_BYTES + MOMENT_BYTES) * parameters", "MOMENT_BYTES * parameters",
           "the weights of a model in full take nothing", TEST_MEMORY),
    Mutant(ALTERNATIVES, "(2 * TRAINED_BYTES + 2 * e) * count", "(4 * TRAINED_BYTES) * count",
           "frozen models have moments", TEST_MEMORY),
]  # fmt: skip
