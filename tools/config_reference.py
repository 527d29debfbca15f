"""Write the reference of config fields into docs/config.md, from their declaration.

python tools/config_reference.py           write it
python tools/config_reference.py --check   exit with 1 if it is out of date
"""

import dataclasses
import sys
import typing
from pathlib import Path

from jaxseg.config import schema
from jaxseg.config.fields import Field

FILE = Path(__file__).parents[1] / "docs" / "config.md"
BEGIN = "<!-- fields: begin (python tools/config_reference.py) -->"
END = "<!-- fields: end -->"
LISTED = 8  # names that a cell shows
# Heading -> (path of the part in a config, its dataclass).
PARTS = {
    "The run": ("config", schema.Experiment),
    "`config.model`": ("config.model", schema.ModelConfig),
    "`config.model.norm`": ("config.model.norm", schema.NormConfig),
    "`config.losses.<label>`": ("config.losses.<label>", schema.LossConfig),
    "`config.dataset`": ("config.dataset", schema.DatasetConfig),
    "`config.dataset.concat.<label>`": ("config.dataset.concat.<label>", schema.ConcatConfig),
    "`config.optimizer`": ("config.optimizer", schema.OptimizerConfig),
    "`config.optimizer.multipliers.<label>`": (
        "config.optimizer.multipliers.<label>",
        schema.MultiplierConfig,
    ),
    "`config.schedule`": ("config.schedule", schema.ScheduleConfig),
    "`config.eval`": ("config.eval", schema.EvalConfig),
}


def type_in_words(annotation: object) -> str:
    """Return a type as a reader writes it: 'int', '(int, int)', 'dict'."""
    if typing.get_origin(annotation) is tuple:
        arguments = [type_in_words(a) for a in typing.get_args(annotation) if a is not ...]
        return f"({', '.join(arguments)}{', ...' if ... in typing.get_args(annotation) else ''})"
    if typing.get_origin(annotation) is not None and hasattr(typing.get_origin(annotation), "keys"):
        return "dict"
    text = getattr(annotation, "__name__", None) or str(annotation)
    return {"Any": "value"}.get(text, text).replace(" | None", " or None")


def rows(part: type) -> list[str]:
    """Return the table rows of a dataclass: field, type, default, range, meaning."""
    hints = typing.get_type_hints(part)
    lines = []
    for field in dataclasses.fields(part):
        if "node" not in field.metadata:
            continue
        node = field.metadata["node"]
        default = "{}" if field.default is dataclasses.MISSING else repr(field.default)
        words = node.words if isinstance(node, Field) else f"entries like `{node.example}`"
        if isinstance(node, Field) and len(node.names) > LISTED:
            words = "a known name"
        cells = [
            f"`{field.name}`",
            type_in_words(hints[field.name]),
            f"`{default}`",
            words,
            field.metadata["meaning"],
        ]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def reference() -> str:
    """Return the whole reference, between its markers."""
    text = [BEGIN]
    for heading, (_, part) in PARTS.items():
        text += ["", f"### {heading}", ""]
        text += ["| field | type | default | must be | meaning |", "|---|---|---|---|---|"]
        text += rows(part)
    return "\n".join([*text, "", END])


def main(arguments: list[str]) -> int:
    """Write docs/config.md, or with --check compare; return the exit status."""
    old = FILE.read_text(encoding="utf-8")
    before, _, rest = old.partition(BEGIN)
    after = rest.partition(END)[2]
    new = before + reference() + after
    if "--check" in arguments:
        return int(new != old)
    FILE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
