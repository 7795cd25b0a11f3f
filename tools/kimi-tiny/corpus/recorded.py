"""Conversations in the prompts of real agents: requests that they sent, recorded in a folder, with other questions in them.

    KIMI_TINY_REQUESTS=FOLDER     # one request's body a file, as JSON; none of them is in this repository

What a recorded request declares is used as it is; its user's message is replaced by one of `agents.py`, and the conversation
goes on from there with calls, results in that agent's form, and an answer that ends.
"""

import json
import os
from functools import cache
from pathlib import Path

from . import agents, prose, talk, words
from .chat import assistant, user

KINDS = {
    "shell": ["bash", "shell", "run_commands"],
    "read": ["read", "readfile", "read_files"],
    "write": ["write", "writefile", "editor"],
    "edit": ["edit", "multiedit", "strreplacefile", "editor"],
    "list": ["list"],
    "glob": ["glob"],
    "grep": ["grep", "search_codebase"],
    "fetch": ["webfetch", "fetch", "fetchurl", "fetch_web_content"],
}
# An argument's name -> what is given for it, of what is wanted.
FIELDS = {
    "command": "command", "commands": "command", "path": "path", "filepath": "path", "file_path": "path", "dirpath": "folder", "content": "text", "url": "url",
    "old_string": "old", "oldstring": "old", "new_string": "new", "newstring": "new", "old_text": "old", "new_text": "new", "old": "old", "new": "new", "queries": "regex", "prompt": "request",
}  # fmt: skip


class Declared:
    """A recorded tool that can do a kind of job."""

    def __init__(self, kind, declaration):
        self.kind, self.json = kind, declaration
        self.name, self.schema = declaration["function"]["name"], declaration["function"]["parameters"]

    def fill(self, want):
        wanted = [*self.schema.get("required", [])]
        if self.name == "editor" and self.kind == "edit":
            wanted.insert(1, "old_text")
        return {name: self._value(name, self.schema["properties"][name], want) for name in wanted}

    def _value(self, name, schema, want):
        if name == "pattern":
            return want["pattern" if self.kind == "glob" else "regex"]
        if name == "new_text":
            return want["new" if self.kind == "edit" else "text"]
        if name == "edit":
            return {"old": want["old"], "new": want["new"]}
        if schema.get("type") == "array":
            items = schema["items"]
            if items.get("type") == "object":
                return [{key: self._value(key, {}, want) for key in items.get("required") or ["path"]}]
            return [want[FIELDS[name.lower()]]]
        return want[FIELDS[name.lower()]]


@cache
def requests():
    """The recorded requests by the names of their files; none where no folder is named."""
    folder = os.environ.get("KIMI_TINY_REQUESTS")
    files = sorted(Path(folder).glob("*.json")) if folder else []
    return {f.stem: json.loads(f.read_text()) for f in files}


def jobs_of(tools):
    named = {t["function"]["name"].lower(): t for t in tools}
    found = {}
    for kind, names in KINDS.items():
        tool = next((named[n] for n in names if n in named), None)
        if tool:
            found[kind] = Declared(kind, tool)
    return found


def conversation(c, name):
    """Makes `c` a conversation in the recorded request `name`. Returns its tools."""
    rng, request = c.rng, requests()[name]
    if "tools" not in request:
        return (edited if name == "aider" else titled)(c, request)
    c.jobs, c.numbered = jobs_of(request["tools"]), True
    c.form = {"cline": "list", "kimi-cli": "system"}.get(name, "plain") if rng.random() < 0.8 else rng.choice(agents.FORMS)
    c.asked = '"{}"' if name == "opencode" and rng.random() < 0.5 else "{}" if rng.random() < 0.8 else rng.choice(agents.ASKED)
    head = [m for m in request["messages"] if m["role"] == "system"]
    c.messages += [{"role": "system", "content": _text(m["content"])} for m in head]
    if rng.random() < 0.3:  # the same prompt with another text in its middle, as it has in other projects
        text = c.messages[0]["content"]
        at = rng.randrange(len(text))
        c.messages[0]["content"] = text[:at] + prose.text(rng, rng.choice([50, 400, 1500])) + text[at:]
    for _ in range(rng.choice([1, 1, 2, 3, 6])):
        if rng.random() < 0.2:
            before = len(c.messages)
            rng.choice([talk.small_talk, talk.fact, talk.unknown])(c)
            c.messages[before] = user(c.asked.replace("%", prose.sentence(rng)).replace("{}", c.messages[before]["content"]))
        else:
            agents.exchange(c)
    return request["tools"]


def _text(content):
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def titled(c, request):
    """A request that names a conversation."""
    text = c.rng.choice(agents.REQUESTS[c.rng.choice(["list", "read", "shell", "write"])][0](c)[0:1] + ("Hi",))
    c.messages += [{**m, "content": _text(m["content"])} for m in request["messages"][:-1]]
    c.messages += [user(f'"{text}"' if c.rng.random() < 0.5 else text), assistant(text.rstrip(".?")[:50].strip())]
    return None


def edited(c, request):
    """A file that is to be changed, given in the chat and written anew in the answer: a listing, as the prompt asks for."""
    rng = c.rng
    path = c.value(lambda: rng.choice(["main.py", "hello.py", "app.js", prose.name(rng), prose.path(rng)]))
    old, new = c.value(lambda: [rng.choice([words.made_up(rng), rng.choice(words.NOUNS), "hello", "hi", str(rng.randint(1, 99))]) for _ in range(2)], key=" ".join)
    lines = [rng.choice([f'print("{old}")', f"{rng.choice(words.NOUNS)} = {old}", f"# {old}", f'say("{old} {rng.choice(words.NOUNS)}")'])]
    lines = prose.lines_of(rng, 1, rng.choice([0, 1, 3, 8])) + lines + prose.lines_of(rng, 1, rng.choice([0, 0, 2, 5]))
    text = "\n".join(line for line in lines if "```" not in line)
    changed = text.replace(old, new)
    ask = rng.choice(["Change {1} to {2} in {0}", "Replace {1} with {2} in {0}", "Rename {1} to {2}", "Change {1} to {2}", "In {0}, replace {1} by {2}"]).format(path, old, new)
    asked = request["messages"][-1]["content"].replace("Change hello to goodbye in main.py", ask)
    for m in request["messages"][:-1]:
        c.messages.append({**m, "content": m["content"].replace('main.py\n```\nprint("hi")\n```', f"{path}\n```\n{text}\n```")})
    c.messages += [user(asked), assistant(f"{path}\n```\n{changed}\n```")]
    return None
