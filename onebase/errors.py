"""The tree of errors, each with the exit code a shell sees.

    OnebaseError                1   unexpected, but reported in one line
    ├── ConfigError             2   a wrong verb, key or value
    ├── DataError               3   a file or a row that cannot be used
    │   └── PromptTooLongError
    ├── ModelError              2   a model, tokenizer or role that cannot do what was asked
    │   └── RoleMismatchError       a role made on another base, or without its head
    ├── CheckpointError         2   a checkpoint that is damaged, or has another configuration or base
    ├── DoesNotFitError         4   will not fit in memory (or on disk)
    ├── QualityError            5   a quality gate failed
    ├── MissingExtraError       6   an optional package is not installed
    ├── NonFiniteError          1   training produced NaN or infinity too often
    ├── RewardError             1   a reward source failed, or gave something that is not a score
    ├── VerifierError           1   a verifier could not check one completion; a run counts it and continues
    ├── UnansweredError        75   a program elsewhere did not answer; what was done is saved, and the run can resume
    ├── Stopped                75   stopped on request, after saving
    └── Interrupted           130   Ctrl-C, after saving

The text says what happened, the offending value and its place (file, row). Code below the recipes also runs where
nobody has seen a YAML file, so its errors name a remedy, and `config/remedies.py` says which keys to change.
"""


class OnebaseError(Exception):
    """An error that is reported in one line.

    Args:
        fact: what happened; this is `str(error)`.
        remedy: a name in the table of remedies; "" if the fact says enough.
        facts: values for the remedy's sentence.
    """

    exit_code = 1

    def __init__(self, fact: str = "", *, remedy: str = "", **facts: object) -> None:
        super().__init__(fact)
        self.remedy, self.facts = remedy, facts


class ConfigError(OnebaseError):
    exit_code = 2


class DataError(OnebaseError):
    exit_code = 3


class PromptTooLongError(DataError):
    pass


class ModelError(OnebaseError):
    exit_code = 2


class RoleMismatchError(ModelError):
    pass


class CheckpointError(OnebaseError):
    exit_code = 2


class DoesNotFitError(OnebaseError):
    exit_code = 4


class QualityError(OnebaseError):
    exit_code = 5


class MissingExtraError(OnebaseError):
    exit_code = 6


class NonFiniteError(OnebaseError):
    exit_code = 1


class RewardError(OnebaseError):
    exit_code = 1


class VerifierError(OnebaseError):
    exit_code = 1


class UnansweredError(OnebaseError):
    exit_code = 75


class Stopped(OnebaseError):
    exit_code = 75


class Interrupted(OnebaseError):
    exit_code = 130


SAYS_WHY = frozenset({ConfigError.exit_code, 3, 4, 5, 6})
"""Exit codes of a process that found a mistake and says so; others may only have lost touch with it."""
