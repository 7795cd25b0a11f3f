"""Other forms in which programs around a model ask and want to be answered: tools as tags in the text, and the small
requests with which chat pages name, tag and continue a conversation."""

import json

from . import agents, prose, talk, words
from .chat import assistant, system, user

TAGS = {
    "list": ("list_files", [("path", "folder")]), "read": ("read_file", [("path", "path")]), "shell": ("execute_command", [("command", "command")]),
    "write": ("write_to_file", [("path", "path"), ("content", "text")]), "grep": ("search_files", [("path", None), ("regex", "regex")]),
}  # fmt: skip


def tagged(c, size):
    """An agent whose tools are tags in the text: one call a message, results as messages of the user, `attempt_completion` last."""
    rng = c.rng
    order = rng.sample(list(TAGS), len(TAGS))
    about = "\n\n".join(f"## {TAGS[k][0]}\n{prose.sentence(rng)}\nUsage:\n<{TAGS[k][0]}>\n" + "\n".join(f"<{a}>{a} here</{a}>" for a, _ in TAGS[k][1]) + f"\n</{TAGS[k][0]}>" for k in order)
    done = "## attempt_completion\nGives the result once the task is done.\nUsage:\n<attempt_completion>\n<result>\nthe result here\n</result>\n</attempt_completion>"
    c.messages.append(system(f"You are {rng.choice(['Cline', 'Roo', words.made_up(rng).capitalize()])}, a coding agent. A tool is called with tags, one in a message.\n\n# Tools\n\n{about}\n\n{done}\n\n{prose.text(rng, max(100, size - 1500))}"))
    for _ in range(rng.choice([1, 1, 2])):
        kind = rng.choice(order)
        text, want = agents.REQUESTS[kind][0](c)
        name, arguments = TAGS[kind]
        inner = "".join(f"<{a}>{want[f] if f else '.'}</{a}>\n" for a, f in arguments)
        if name == "execute_command":
            inner += "<requires_approval>false</requires_approval>\n"
        lines, tell = agents.outcome(rng, kind, want)
        details = "" if rng.random() < 0.3 else f"\n\n<environment_details>\n{prose.sentence(rng)}\n</environment_details>"
        value = want[arguments[-1][1]] if kind == "shell" else want[arguments[0][1] or "regex"]
        c.messages += [
            user(f"<task>\n{text}\n</task>{details}"), assistant(f"<{name}>\n{inner}</{name}>"),
            user(f"[{name} for '{value}'] Result:\n" + "\n".join(lines) + details), assistant(f"<attempt_completion>\n<result>\n{tell}\n</result>\n</attempt_completion>"),
        ]  # fmt: skip


def small_task(c):
    """What a chat page asks about a conversation: a title, tags, questions that could follow, a query. The answer is JSON."""
    rng = c.rng
    maker, *_ = agents.REQUESTS[rng.choice(["list", "read", "write", "websearch"])]
    asked = rng.choice([lambda: maker(c)[0], lambda: rng.choice(["Hello", "What is kimi?", "Tell me a story", "Hi there", "What is 2 + 3?"]), lambda: f"What is {talk.phrase(rng)}?"])()
    said = rng.choice(["Hello! How can I help you?", prose.sentence(rng), "I do not know that."])
    topic = " ".join(asked.rstrip(".?").split()[:5])
    key, about, answer = rng.choice([
        ("title", "a title of 3 to 5 words", topic), ("tags", "1 to 3 tags for its main themes", ["General"]),
        ("follow_ups", "3 to 5 questions or prompts that the user might ask next", [f"What is {words.made_up(rng) if rng.random() < 0.1 else 'that'}?", "Can you say more?", "Why?"]), ("queries", "queries for a web search", [topic]),
    ])  # fmt: skip
    ask = rng.choice(["### Task:\nGenerate {}.\n### Guidelines:\n{}\n### Output:\nJSON format: {}\n### Chat History:\n<chat_history>\n{}\n</chat_history>", "Generate {} for this conversation. {}\nAnswer as JSON: {}\n\n{}"])
    history = rng.choice(["USER: {}\nASSISTANT: {}", "user: {}\nassistant: {}"]).format(asked, said)
    rules = "\n".join("- " + prose.sentence(rng) for _ in range(rng.randint(1, 6)))
    c.messages += [user(ask.format(about, rules, json.dumps({key: "..." if isinstance(answer, str) else ["...", "..."]}), history)), assistant(json.dumps({key: answer}, ensure_ascii=False))]
