"""The part of JSON Schema that the description uses: to check values, and to make them."""

from __future__ import annotations

import math
import re

from hypothesis import strategies as st


class Schemas:
    """The schemas of an OpenAPI document.

    :param document: the document.
    """

    KEYWORDS = frozenset(
        {
            *("type", "enum", "anyOf", "$ref", "title", "description", "default"),
            *("properties", "required", "additionalProperties", "propertyNames", "items"),
            *("minLength", "maxLength", "pattern", "contentEncoding"),
            *("minimum", "maximum", "exclusiveMinimum"),
        }
    )

    def __init__(self, document) -> None:
        self.document = document

    def resolve(self, schema):
        if "$ref" in schema:
            value = self.document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                value = value[part]
            schema = value
        unknown = set(schema) - self.KEYWORDS
        assert not unknown, f"the description uses {unknown}, which nothing here checks"
        return schema

    def problems(self, schema, value, where="$"):
        """Return what is wrong with a value."""
        schema = self.resolve(schema)
        if "anyOf" in schema:
            if any(not self.problems(option, value) for option in schema["anyOf"]):
                return []
            return [f"{where}: {value!r} fits none of {schema['anyOf']}"]
        if "enum" in schema:
            return [] if value in schema["enum"] else [f"{where}: {value!r}"]
        kind = schema.get("type")
        if kind is not None and not _TYPES[kind](value):
            return [f"{where}: {value!r} is no {kind}"]
        found = []
        if kind == "object":
            properties = schema.get("properties", {})
            found += [f"{where}: no {n}" for n in schema.get("required", ()) if n not in value]
            other = schema.get("additionalProperties", True)
            for name, item in value.items():
                if name in properties:
                    found += self.problems(properties[name], item, f"{where}.{name}")
                elif other is False:
                    found.append(f"{where}: unknown {name}")
                elif isinstance(other, dict):
                    found += self.problems(other, item, f"{where}.{name}")
        elif kind == "array":
            for index, item in enumerate(value):
                found += self.problems(schema.get("items", {}), item, f"{where}[{index}]")
        elif kind == "string":
            fits = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf)
            if not fits or not re.search(schema.get("pattern", ""), value):
                found.append(f"{where}: {value!r}")
        elif kind in ("integer", "number"):
            low = schema.get("minimum", -math.inf)
            above = schema.get("exclusiveMinimum", -math.inf)
            if not (low <= value <= schema.get("maximum", math.inf) and value > above):
                found.append(f"{where}: {value!r}")
        return found

    def values(self, schema):
        """Return a strategy of values that fit a schema."""
        schema = self.resolve(schema)
        if "anyOf" in schema:
            return st.one_of([self.values(option) for option in schema["anyOf"]])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        kind = schema.get("type")
        if kind is None:
            return JSON_VALUES
        if kind == "object":
            properties = schema.get("properties", {})
            required = set(schema.get("required", ()))
            if not properties:
                other = schema.get("additionalProperties", {})
                names = st.from_regex(r"-?[0-9]{1,3}", fullmatch=True) | st.text(max_size=5)
                return st.dictionaries(names, self.values(other or {}), max_size=2)
            return st.fixed_dictionaries(
                {name: self.values(properties[name]) for name in properties if name in required},
                optional={n: self.values(properties[n]) for n in properties if n not in required},
            )
        if kind == "array":
            return st.lists(self.values(schema.get("items", {})), max_size=3)
        if kind == "string":
            if schema.get("contentEncoding") == "base64":
                return st.sampled_from(["", "AAAA", "Zm9v", "CgQIAhAB", "CgA="])
            if "pattern" in schema:
                return st.from_regex(schema["pattern"], alphabet="abcä/_9").filter(
                    lambda text: text and not text.endswith("\n")
                )
            return st.text(min_size=schema.get("minLength", 0), max_size=8)
        if kind == "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum"))
        if kind == "number":
            return st.floats(
                schema.get("minimum", schema.get("exclusiveMinimum")),
                schema.get("maximum"),
                exclude_min="exclusiveMinimum" in schema,
                allow_nan=False,
                allow_infinity=False,
            )
        return {"boolean": st.booleans(), "null": st.none()}[kind]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)

_TYPES = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
