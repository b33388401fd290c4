"""Runs the whole benchmark: ours beside its peers, then ours alone, then the report.

usage: python -m bench [options of the workload, see --help]          (`make bench`)

Exit codes: 1 a side failed (the others are measured and kept), 2 the peers' programs or the data are missing.
"""

from __future__ import annotations

import sys

from bench import compare, growth, memory, phases, report, utilisation
from bench.options import FAILED, MISSING, Measurement, measured_by, parser, workload_of
from bench.results import RESULTS

PARTS = (
    Measurement("rows beside the peers", compare.measure),
    Measurement("memory", memory.measure),
    Measurement("utilisation", utilisation.measure),
    Measurement("phases", phases.measure),
    Measurement("growth", growth.measure),
)


def main() -> int:
    options = parser().parse_args()
    code = measured_by(PARTS, workload_of(options), options.results)
    if code == MISSING or options.results != RESULTS:  # only the default results go into the documentation
        return code
    try:
        report.write(options.results, report.PAGE)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    return code


if __name__ == "__main__":
    sys.exit(main())
