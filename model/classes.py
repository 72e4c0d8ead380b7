"""The classes that a model can name, and which of them are things.

Ids of published products are ``label_id + 1``, because 0 is void (input seen, nothing claimed).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SegmentClass:
    """One class of a model."""

    label_id: int
    """Index of the class in the model's logits, from 0."""
    name: str
    is_thing: bool
    """Things are countable (each object is a segment); stuff is one segment per class."""
    color: tuple[int, int, int]
    """Red, green, blue, 0-255; used for palettes and previews."""

    @property
    def class_id(self) -> int:
        """Id in the published products: ``label_id + 1``; 0 is void."""
        return self.label_id + 1


@dataclass(frozen=True, slots=True)
class ClassTable:
    """All classes of a model, ordered by label id without gaps."""

    classes: tuple[SegmentClass, ...]

    def __post_init__(self) -> None:
        ids = [c.label_id for c in self.classes]
        if ids != list(range(len(ids))):
            raise ValueError(f"Label ids must be 0…{len(ids) - 1} in order, got {ids[:10]}.")
        if len(ids) > 65_534:
            raise ValueError(f"A class raster holds at most 65,534 classes, got {len(ids)}.")
        names = [c.name for c in self.classes]
        twice = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise ValueError(f"Class names must be unique; named twice: {', '.join(twice[:5])}.")

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[SegmentClass]:
        return iter(self.classes)

    def __getitem__(self, label_id: int) -> SegmentClass:
        return self.classes[label_id]

    @property
    def thing_label_ids(self) -> frozenset[int]:
        return frozenset(c.label_id for c in self.classes if c.is_thing)

    def by_name(self, name: str) -> SegmentClass:
        """The class called ``name``; raises ``ValueError`` that lists the names there are."""
        for c in self.classes:
            if c.name == name:
                return c
        known = ", ".join(c.name for c in self.classes[:40])
        raise ValueError(f"No class is called {name!r}. The model's classes are: {known}.")

    def to_json(self) -> list[dict[str, object]]:
        """Rows of ``classes.json``: class_id, name, is_thing, color ``#rrggbb``, model_label_id."""
        return [
            {
                "class_id": c.class_id,
                "name": c.name,
                "is_thing": c.is_thing,
                "color": "#{:02x}{:02x}{:02x}".format(*c.color),
                "model_label_id": c.label_id,
            }
            for c in self.classes
        ]

    @classmethod
    def from_names(
        cls,
        names: list[str],
        thing_label_ids: frozenset[int] | set[int],
        colors: Sequence[str] | None = None,
    ) -> ClassTable:
        """A table with the given colours (``#rrggbb``), or generated, well-spread ones."""
        if colors is not None and len(colors) != len(names):
            raise ValueError(f"There are {len(names)} classes but {len(colors)} colours.")
        return cls(
            tuple(
                SegmentClass(
                    i,
                    name,
                    i in thing_label_ids,
                    spread_color(i) if colors is None else _parse_color(colors[i], i, "the class table"),
                )
                for i, name in enumerate(names)
            )
        )

    @classmethod
    def from_file(cls, path: str | Path) -> ClassTable:
        """Read a thing/stuff table: a JSON list of ``{"name", "is_thing"[, "color"]}`` in label order.

        ``classes.json`` of an earlier run is such a file. Raises ``ValueError`` that says which row is wrong.
        """
        try:
            rows = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise ValueError(
                f"Cannot read the class table {path}: {e}. Expected a JSON list of classes."
            ) from e
        if not isinstance(rows, list) or not rows:
            raise ValueError(f"The class table {path} must be a JSON list with at least one class.")
        return cls(tuple(_class_from_row(row, i, str(path)) for i, row in enumerate(rows)))


def _class_from_row(row: object, label_id: int, where: str) -> SegmentClass:
    wrong = f"Row {label_id} of the class table {where} must be an object with 'name' and 'is_thing', got {row!r}."
    fields = row if isinstance(row, dict) else {}
    name, is_thing = fields.get("name"), fields.get("is_thing", fields.get("isthing"))
    if not isinstance(name, str) or is_thing not in (True, False, 0, 1):
        raise ValueError(wrong)
    stated = fields.get("model_label_id", label_id)
    if stated != label_id:
        raise ValueError(
            f"Row {label_id} of {where} says model_label_id {stated}; rows must be in label order."
        )
    return SegmentClass(label_id, name, bool(is_thing), _parse_color(fields.get("color"), label_id, where))


def _parse_color(value: object, label_id: int, where: str) -> tuple[int, int, int]:
    if value is None:
        return spread_color(label_id)
    try:
        if isinstance(value, str):
            text = value.removeprefix("#")
            rgb = tuple(int(text[i : i + 2], 16) for i in (0, 2, 4))
        else:
            rgb = tuple(int(v) for v in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        rgb = ()
    if len(rgb) != 3 or not all(0 <= v <= 255 for v in rgb):
        raise ValueError(f"Row {label_id} of {where}: a colour is '#rrggbb' or [r, g, b], got {value!r}.")
    return (rgb[0], rgb[1], rgb[2])


def spread_color(index: int) -> tuple[int, int, int]:
    """A saturated colour for ``index``: hues step by the golden angle, so neighbours differ."""
    import colorsys

    r, g, b = colorsys.hsv_to_rgb((index * 0.61803398875 + 0.05) % 1.0, 0.65, 0.95 - 0.2 * (index % 3) / 2)
    return round(r * 255), round(g * 255), round(b * 255)
