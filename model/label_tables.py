"""Classes and thing/stuff split of the data sets that public checkpoints were trained on.

Checkpoints name their classes but do not say which are things; these tables do. A table is recognised by its number of
classes and most of its names. Names are the data sets' own (of several synonyms the first), in label order; ``*``
marks a thing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_COCO_THINGS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush
"""
_COCO_STUFF = """
banner, blanket, bridge, cardboard, counter, curtain, door-stuff, floor-wood, flower, fruit, gravel, house, light,
mirror-stuff, net, pillow, platform, playingfield, railroad, river, road, roof, sand, sea, shelf, snow, stairs, tent,
towel, wall-brick, wall-stone, wall-tile, wall-wood, water-other, window-blind, window-other, tree-merged,
fence-merged, ceiling-merged, sky-other-merged, cabinet-merged, table-merged, floor-other-merged, pavement-merged,
mountain-merged, grass-merged, dirt-merged, paper-merged, food-other-merged, building-other-merged, rock-merged,
wall-other-merged, rug-merged
"""
_ADE = """
wall, building, sky, floor, tree, ceiling, road, *bed, *window, grass, *cabinet, sidewalk, *person, earth, *door,
*table, mountain, plant, *curtain, *chair, *car, water, *painting, *sofa, *shelf, house, sea, *mirror, rug, field,
*armchair, *seat, *fence, *desk, rock, *wardrobe, *lamp, *tub, *rail, *cushion, base, *box, *column, *signboard,
*chest of drawers, *counter, sand, *sink, skyscraper, *fireplace, *refrigerator, grandstand, path, *stairs, runway,
*case, *pool table, *pillow, *screen door, stairway, river, bridge, *bookcase, blind, *coffee table, *toilet, *flower,
*book, hill, *bench, *countertop, *stove, *palm, *kitchen island, *computer, *swivel chair, *boat, bar,
*arcade machine, hovel, *bus, *towel, *light, *truck, tower, *chandelier, *awning, *street lamp, *booth, *tv, *plane,
dirt track, *clothes, *pole, land, *bannister, escalator, *ottoman, *bottle, buffet, poster, stage, *van, *ship,
*fountain, conveyer belt, canopy, *washer, *plaything, pool, *stool, *barrel, *basket, falls, tent, *bag, *minibike,
cradle, *oven, *ball, *food, *step, tank, *trade name, *microwave, *pot, *animal, *bicycle, lake, *dishwasher, *screen,
blanket, *sculpture, *hood, *sconce, *vase, *traffic light, *tray, *trash can, *fan, pier, crt screen, *plate,
*monitor, *bulletin board, shower, *radiator, *glass, *clock, *flag
"""
_CITYSCAPES = """
road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, *person, *rider,
*car, *truck, *bus, *train, *motorcycle, *bicycle
"""
_MAPILLARY = """
*Bird, *Ground Animal, Curb, Fence, Guard Rail, Barrier, Wall, Bike Lane, *Crosswalk - Plain, Curb Cut, Parking,
Pedestrian Area, Rail Track, Road, Service Lane, Sidewalk, Bridge, Building, Tunnel, *Person, *Bicyclist,
*Motorcyclist, *Other Rider, *Lane Marking - Crosswalk, Lane Marking - General, Mountain, Sand, Sky, Snow, Terrain,
Vegetation, Water, *Banner, *Bench, *Bike Rack, *Billboard, *Catch Basin, *CCTV Camera, *Fire Hydrant, *Junction Box,
*Mailbox, *Manhole, *Phone Booth, Pothole, *Street Light, *Pole, *Traffic Sign Frame, *Utility Pole, *Traffic Light,
*Traffic Sign (Back), *Traffic Sign (Front), *Trash Can, *Bicycle, *Boat, *Bus, *Car, *Caravan, *Motorcycle, On Rails,
*Other Vehicle, *Trailer, *Truck, *Wheeled Slow, Car Mount, Ego Vehicle
"""

_AGREEMENT = 0.6
"""Part of the names that must agree: copies of these lists differ in synonyms (tub, bathtub)."""


@dataclass(frozen=True, slots=True)
class LabelTable:
    """The classes of one data set as a checkpoint orders them."""

    dataset: str
    """coco, ade, cityscapes or mapillary."""
    names: tuple[str, ...]
    thing_label_ids: frozenset[int]

    @property
    def things_only(self) -> bool:
        """True for the tables of instance segmentation."""
        return len(self.thing_label_ids) == len(self.names)


def find_table(names: Sequence[str], hint: str = "") -> LabelTable | None:
    """The table with these names; for placeholder names (``LABEL_0``…) that of the data set named in ``hint``."""
    for table in TABLES:
        if len(table.names) != len(names):
            continue
        if are_placeholders(names):
            if re.search(rf"(?<![a-z]){table.dataset}(?![a-z])", hint.lower()):
                return table
            continue
        equal = sum(_plain(a) == _plain(b) for a, b in zip(names, table.names, strict=True))
        if equal >= _AGREEMENT * len(names):
            return table
    return None


def are_placeholders(names: Sequence[str]) -> bool:
    """True for the names that configurations get when nobody gave any."""
    return all(name == f"LABEL_{i}" for i, name in enumerate(names))


def _plain(name: str) -> str:
    """First synonym, lower case, letters and digits only: copies of the lists differ in the rest."""
    return re.sub(r"[^a-z0-9]", "", name.split(",")[0].lower())


def _table(dataset: str, text: str) -> LabelTable:
    entries = [entry.strip() for entry in text.split(",")]
    things = frozenset(i for i, entry in enumerate(entries) if entry.startswith("*"))
    return LabelTable(dataset, tuple(entry.removeprefix("*") for entry in entries), things)


def _things_of(table: LabelTable) -> LabelTable:
    """The data set's instance segmentation: its things, in the same order."""
    names = tuple(table.names[i] for i in sorted(table.thing_label_ids))
    return LabelTable(table.dataset, names, frozenset(range(len(names))))


COCO = _table("coco", ",".join("*" + n.strip() for n in _COCO_THINGS.split(",")) + "," + _COCO_STUFF)
ADE = _table("ade", _ADE)
CITYSCAPES = _table("cityscapes", _CITYSCAPES)
MAPILLARY = _table("mapillary", _MAPILLARY)
TABLES = (COCO, ADE, CITYSCAPES, MAPILLARY, *map(_things_of, (COCO, ADE, CITYSCAPES, MAPILLARY)))
