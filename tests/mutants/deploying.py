"""Mutants of `onebase/deploying`: folders found from elsewhere, quoting, and files that are somebody else's."""

from tests.mutants.mutant import Mutant

SERVICE = "onebase/deploying/service.py"
RENDER = "onebase/deploying/render.py"
RENDERED = "onebase/deploying/rendered.py"
VERSIONS = "onebase/deploying/versions.py"
TEST = "tests/deploying/test_render.py"

MUTANTS = [
    Mutant(SERVICE, 'cards[name].kind == "policy"', 'cards[name].kind == "reward"',
           "the commands talk to a reward role", TEST),
    Mutant(SERVICE, 'exclude_unset=True) | {"role"', 'exclude_unset=False) | {"role"',
           "a role's defaults are written as if they were chosen", TEST),
    Mutant(SERVICE, 'if quantization == "nf4" else "serve"', 'if quantization == "int8" else "serve"',
           "a base in 4 bits is deployed without its package", TEST),
    Mutant(SERVICE, "not path.resolve().is_relative_to(root)", "path.resolve().is_relative_to(root)",
           "links out of a folder pass, links inside are refused", TEST),
    Mutant(SERVICE, 'else f"./{found}"', "else found", "a folder's name may be read as an option", TEST),
    Mutant(SERVICE, "self.config.port or PORT", "self.config.port", "a container listens on any free port", TEST),
    Mutant(RENDER, 'text.replace("$", "$$")', "text", "compose puts variables into a path", TEST),
    Mutant(RENDERED, "if other and not force:", "if False:", "a file of somebody else's is replaced", TEST),
    Mutant(RENDER, "if not PLACES[target].copies:", "if False:", "links that lead nowhere are mounted", TEST),
    Mutant(RENDER, "24 * price", "12 * price", "a day costs half of it", TEST),
    Mutant(VERSIONS, "one.marker is None or one.marker.evaluate", "True or one.marker.evaluate",
           "packages of every extra are pinned", TEST),
]  # fmt: skip
