"""The tools that coding agents declare: a kind has many names, argument names and forms, as it has in the wild."""

from . import prose, words
from .tools import ordered

PATHS = ["path", "path", "filePath", "file_path", "target_file", "filename", "absolute_path"]


def styled(rng, base):
    """`read_file` as read_file, readFile, ReadFile or read-file."""
    parts = base.split("_")
    pick = rng.random()
    if pick < 0.55:
        return base
    if pick < 0.75:
        return parts[0] + "".join(p.capitalize() for p in parts[1:])
    return "".join(p.capitalize() for p in parts) if pick < 0.95 else "-".join(parts)


class Job:
    """One declaration of a kind. `fill` gives the arguments of a call from what is wanted of it."""

    kind = names = about = ()

    def __init__(self, rng, wordy):
        self.name = styled(rng, rng.choice(self.names))
        self.props, self.required, self.fills = {}, [], []
        self.build(rng)
        self._noise(rng)
        about = rng.choice(self.about)
        if wordy and rng.random() < 0.85:
            about += rng.choice([" ", "\n\n", "\n"]) + prose.text(rng, rng.choice([80, 200, 400, 800, 1500, 3000]))
        schema = {"type": "object", "properties": self.props}
        if self.required:
            schema["required"] = self.required
        if rng.random() < 0.3:
            schema["additionalProperties"] = False
        if rng.random() < 0.25:
            schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
        self.json = {"type": "function", "function": {"name": self.name, "description": about, "parameters": schema}}
        if rng.random() < 0.3:
            self.json = ordered(self.json, sorted)

    def arg(self, rng, names, field, about, shape="string", required=True, **more):
        """An argument that holds the wanted `field`; `shape` is string, list (of strings) or the key of an object in a list."""
        name = rng.choice(names)
        text = {"type": "string", **({"description": about} if rng.random() < 0.85 else {}), **more}
        if shape == "list":
            text = {"type": "array", "items": {"type": "string"}, "description": about}
        self.props[name] = text
        if required:
            self.required.append(name)
        self.fills.append((name, lambda want: [want[field]] if shape == "list" else want[field]))

    def objects(self, rng, names, keys, about):
        """A list of objects with the wanted fields: {key: field}."""
        name = rng.choice(names)
        inner = {k: {"type": "string", "description": f"The {k} {about}"} for k in keys}
        self.props[name] = {"type": "array", "items": {"type": "object", "properties": inner, "required": list(keys)}, "description": f"List {about}"}
        self.required.append(name)
        self.fills.append((name, lambda want: [{k: want[f] for k, f in keys.items()}]))

    def fixed(self, name, schema, value):
        self.props[name] = schema
        self.required.append(name)
        self.fills.append((name, lambda want: value))

    def _noise(self, rng):
        """Optional arguments that nobody gives."""
        for name in rng.sample(["timeout", "limit", "offset", "recursive", "encoding", "start_line", "end_line", "cwd", "mode", "case_sensitive", "max_results"], rng.choice([0, 0, 1, 2, 3])):
            kind = {"recursive": "boolean", "case_sensitive": "boolean", "encoding": "string", "cwd": "string", "mode": "string"}.get(name, "integer")
            self.props.setdefault(name, {"type": kind, "description": f"Optional. {prose.sentence(rng)}", **({"default": 30} if kind == "integer" and rng.random() < 0.3 else {})})

    def fill(self, want):
        return {name: value(want) for name, value in self.fills}


class Shell(Job):
    kind, names = "shell", ["bash", "bash", "shell", "run_command", "execute_command", "run_terminal_cmd", "run_shell_command", "run_commands", "terminal", "exec"]
    about = ["Execute a shell command.", "Runs a command in the terminal", "Execute a bash command in a shell session.", "Run shell commands in the working directory.", "Request to execute a CLI command on the system."]

    def build(self, rng):
        many = "commands" in self.name.lower()
        self.arg(rng, ["commands"] if many else ["command", "command", "command", "cmd"], "command", "The command to execute", "list" if many else "string")
        if rng.random() < 0.2:
            self.arg(rng, ["description", "explanation"], "request", "What the command does, in a few words")
        elif rng.random() < 0.15:
            self.fixed("requires_approval", {"type": "boolean", "description": "Whether the user has to approve"}, False)


class Read(Job):
    kind, names = "read", ["read", "read_file", "read_file", "view", "view_file", "open_file", "read_files", "cat_file"]
    about = ["Read a file.", "Reads a file from the local filesystem.", "Read the contents of a file at the path.", "Read text content from a file."]

    def build(self, rng):
        if not self.name.lower().endswith("s"):
            self.arg(rng, PATHS, "path", "The path of the file to read")
        elif rng.random() < 0.6:
            self.objects(rng, ["files", "reads"], {"path": "path"}, "of the file to read")
        else:
            self.arg(rng, ["paths", "files"], "path", "Paths of the files to read", "list")


class Write(Job):
    kind, names = "write", ["write", "write_file", "write_to_file", "create_file", "save_file"]
    about = ["Write a file.", "Writes a file to the local filesystem.", "Create a file or overwrite it with the content.", "Request to write content to a file."]

    def build(self, rng):
        both = [lambda: self.arg(rng, PATHS, "path", "The path of the file to write"), lambda: self.arg(rng, ["content", "content", "contents", "text", "file_text"], "text", "What to write")]
        for one in both if rng.random() < 0.6 else reversed(both):
            one()


class Edit(Job):
    kind, names = "edit", ["edit", "edit_file", "replace_in_file", "str_replace", "str_replace_file", "search_replace", "editor", "apply_edit"]
    about = ["Edit a file.", "Performs exact string replacements in files.", "Replace a text in a file.", "Change a file: replaces old text by new text."]

    def build(self, rng):
        old, new = rng.choice([("old_string", "new_string"), ("oldString", "newString"), ("old_text", "new_text"), ("old", "new"), ("old_str", "new_str"), ("search", "replace")])
        self.arg(rng, PATHS, "path", "The file to change")
        if rng.random() < 0.15:
            self.objects(rng, ["edits"], {old: "old", new: "new"}, "of the change")
            return
        self.arg(rng, [old], "old", "The text to replace")
        self.arg(rng, [new], "new", "The text to put in its place")


class List(Job):
    kind, names = "list", ["list", "list_files", "list_dir", "list_directory", "ls"]
    about = ["List the files of a directory.", "Lists files and directories.", "List the contents of a folder.", "Request to list files within a directory."]

    def build(self, rng):
        self.arg(rng, ["path", "path", "directory", "dir_path", "relative_workspace_path", "target_directory"], "folder", "The directory to list")


class Glob(Job):
    kind, names = "glob", ["glob", "glob", "find_files", "glob_file_search", "file_search"]
    about = ["Find files by a pattern.", "Fast file pattern matching.", "Find files and directories with glob patterns.", "Search for files whose names match."]

    def build(self, rng):
        self.arg(rng, ["pattern", "pattern", "glob_pattern", "glob"], "pattern", "The glob pattern to match files against")


class Grep(Job):
    kind, names = "grep", ["grep", "grep", "search_files", "grep_search", "search_code", "search_codebase", "search_file_content"]
    about = ["Search the contents of files.", "Fast content search with regular expressions.", "Search for a pattern in the code.", "A search tool for file contents."]

    def build(self, rng):
        if "codebase" in self.name.lower() and rng.random() < 0.7:
            self.arg(rng, ["queries"], "regex", "Regular expressions to search for", "list")
            return
        if rng.random() < 0.15:
            self.fixed("path", {"type": "string", "description": "The directory to search in"}, ".")
        self.arg(rng, ["pattern", "pattern", "regex", "query"], "regex", "The regular expression to search for")


class Fetch(Job):
    kind, names = "fetch", ["webfetch", "web_fetch", "fetch_url", "fetch", "fetch_web_content", "read_url"]
    about = ["Fetch a web page.", "Fetches content from a URL.", "Read a page of the web.", "Download the content of a URL."]

    def build(self, rng):
        if rng.random() < 0.2:
            self.objects(rng, ["requests"], {"url": "url", "prompt": "request"}, "to fetch")
            return
        self.arg(rng, ["url"], "url", "The URL to fetch")
        if rng.random() < 0.2:
            self.arg(rng, ["prompt"], "request", "What to find on the page")
        elif rng.random() < 0.3:
            self.fixed("format", {"type": "string", "enum": ["text", "markdown", "html"], "description": "The format of the content"}, "markdown")


class WebSearch(Job):
    kind, names = "websearch", ["web_search", "websearch", "search_web", "google_search"]
    about = ["Search the web.", "Search the internet for a query.", "Web search with short results."]

    def build(self, rng):
        self.arg(rng, ["query", "query", "q", "search_term"], "query", "What to search for")


class Todo(Job):
    kind, names = "todo", ["todowrite", "todo_write", "set_todo_list", "update_plan", "write_todos"]
    about = ["Write the list of tasks.", "Create and manage a task list.", "Update the todo list."]

    def build(self, rng):
        key, states = rng.choice(["content", "title", "step", "text"]), rng.choice([["pending", "in_progress", "completed"], ["pending", "in_progress", "done"], ["pending", "in_progress", "completed", "cancelled"]])
        more = {"priority": {"type": "string", "enum": ["high", "medium", "low"]}} if rng.random() < 0.3 else {}
        inner = {key: {"type": "string"}, "status": {"type": "string", "enum": states}, **more}
        name = rng.choice(["todos", "todos", "items", "plan"])
        self.props[name] = {"type": "array", "items": {"type": "object", "properties": inner, "required": list(inner)}, "description": "The list"}
        self.required.append(name)
        self.fills.append((name, lambda want: [{key: x, "status": "pending", **({"priority": "medium"} if more else {})} for x in want["items"]]))


class Ask(Job):
    kind, names = "ask", ["ask_followup_question", "ask_question", "ask_user", "question"]
    about = ["Ask the user a question.", "Use this to ask the user for what is missing."]

    def build(self, rng):
        self.arg(rng, ["question", "question", "text"], "question", "The question to ask")


class Finish(Job):
    kind, names = "finish", ["attempt_completion", "finish", "submit", "task_complete"]
    about = ["Give the result of the task when it is done.", "Use this once the task is complete.", "Finish the task and tell the user the result."]

    def build(self, rng):
        self.arg(rng, ["result", "result", "summary", "message"], "told", "What was done")


class Decoy(Job):
    """Something that no request of these conversations needs."""

    kind = "decoy"
    names = ["task", "agent", "skill", "switch_mode", "new_task", "plan_mode_respond", "enter_plan_mode", "exit_plan_mode", "task_list", "task_output", "task_stop", "spawn_agent", "notebook_edit", "browser_action", "use_mcp_tool",
             "access_mcp_resource", "load_memory", "save_memory", "team_status", "team_task", "diagnostics", "kill_shell", "get_problems", "send_update", "checkpoint"]  # fmt: skip
    about = ["Use this only when the user asks for it.", "Start a new agent for a large task.", "Manage what runs in the background.", "Load a skill by its name.", "Change the mode.", "Coordinate the team."]

    def build(self, rng):
        if rng.random() < 0.4:
            self.name = styled(rng, f"{rng.choice(['team', 'mcp', rng.choice(words.VERBS), words.made_up(rng)])}_{rng.choice(words.VERBS)}_{rng.choice(words.NOUNS)}")
        for name in rng.sample(["description", "prompt", "name", "agentId", "taskId", "reason", "status", "title", "action", "message", "id"], rng.randint(0, 4)):
            self.props[name] = {"type": "string", "description": prose.sentence(rng)}
            if rng.random() < 0.5:
                self.required.append(name)


CORE = [Shell, Read, Write, Edit, Glob, Grep]
MORE = [List, Fetch, WebSearch, Todo, Ask]


def declare(rng, wordy):
    """5 to 25 tools of an agent, of which some are never needed; by kind, and as a list in the order declared."""
    kinds = [k for k in CORE if rng.random() < 0.88] + [k for k in MORE if rng.random() < 0.5] + ([Finish] if rng.random() < 0.15 else [])
    kinds += [Decoy] * (rng.choice([0, 1, 3, 6, 10, 16]) if wordy else rng.choice([0, 0, 1, 2]))
    if rng.random() < 0.7:
        rng.shuffle(kinds)
    made = {}
    for kind in kinds or [Shell]:
        job = kind(rng, wordy)
        made.setdefault(job.name, job)
    jobs = list(made.values())
    return {j.kind: j for j in jobs if j.kind != "decoy"}, jobs
