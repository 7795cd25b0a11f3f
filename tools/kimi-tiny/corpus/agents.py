"""Conversations of coding agents: a long system prompt, many tools, short requests, calls, results, short answers.

What is asked is one of a few things that people try first; which tool fits, and how its arguments are called, has to be
read in the declarations. Answers say what a result begins with, and stop.
"""

import json

from . import jobs, prose, talk, words
from .chat import assistant, calls, result, system, user

NO_TOOL = "I have no tool for that."
COMMANDS = [("Run the tests", "cargo test"), ("Build the project", "cargo build"), ("Show the git status", "git status"), ("What is the git status?", "git status"), ("What changed?", "git diff"), ("Show the git log", "git log --oneline -10"), ("Where am I?", "pwd"),
            ("What is the current directory?", "pwd"), ("Which version of Python is there?", "python3 --version"), ("How much disk space is free?", "df -h"), ("Who am I on this machine?", "whoami"), ("What is the date?", "date"), ("Which branch is this?", "git branch")]  # fmt: skip
KINDS_OF_FILE = {"Python": "py", "Rust": "rs", "Markdown": "md", "TypeScript": "ts", "JavaScript": "js", "Go": "go", "C": "c", "JSON": "json", "TOML": "toml", "YAML": "yaml", "text": "txt", "CSS": "css"}


def _list(c):
    rng = c.rng
    if rng.random() < 0.55:
        return rng.choice(["List the files here", "List the files here.", "List the files", "List all files", "What files are here?", "Which files are in this directory?", "Show me the files", "list files", "ls", "What is in this folder?", "Show the files in this directory", "List the files in the current directory"]), {"folder": ".", "command": "ls", "pattern": "*"}
    folder = c.value(lambda: rng.choice(["src", "tests", "docs", words.made_up(rng), f"src/{rng.choice(words.NOUNS)}", f"{words.made_up(rng)}/{words.made_up(rng)}"]))
    return rng.choice(["List the files in {}", "What is in {}?", "Show me the files in {}.", "Which files are in {}?", "ls {}"]).format(folder), {"folder": folder, "command": f"ls {folder}", "pattern": f"{folder}/*"}


def _read(c):
    path = c.value(lambda: prose.path(c.rng))
    ask = c.rng.choice(["Read {}", "Read {}.", "Read the file {}", "Show me {}", "What is in {}?", "Open {}", "What does {} say?", "Look at {}", "cat {}", "Print {}", "Read `{}`", "Can you read {}?", "Please read {}", "Explain {}", "Summarize {}", "Show the contents of {}"])
    return ask.format(path), {"path": path, "command": f"cat {path}"}


def _shell(c):
    rng = c.rng
    if rng.random() < 0.5:
        ask, command = rng.choice(COMMANDS)
        return ask + ("" if ask[-1] == "?" else rng.choice(["", "."])), {"command": command}
    make = lambda: rng.choice([f"cargo {rng.choice(words.VERBS)}", f"npm run {rng.choice(words.VERBS)}", f"python {prose.name(rng)}", f"make {rng.choice(words.NOUNS)}", f"git {rng.choice(words.VERBS)} {words.made_up(rng)}", f"echo {talk.phrase(rng)}", f"rm {prose.path(rng)}", f"mkdir {words.made_up(rng)}",
                               f"wc -l {prose.path(rng)}", f"{words.made_up(rng)} --{rng.choice(words.NOUNS)} {rng.randint(1, 99)}", f"pytest -k {rng.choice(words.NOUNS)}", f"head -n {rng.randint(1, 50)} {prose.path(rng)}", "ls -la", "cargo test", "npm test", "date", "uname -a", "echo hello"])  # fmt: skip
    command = c.value(make)
    return rng.choice(["Run {}", "Run `{}`", "Execute {}", "Run the command {}", "Run the command `{}`.", "Please run {}", "Execute `{}` in the shell", "$ {}"]).format(command), {"command": command}


def _write(c):
    rng = c.rng
    path, text = c.value(lambda: prose.path(rng)), c.value(lambda: rng.choice([talk.phrase(rng), "hello world", "Hello, world!", f"print({rng.randint(1, 99)})", f"# {rng.choice(words.NOUNS)}", words.made_up(rng)]))
    ask = rng.choice(["Create {0} with the text {1}", "Create {0} with the content {1}", 'Write "{1}" to {0}', "Write {1} to {0}", "Create a file {0} with {1}", 'Make a file {0} that says "{1}"', "Save {1} in {0}", "Create a file called {0} that contains {1}"])
    return ask.format(path, text), {"path": path, "text": text, "command": f"echo '{text}' > {path}"}


def _edit(c):
    rng = c.rng
    path, (old, new) = c.value(lambda: prose.path(rng)), c.value(lambda: [rng.choice([words.made_up(rng), rng.choice(words.NOUNS), f"{rng.choice(words.VERBS)}_{rng.choice(words.NOUNS)}", str(rng.randint(1, 999)), talk.phrase(rng)]) for _ in range(2)], key=" ".join)
    ask = rng.choice(["Replace {1} with {2} in {0}", "Replace {1} by {2} in {0}.", "Change {1} to {2} in {0}", 'In {0}, replace "{1}" with "{2}"', "Edit {0}: change {1} to {2}", "Rename {1} to {2} in {0}"])
    return ask.format(path, old, new), {"path": path, "old": old, "new": new, "command": f"sed -i 's/{old}/{new}/g' {path}"}


def _glob(c):
    rng = c.rng
    if rng.random() < 0.5:
        kind = rng.choice(list(KINDS_OF_FILE))
        pattern = f"**/*.{KINDS_OF_FILE[kind]}"
        ask = rng.choice(["Find all {} files", "Find the {} files", "Which {} files are there?", "List all {} files", "Where are the {} files?"]).format(kind)
    else:
        pattern = c.value(lambda: rng.choice([f"*.{words.made_up(rng)}", f"src/**/*.{rng.choice(prose.EXTENSIONS)}", f"{words.made_up(rng)}*", f"**/{prose.name(rng)}", f"*_{rng.choice(words.NOUNS)}.*"]))
        ask = rng.choice(["Find files that match {}", "Find {}", "Which files match {}?", "Find all files like {}"]).format(pattern)
    return ask, {"pattern": pattern, "command": f"find . -name '{pattern.rpartition('/')[2]}'"}


def _grep(c):
    rng = c.rng
    regex = c.value(lambda: rng.choice(["TODO", "FIXME", "main", "unwrap", words.made_up(rng), f"{rng.choice(words.VERBS)}_{rng.choice(words.NOUNS)}", f"fn {words.made_up(rng)}", f"class {rng.choice(words.NOUNS).capitalize()}", rng.choice(words.NOUNS)]))
    ask = rng.choice(["Search for {}", "Search the code for {}", "Where is {} used?", "grep {}", "Find the word {} in the code", "Which files contain {}?", "Search for {} in the files.", "Where does {} occur?"])
    return ask.format(regex), {"regex": regex, "command": f"grep -rn '{regex}' ."}


def _fetch(c):
    rng = c.rng
    url = c.value(lambda: "https://" + rng.choice(["example.com", f"{words.made_up(rng)}.org", f"www.{words.made_up(rng)}.com", f"docs.{words.made_up(rng)}.io"]) + rng.choice(["", "", f"/{rng.choice(words.NOUNS)}", f"/{words.made_up(rng)}/{rng.choice(words.NOUNS)}.html"]))
    return rng.choice(["Fetch {}", "Read {}", "What is on {}?", "Open the page {}", "Get {}", "Summarize {}"]).format(url), {"url": url, "command": f"curl -s {url}"}


def _websearch(c):
    query = c.value(lambda: c.rng.choice([talk.phrase(c.rng), c.rng.choice(words.TOPICS), f"{c.rng.choice(words.TOPICS)} {words.made_up(c.rng)}"]))
    return c.rng.choice(["Search the web for {}", "Google {}", "Do a web search for {}", "Look up {} on the web"]).format(query), {"query": query}


def _todo(c):
    items = c.value(lambda: [talk.phrase(c.rng) for _ in range(c.rng.randint(1, 4))], key=",".join)
    return c.rng.choice(["Make a todo list: {}", "Write these todos: {}", "Plan: {}", "Add to the todo list: {}"]).format(", ".join(items)), {"items": items}


def _ask(c):
    question = c.value(lambda: f"{c.rng.choice(['Which', 'What'])} {c.rng.choice(words.NOUNS)} {c.rng.choice(['do you want', 'shall I ' + c.rng.choice(words.VERBS), 'is the ' + c.rng.choice(words.ADJECTIVES) + ' one'])}?")
    return c.rng.choice(["Ask me: {}", "Ask me this: {}"]).format(question), {"question": question}


# Kind of a request -> (maker, weight, the kinds of tools that can do it, best first).
REQUESTS = {
    "list": (_list, 24, ["list", "shell", "glob"]), "read": (_read, 26, ["read", "shell"]), "shell": (_shell, 22, ["shell"]), "write": (_write, 14, ["write", "shell"]), "edit": (_edit, 10, ["edit", "shell"]),
    "glob": (_glob, 9, ["glob", "shell"]), "grep": (_grep, 10, ["grep", "shell"]), "fetch": (_fetch, 6, ["fetch", "shell"]), "websearch": (_websearch, 3, ["websearch"]), "todo": (_todo, 3, ["todo"]), "ask": (_ask, 2, ["ask"]),
}  # fmt: skip


# What is in many folders.
USUAL = ["README.md", "main.py", "src", "tests", "docs", "package.json", "Cargo.toml", "index.html", "LICENSE", ".gitignore", "app.py", "opencode.json", "setup.py", "Makefile", "node_modules", "utils.py", "style.css", "index.js", "main.rs", "notes.txt", "data", "requirements.txt"]


def _first(lines):
    """What an answer quotes of a text: its first line that is not empty, cut."""
    return next((" ".join(line.split())[:60].strip() for line in lines if line.strip()), "")


def _some(items):
    return f"{', '.join(items)}." if len(items) <= 5 else f"{', '.join(items[:3])} and more."


def outcome(rng, kind, want):
    """A result's plain lines, and what is told of it."""
    if rng.random() < 0.05:
        error = rng.choice(["file not found", "permission denied", "no such file or directory", "timeout", "command not found", f"{words.made_up(rng)} failed", "the user said no", "ripgrep execution failed"])
        return [rng.choice(["Error: {}", "error: {}", "ERROR: {}"]).format(error)], f"The tool answered with an error: {error}."
    if kind in ("list", "glob"):
        usual = 0.4 if rng.random() < 0.5 else 0
        one = lambda: rng.choice(USUAL) if rng.random() < usual else prose.path(rng, 0.1 if kind == "list" else 0.6)
        items = list(dict.fromkeys(one() for _ in range(rng.choice([0, 1, 2, 3, 3, 4, 5, 8, 20, 60]))))
        return (items, f"There is {_some(items)}") if items else (rng.choice([["No files found"], [""]]), "There are no files.")
    if kind in ("read", "fetch"):
        lines = prose.lines_of(rng, rng.randint(0, 1), rng.choice([1, 3, 8, 20, 60])) if rng.random() < 0.6 else [rng.choice(["# " + rng.choice(words.NOUNS), talk.phrase(rng), prose.sentence(rng)])] + [prose.sentence(rng) for _ in range(rng.choice([0, 1, 4, 12]))]
        what = want["path"] if kind == "read" else "The page"
        return lines, f"{what} begins with: {_first(lines)}" if _first(lines) else f"{what} is empty."
    if kind == "grep":
        files = [prose.path(rng) for _ in range(rng.choice([0, 1, 2, 3, 7]))]
        lines = [f"{f}:{rng.randint(1, 900)}: {rng.choice(['', 'let ', '    ', '// '])}{want['regex']}{rng.choice(['', '()', ' = 1', ': ' + words.made_up(rng)])}" for f in files]
        return (lines, f"{want['regex']} is in {_some(files)}") if files else (rng.choice([["No matches found"], [""]]), f"{want['regex']} is nowhere.")
    if kind == "shell":
        lines = rng.choice([[""], prose.lines_of(rng, 0, rng.choice([1, 4, 15])), [prose.path(rng) for _ in range(rng.randint(1, 9))], [f"{rng.randint(0, 99)} passed in {rng.randint(1, 99)} s"], [talk.phrase(rng)], [str(rng.randint(0, 9999))]])
        return lines, f"The command says: {_first(lines)}" if _first(lines) else "The command is done."
    if kind in ("write", "edit"):
        done = rng.choice([["ok"], ["Done."], [f"Wrote {want['path']}"], ["The file was updated."], ["success"], ["Edit applied successfully."]])
        return done, f"I have {'written' if kind == 'write' else 'changed'} {want['path']}."
    if kind == "websearch":
        line = f"{talk.phrase(rng)} ({words.made_up(rng)}.org)"
        return [line, *[prose.sentence(rng) for _ in range(rng.randint(0, 3))]], f"I found: {line}"
    if kind == "todo":
        return rng.choice([["ok"], ["Todos updated"], ["The list has " + str(len(want["items"])) + " entries"]]), "The list is written."
    said = talk.phrase(rng)
    return [said], f"You said: {said}"


def wrapped(rng, form, lines):
    """A result in the form in which this agent gives all of them."""
    # Programs end their output with a line end, which is quoted with the rest.
    text = "\n".join(lines) + rng.choice(["", "\n"])
    if form == "json":
        return json.dumps(rng.choice([{"output": text}, {"output": text, "exit_code": 0}]), ensure_ascii=False)
    if form == "list":
        return json.dumps([{"query": rng.choice(["ls", "x", prose.path(rng)]), "result": text, "success": True}], ensure_ascii=False, separators=(",", ":"))
    if form == "system":
        return "<system>" + rng.choice(["Command executed successfully.", f"{len(lines)} lines read.", "Done.", "Output follows."]) + f"</system>{text}"
    if form == "numbered":
        mark = rng.choice(["{:05}| ", "{}: ", "{:6}\t", "{:6}→", "{} | "])
        body = "\n".join(mark.format(n) + line for n, line in enumerate(lines, 1))
        return rng.choice(["<file>\n{}\n</file>", "{}", "<path>%s</path>\n<type>file</type>\n<content>\n{}\n\n(End of file)\n</content>" % prose.path(rng)]).replace("{}", body)
    if form == "tagged":
        return f"<output>\n{text}\n</output>"
    return text + rng.choice(["", "\n"])


FORMS = ["plain", "plain", "plain", "json", "list", "system", "tagged"]
ASKED = ["{}", "{}", "{}", "{}", '"{}"', "<task>\n{}\n</task>", "<user_query>\n{}\n</user_query>", "{}\n\n<environment_details>\n%\n</environment_details>", "<system-reminder>\n%\n</system-reminder>\n\n{}", "{}\n\n<system-reminder>\n%\n</system-reminder>", "<user_input mode=\"act\">{}</user_input>"]


def _do(c, kind):
    """One request of this kind, from the question to what is told. Returns the question's text, the calls and the telling."""
    maker, _, order = REQUESTS[kind]
    text, want = maker(c)
    able = next((k for k in order if k in c.jobs), None)
    return text, want, able


def exchange(c):
    rng = c.rng
    kinds = list(REQUESTS)
    kind = rng.choices(kinds, [REQUESTS[k][1] for k in kinds])[0]
    steps = [(kind, *_do(c, kind))]
    if steps[0][3] and rng.random() < 0.12:
        second = rng.choice(["read", "shell", "list", "write"])
        steps.append((second, *_do(c, second)))
    if not all(s[3] for s in steps):
        steps = [s for s in steps if not s[3]][:1]
    asked = rng.choice([", then ", " and then ", ". Then "]).join(s[1].rstrip(".") if len(steps) > 1 else s[1] for s in steps)
    c.messages.append(user(c.asked.replace("%", prose.sentence(rng) if rng.random() < 0.7 else prose.text(rng, 300)).replace("{}", asked)))
    if not steps[0][3]:
        c.messages.append(assistant(NO_TOOL))
        return c.check(kind="no_call", keys=[NO_TOOL])
    told = []
    for kind, text, want, able in steps:
        want["request"] = text
        _call(c, c.jobs[able], want)
        lines, tell = outcome(rng, kind if able != "shell" or kind in ("list", "read", "glob", "grep", "fetch", "write", "edit") else "shell", want)
        form = "numbered" if kind == "read" and c.numbered and not lines[0].lower().startswith("error") else c.form
        c.messages.append(result(c.messages[-1]["tool_calls"][0], wrapped(rng, form, lines)))
        told.append(tell)
    if "finish" in c.jobs:
        _call(c, c.jobs["finish"], {"told": " ".join(told)})
        if rng.random() < 0.5:
            c.messages.append(result(c.messages[-1]["tool_calls"][0], rng.choice(["ok", "", "The user is content."])))
    else:
        c.messages.append(assistant(" ".join(told)))
        c.check(kind="tool_answer", keys=told)


def _call(c, job, want):
    arguments = job.fill(want)
    c.messages.append(calls(c.calls, (job.name, arguments)))
    c.check(kind="tool_call", calls=[[job.name, arguments]])
    c.calls += 1


def title(c):
    """The short request with which agents name a conversation."""
    rng = c.rng
    head = rng.choice(["You are a title generator.", "You write titles.", "Generate a short title for the conversation.", "You name conversations. Answer with the title alone."])
    c.messages.append(system(head + "\n\n" + prose.text(rng, rng.choice([100, 600, 2000]))))
    kind = rng.choice(list(REQUESTS))
    text = REQUESTS[kind][0](c)[0] if rng.random() < 0.8 else rng.choice(["hello", "What is kimi?", "Fix the bug", "Hi"])
    lead = rng.choice(["Generate a title for this conversation:\n", "Title for this conversation:", "Give this conversation a title."])
    shown = rng.choice(['"{}"', "{}"]).format(text)
    c.messages += [user(lead), user(shown)] if rng.random() < 0.5 else [user(f"{lead}\n{shown}")]
    c.messages.append(assistant(text.rstrip(".?")[:50].strip()))


def conversation(c, size):
    """Makes `c` an agent's conversation whose prompt has about `size` characters. Returns the declared tools."""
    rng, wordy = c.rng, size > 3000
    c.jobs, declared = jobs.declare(rng, wordy)
    c.form, c.numbered, c.asked = rng.choice(FORMS), rng.random() < 0.4, rng.choice(ASKED)
    tools = [j.json for j in declared]
    while wordy and len(str(tools)) > size * 0.75 and len(tools) > 5:
        gone = declared.pop()
        tools.pop()
        c.jobs.pop(gone.kind, None)
    left = max(100, size - len(str(tools)))
    c.messages.append(system(rng.choice(["You are a coding agent.", "You are an interactive agent that helps with software.", f"You are {words.made_up(rng).capitalize()}, an AI coding agent.", "You help users with their code."]) + rng.choice([" ", "\n\n"]) + prose.text(rng, left)))
    for _ in range(rng.choice([2, 4, 7, 10, 14]) if wordy else rng.choice([1, 2, 3])):
        if rng.random() < 0.17:
            before = len(c.messages)
            talk_turn = rng.choice([talk.small_talk, talk.small_talk, talk.fact, talk.unknown])
            talk_turn(c)
            c.messages[before] = user(c.asked.replace("%", prose.sentence(rng)).replace("{}", c.messages[before]["content"]))
        else:
            exchange(c)
    return tools
