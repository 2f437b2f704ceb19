"""YAML in and out: plain values alone, and what is written is read back the same."""

import re
from typing import Any

import yaml

__all__ = ["YAML_ERRORS", "dump_yaml", "parse_yaml"]

# Impossible dates are ValueErrors, deep nesting ends in a RecursionError.
YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)


def parse_yaml(text: str) -> Any:
    """The value of a YAML document; no Python object is ever made.

    Raises:
        one of ``YAML_ERRORS``: the text is no YAML, or a key stands twice.
    """
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def dump_yaml(tree: Any) -> str:
    """Plain values as YAML, mappings in their order."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False)
    return text


class _Loader(yaml.SafeLoader):
    """Plain values only, as ``yaml.safe_load``, with two traps taken out."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice; the first one would be lost in silence."""
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`_Loader` reads."""


# YAML 1.1 takes 1e-3 for text, for want of a dot; nobody who writes a learning rate does.
for _either in (_Loader, _Dumper):
    _either.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
