"""mayfly-api(7), of the openapi file."""

import yaml

import roff

METHODS = ("get", "put", "patch", "post", "delete")


class Api:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.file = yaml.safe_load(file)

    def follow(self, node):
        """What a node stands for: its own members beside those it refers to; (node, its name)."""
        name = None
        while "$ref" in node or "allOf" in node:
            ref = node.get("$ref") or node["allOf"][0].get("$ref")
            if not ref:
                break
            name = ref.rsplit("/", 1)[-1]
            target = self.file
            for part in ref.removeprefix("#/").split("/"):
                target = target[part]
            node = {**target, **{k: v for k, v in node.items() if k not in ("$ref", "allOf")}}
        return node, name

    def kinds(self, schema):
        """What a value may be, in words; null is left out, which is said once for all."""
        schema, name = self.follow(schema)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return [kind for one in schema[key] for kind in self.kinds(one)]
        if "enum" in schema:
            return [roff.bold(value if isinstance(value, str) else str(value))
                    for value in schema["enum"] if value is not None]
        if "const" in schema:
            return [roff.bold(str(schema["const"]))]
        kinds = schema.get("type", "any JSON")
        kinds = [kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if kind != "null"]
        if "object" in kinds and name and "properties" in schema:
            return [roff.escape(name)]
        if "array" in kinds:
            return ["array of " + " or ".join(self.kinds(schema.get("items", {})) or ["any JSON"])]
        return [roff.escape(kind + self.limits(schema)) for kind in kinds]

    @staticmethod
    def limits(schema):
        low, high = schema.get("minimum"), schema.get("maximum")
        if low is not None and high is not None:
            return f" {low} to {high}"
        return f" from {low}" if low is not None else f" up to {high}" if high is not None else ""

    def members(self, schema):
        """A paragraph for each member of an object."""
        out, required = [], schema.get("required", ())
        for name, member in schema.get("properties", {}).items():
            whole, _ = self.follow(member)
            notes = list(dict.fromkeys(self.kinds(member)))
            said = " or ".join(notes) + (", required" if name in required else "")
            if whole.get("default") is not None:
                said += ", by default " + roff.bold(str(whole["default"]).lower()
                        if isinstance(whole["default"], bool) else str(whole["default"]))
            if whole.get("deprecated"):
                said += ", deprecated"
            text = f"({said})"
            if whole.get("description"):
                text += " " + roff.inline(whole["description"])
            out.append(roff.item(roff.bold(name), text))
        return out

    def body(self, operation):
        content = operation.get("requestBody", {}).get("content", {})
        for media in content.values():
            return self.follow(media.get("schema", {}))
        return None, None

    def answers(self, operation):
        found = []
        for status, answer in operation["responses"].items():
            answer, _ = self.follow(answer)
            found.append(f"{status}: {answer['description'].strip()}")
        return ".PP\nAnswers:\n" + "\n".join(roff.item(roff.bold(a.split(": ", 1)[0]),
                                             roff.inline(a.split(": ", 1)[1])) for a in found)

    def requests(self):
        out = []
        for path, operations in self.file["paths"].items():
            for method in METHODS:
                if method not in operations:
                    continue
                operation = operations[method]
                out += [f'.SS "{roff.literal(method.upper())} {roff.literal(path)}"',
                        roff.inline(operation["summary"])]
                if operation.get("description"):
                    out.append(roff.markdown(operation["description"]))
                out += [".PP", f"Phase: {roff.bold(operation['x-phase'])}."]
                schema, name = self.body(operation)
                if name:
                    out += [".PP", f"Body: {roff.escape(name)}."]
                out.append(self.answers(operation))
        return "\n".join(out)

    def schemas(self):
        """Objects by name, with their members."""
        out = []
        for name, schema in self.file["components"]["schemas"].items():
            schema, _ = self.follow(schema)
            if not schema.get("properties"):
                continue
            out.append(f".SS {roff.literal(name)}")
            if schema.get("description"):
                out.append(roff.inline(schema["description"]))
            out += self.members(schema)
        return "\n".join(out)


def fill(path):
    """What the page's template has places for."""
    api = Api(path)
    return {"DESCRIPTION": roff.markdown(api.file["info"]["description"]),
            "REQUESTS": api.requests(), "OBJECTS": api.schemas()}
