"""JSON whose lists are too long for memory: written item by item."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonList:
    """A JSON list in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file = path.open("w", encoding="utf-8")
        self._file.write("[")

    def close(self) -> None:
        self._file.close()

    def append(self, item: Mapping[str, Any]) -> None:
        """Add one item, on a line of its own."""
        self._file.write(",\n" if self.count else "\n")
        json.dump(item, self._file, ensure_ascii=False, separators=(",", ":"))
        self.count += 1

    def finish(self) -> None:
        """End the list and close the file."""
        self._file.write("\n]")
        self._file.close()


class JsonDocument:
    """A JSON object with some long lists, each in a scratch file beside it until ``finish`` joins them."""

    def __init__(self, path: Path, lists: tuple[str, ...]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lists = {name: JsonList(path.with_name(f".{path.stem}.{name}")) for name in lists}

    def close(self) -> None:
        for items in self._lists.values():
            items.close()

    def append(self, name: str, item: Mapping[str, Any]) -> int:
        """Add an item to the list ``name``; returns its number, from 1."""
        self._lists[name].append(item)
        return self._lists[name].count

    def finish(self, fields: Mapping[str, Any]) -> None:
        """Write the object: ``fields``, then the lists."""
        with self._path.open("w", encoding="utf-8") as file:
            file.write("{\n")
            for name, value in fields.items():
                file.write(f"{json.dumps(name)}:{json.dumps(value, ensure_ascii=False)},\n")
            for i, (name, items) in enumerate(self._lists.items()):
                items.finish()
                file.write((",\n" if i else "") + f"{json.dumps(name)}:")
                with items.path.open(encoding="utf-8") as part:
                    shutil.copyfileobj(part, file)
                items.path.unlink()
            file.write("\n}\n")
