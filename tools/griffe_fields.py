"""Griffe extension: document dataclass fields that jaxseg declares with their meaning."""

import ast
from typing import Any

import griffe

# Both take the meaning last; `declare` takes the default first, `declare_entries` implies {}.
DECLARATIONS = ("declare", "declare_entries")
HEADING = "\nAttributes:\n"


class DeclaredFields(griffe.Extension):
    """Show a field's meaning in its class's table, and its default in the signature."""

    def __init__(self) -> None:
        super().__init__()
        self._meanings: dict[str, str] = {}

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Note the meaning of a declared field and put its default in place of the declaration."""
        call = getattr(node, "value", None)
        name = getattr(getattr(call, "func", None), "id", "")
        if isinstance(call, ast.Call) and name in DECLARATIONS:
            self._meanings[attr.path] = ast.literal_eval(call.args[-1])
            attr.value = attr.value.arguments[0] if name == "declare" else "{}"

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Add the meanings to the section `Attributes` of the class's docstring."""
        declared = [a for a in cls.attributes.values() if a.path in self._meanings]
        if not declared or cls.docstring is None:
            return
        summary, _, others = cls.docstring.value.partition(HEADING)
        others = others.strip("\n")
        lines = [
            f"    {a.name}: {self._meanings[a.path]}"
            for a in declared
            if not f"\n{others}".count(f"\n    {a.name}: ")
        ]
        cls.docstring.value = "\n".join(
            [summary.rstrip() + "\n" + HEADING.rstrip(), *lines, others]
        )
