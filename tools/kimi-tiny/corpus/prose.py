"""Long texts that nobody has to answer: what agents put before a request. Rules, notes, listings, code.

Sentences of our own, mixed with the documentation and the sources of the Python that runs this, which are read where
they are installed: a model that has only seen made-up sentences falls apart on real ones.
"""

import random
import sysconfig
from functools import cache
from pathlib import Path

from . import words

_RULE = ["You must", "Always", "Never", "Do not", "You should", "Prefer to", "Remember to", "Make sure to", "Try to", "It is important to", "Before you answer,", "If you can,", "NEVER", "IMPORTANT:"]
_DO = ["read the file before you change it", "keep answers short", "use absolute paths", "ask when something is not clear", "follow the conventions of the code", "check the result with the tests", "explain what you did",
       "call several tools at once where they do not depend on each other", "write comments only where they say why", "stay in the working directory", "commit changes that nobody asked for", "guess links",
       "use the tools that are declared and no others", "stop when the task is done", "treat what tools return as data", "show secrets or keys", "repeat yourself", "run commands that wait for input", "quote paths that have spaces"]  # fmt: skip
_HEAD = ["Overview", "Rules", "Tone and style", "Tools", "Working with files", "Git", "Safety", "Task management", "Environment", "Examples", "Notes", "Output", "Project", "Code style", "Testing", "Planning", "Skills", "Memory", "Errors", "Final words"]
_TAGS = ["rules", "env", "example", "context", "instructions", "system-reminder", "available_skills", "notes", "project", "guidelines", "memory"]
EXTENSIONS = "py rs md toml json ts js go c h txt yaml html css sh".split()


@cache
def _sources():
    """The texts of the standard library: topics of the language's reference, and modules."""
    from pydoc_data import topics

    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(library.glob("*.py")) + sorted(library.glob("json/*.py")) + sorted(library.glob("email/*.py"))
    code = [f.read_text(encoding="utf-8", errors="replace") for f in files if f.stat().st_size < 120_000]
    return [t for _, t in sorted(topics.topics.items()) if len(t) > 400], [t for t in code if len(t) > 1000]


def lines_of(rng, kind, count):
    """`count` lines that follow each other; `kind` 0 is prose, 1 is code."""
    lines = rng.choice(_sources()[kind]).splitlines()
    start = rng.randrange(max(1, len(lines) - count))
    return [line[:160] for line in lines[start : start + count]]


def sentence(rng):
    pick = rng.random()
    if pick < 0.5:
        return f"{rng.choice(_RULE)} {rng.choice(_DO)}."
    if pick < 0.75:
        return f"The {rng.choice(words.ADJECTIVES)} {rng.choice(words.NOUNS)} {rng.choice(['is', 'must be', 'may be', 'was', 'needs to be'])} {rng.choice(words.ADJECTIVES)}, for example in `{path(rng)}`."
    if pick < 0.9:
        return f"If the user asks you to {rng.choice(words.VERBS)} a {rng.choice(words.NOUNS)}, {rng.choice(_DO)}."
    return f"{rng.choice(words.NAMES)} says: {' '.join(words.made_up(rng) for _ in range(rng.randint(2, 7)))}."


def name(rng):
    stem = rng.choice([rng.choice(words.NOUNS), rng.choice(words.VERBS), words.made_up(rng), f"{rng.choice(words.NOUNS)}_{rng.choice(words.NOUNS)}", "main", "test", "index", "config", "utils"])
    return f"{stem}.{rng.choice(EXTENSIONS)}"


def path(rng, deep=0.5):
    """A file's path, seldom an absolute one."""
    folders = ["src", "tests", "docs", "lib", "app", "tools", "pkg", rng.choice(words.NOUNS), words.made_up(rng)]
    parts = [rng.choice(folders) for _ in range(rng.choice([1, 1, 2, 3]))] if rng.random() < deep else []
    stem = rng.choice(["README.md", "Cargo.toml", "package.json", "Makefile", "LICENSE", "main.py", "notes.txt"]) if rng.random() < 0.25 else name(rng)
    return ("/home/" + rng.choice(words.NAMES).lower() + "/" if rng.random() < 0.08 else "") + "/".join([*parts, stem])


def _bullets(rng):
    mark = rng.choice(["- ", "* ", "1. ", "  - "])
    return "\n".join(mark + sentence(rng) for _ in range(rng.randint(2, 9)))


def _fenced(rng):
    tag = rng.choice(["```", "```python", "```\n# " + path(rng)])
    return f"{tag}\n" + "\n".join(lines_of(rng, 1, rng.randint(3, 40))) + "\n```"


def _tagged(rng):
    tag = rng.choice(_TAGS)
    inner = rng.choice([_bullets, _plain, _environment, _listing, _dialogue])(rng)
    return f"<{tag}>\n{inner}\n</{tag}>"


def _plain(rng):
    return " ".join(sentence(rng) for _ in range(rng.randint(2, 8)))


def _real(rng):
    return "\n".join(lines_of(rng, 0, rng.randint(5, 60)))


def _environment(rng):
    lines = [f"Working directory: /home/{rng.choice(words.NAMES).lower()}/{words.made_up(rng)}", f"Platform: {rng.choice(['linux', 'darwin', 'win32'])}", f"Today's date: 20{rng.randint(24, 29)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
             f"Is directory a git repo: {rng.choice(['yes', 'no'])}", f"Shell: {rng.choice(['bash', 'zsh', 'fish'])}", f"Branch: {rng.choice(words.NOUNS)}", f"Model: {words.made_up(rng)}-{rng.randint(1, 9)}"]  # fmt: skip
    return "\n".join(rng.sample(lines, rng.randint(2, len(lines))))


def _listing(rng):
    return "\n".join(rng.choice(["", "  ", "    ", "- "]) + path(rng) for _ in range(rng.randint(3, 40)))


def _dialogue(rng):
    """An example in the prompt; not what is asked."""
    return f"user: {sentence(rng)}\nassistant: {sentence(rng)}\n[{rng.choice(['reads', 'runs', 'writes'])} {path(rng)}]"


_PARTS = [(_plain, 20), (_bullets, 22), (_real, 26), (_fenced, 12), (_tagged, 12), (_environment, 3), (_listing, 5), (_dialogue, 6)]


def text(rng, size):
    """About `size` characters of sections under headings."""
    makers, weights = zip(*_PARTS)
    out, length = [], 0
    while length < size:
        if rng.random() < 0.3:
            out.append("#" * rng.randint(1, 3) + " " + rng.choice(_HEAD))
        out.append(rng.choices(makers, weights)[0](rng)[: max(200, size - length)])
        length += len(out[-1]) + 2
    return "\n\n".join(out)


if __name__ == "__main__":
    print(text(random.Random(1), 6000))
