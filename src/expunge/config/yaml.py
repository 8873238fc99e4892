"""YAML as recipes use it: `1e-5` is a number, and a key written twice is an error instead of the second one winning."""

from __future__ import annotations

import re
from typing import Any

import yaml

from expunge.errors import UsageError


class _Loader(yaml.SafeLoader):
    """SafeLoader with the floats of YAML 1.2 and without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"key {key!r} is written twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


# YAML 1.1 reads 1e-5 (without a dot) as a string; everyone who writes a learning rate means the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, *, origin: str) -> Any:
    """The value of a YAML document; never runs code.

    Args:
        text: the document.
        origin: file or option it came from, for the error.

    Raises:
        UsageError: not YAML; the message says the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{origin}{where}: not valid YAML: {problem}", hint="check quotes and indentation") from error
