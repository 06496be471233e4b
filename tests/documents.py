"""README and the guides as tests read them: their code blocks by kind. Runs nothing.

Kinds of blocks: `python` runs in order in one session per document; `py` that begins with `# name.py:` is a script;
other `py` blocks need a machine or a server that tests do not have; `console` shows commands with their answers; `bash`
shows commands only.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUIDES = sorted((ROOT / "model_card" / "guides").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", *GUIDES]
NAMES = [document.name for document in DOCUMENTS]
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"
FOR_CONTRIBUTORS = [CONTRIBUTING, ROOT / ".github" / "CHANGELOG.md"]


def text_of(name: str) -> str:
    """The text of README.md or of a guide."""
    return next(document for document in DOCUMENTS if document.name == name).read_text("utf-8")


def blocks(text: str, kind: str) -> list[str]:
    """The code blocks of one kind, in order."""
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def scripts() -> dict[str, str]:
    """File name -> code of every script, in all documents."""
    named = (block for name in NAMES for block in blocks(text_of(name), "py") if re.match(r"# \w+\.py: ", block))
    return {re.match(r"# (\w+\.py)", block)[1]: block for block in named}


def commands(name: str) -> list[str]:
    """The `small4` commands of a document's `bash` blocks, without comments, continued lines joined."""
    joined = "\n".join(blocks(text_of(name), "bash")).replace("\\\n", " ")
    lines = [re.split(r"\s+#\s", line)[0].strip() for line in joined.splitlines()]
    return [line for line in lines if line.startswith("small4 ")]
