"""api/openapi.yaml, read as far as it goes: what fits its schemas, what just fits, and what does not.
Needs python3-yaml."""

import os
import re

import pytest

import mayfly

yaml = pytest.importorskip(
    "yaml", reason="THE API'S DESCRIPTION WAS NOT CHECKED: python3-yaml is missing")


def read(*path):
    with open(os.path.join(mayfly.ROOT, *path), encoding="utf-8") as file:
        return file.read()


SPEC = yaml.safe_load(read("api", "openapi.yaml"))


def resolve(node):
    """What a reference stands for."""
    while "$ref" in node:
        target = SPEC
        for name in node["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        node = target
    return node


# The part of JSON Schema that the file uses

# An integer is none with a fraction, see Bodies.
TYPES = {"boolean": bool, "string": str, "array": list, "object": dict, "integer": int}
INTEGER_MAX = 2**64 - 1
ANNOTATIONS = {"description", "default", "deprecated", "summary", "format"}
STRUCTURE = {"type", "nullable", "properties", "required", "additionalProperties", "items"}
LIMITS = {
    "enum": lambda allowed, value: value in allowed,
    "minimum": lambda limit, value: not is_number(value) or value >= limit,
    "maximum": lambda limit, value: not is_number(value) or value <= limit,
    "maxLength": lambda limit, value: not isinstance(value, str) or len(value) <= limit,
    "maxItems": lambda limit, value: not isinstance(value, list) or len(value) <= limit,
    "minProperties": lambda limit, value: not isinstance(value, dict) or len(value) >= limit,
    "pattern": lambda pattern, value: not isinstance(value, str) or
    re.search(pattern, value),
}


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def has_type(schema, value):
    return "type" not in schema or type(value) is TYPES[schema["type"]]


def misfits(schema, value, at="body"):
    """What of the value does not fit the schema, as texts."""
    schema, nullable = plain(schema)
    assert set(schema) <= STRUCTURE | ANNOTATIONS | set(LIMITS), f"not checked: {schema}"
    if value is None and nullable:
        return []
    found = [] if has_type(schema, value) else [f"{at}: {value!r} is no {schema['type']}"]
    limits = {"maximum": INTEGER_MAX, **schema}
    found += [f"{at}: {value!r} breaks {name} {limits[name]}" for name, holds in LIMITS.items()
              if name in limits and not holds(limits[name], value)]
    if isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            found += misfits(schema["items"], item, f"{at}[{i}]")
    if isinstance(value, dict):
        found += [f"{at}: no {name}" for name in schema.get("required", ()) if name not in value]
        for name, member in value.items():
            if name in schema.get("properties", {}):
                found += misfits(schema["properties"][name], member, f"{at}.{name}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{at}: {name} is unknown")
            elif schema.get("additionalProperties"):
                found += misfits(schema["additionalProperties"], member, f"{at}.{name}")
    return found


def plain(schema):
    """The schema without `or null`, and whether null is allowed."""
    schema = resolve(schema)
    nullable = schema.get("nullable", False)
    if "allOf" in schema:
        assert set(schema) <= {"allOf", "nullable", "description"}, schema
        schema, = map(resolve, schema["allOf"])
    return schema, nullable


def spoiled(schema, value):
    """Values that differ from this one in one place that does not fit the schema, and whether that
    can be read all the same. The array is nobody's, also not in an object's place (see Bodies)."""
    schema, nullable = plain(schema)
    for wrong in (True, 1, 1.5, "~", "\u00fc\"", {"zz": 1}, None, ["~", 1.5]):
        if not has_type(schema, wrong) and not (wrong is None and nullable):
            yield wrong, False
    if schema.get("type") == "integer":
        yield from ((-1, False), (2**64, False), (46819066.0, False))
    if "enum" in schema:
        yield "~", False
    if "pattern" in schema:
        yield "~", True
    if "minimum" in schema:
        yield schema["minimum"] - 1, True
    if "maximum" in schema:
        yield schema["maximum"] + 1, True
    if "maxLength" in schema:
        yield "x" * (schema["maxLength"] + 1), True
    if "minProperties" in schema:
        yield {}, True
    if "items" in schema:
        assert value, "the richest example has an empty array"
        for wrong, is_read in spoiled(schema["items"], value[0]):
            yield [wrong, *value[1:]], is_read
    if schema.get("additionalProperties"):
        yield from (({"zz": wrong}, is_read)
                    for wrong, is_read in spoiled(schema["additionalProperties"], "x"))
    if "properties" in schema:
        assert isinstance(value, dict), "the richest example lacks an object"
        yield from spoiled_members(schema, value)


def spoiled_members(schema, value):
    for name in schema.get("required", ()):
        yield {key: member for key, member in value.items() if key != name}, False
    if schema.get("additionalProperties") is False:
        yield {**value, "zz": 1}, False
    for name, member in schema["properties"].items():
        if "properties" in plain(member)[0] or "items" in plain(member)[0]:
            assert name in value, f"the richest example lacks {name}"
        if not has_type(plain(member)[0], []):
            yield {**value, name: []}, False
        for wrong, is_read in spoiled(member, value.get(name)):
            yield {**value, name: wrong}, is_read


def extremes(schema, value):
    """Values that just fit: one member null, at a limit, or any of its list; the least members."""
    schema, nullable = plain(schema)
    if nullable:
        yield None
    if schema.get("type") == "integer":
        yield from (schema["minimum"], schema.get("maximum", INTEGER_MAX))
    yield from schema.get("enum", ())
    if "maxLength" in schema:
        yield "x" * schema["maxLength"]
    if "items" in schema:
        yield []
        yield from ([fits] for fits in extremes(schema["items"], value[0]))
    if "properties" in schema:
        if not schema.get("minProperties"):
            yield {name: value[name] for name in schema.get("required", ())}
        for name, member in schema["properties"].items():
            yield from ({**value, name: fits} for fits in extremes(member, value.get(name)))
