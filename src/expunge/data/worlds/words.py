"""The raw material of a world: syllables that make names nobody has, and words that make values."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from expunge.errors import UsageError


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


_GIVEN = (
    _listed(
        "Ad, Bel, Cor, Dav, El, Fen, Gal, Hes, Il, Jor, Kel, Lor, Mir, Nev, Or, Per, Quil, Ros, Sel, Tam, Ul, "
        "Ver, Wil, Yar, Zan"
    ),
    _listed("a, an, ara, eda, el, en, eth, ia, il, ina, is, o, ol, on, une"),
)
_FAMILY = (
    _listed(
        "Ash, Bran, Cal, Dun, Er, Fal, Gren, Hol, Is, Kar, Lin, Mar, Nor, Ost, Pell, Ras, Sol, Tor, Und, Vas, "
        "Wen, Yel, Zor"
    ),
    _listed("ander, berg, by, creek, dahl, er, ford, gate, holt, ick, low, mere, ost, quist, vane"),
)
_TOWN = (
    _listed("Al, Bra, Cre, Dro, Es, Fro, Gla, Hu, Ka, Lu, Mo, Ne, Os, Pra, Ru, Sta, Tri, Vel"),
    _listed("bo, da, go, li, ma, ne, ra, so, ta, vi"),
    _listed("den, fell, kar, lund, mora, nia, port, sund, tova, wick"),
)

SHIPS = _listed(
    "Albatross, Beacon, Comet, Dolphin, Ember, Falcon, Gannet, Heron, Ibis, Jackdaw, Kestrel, Meridian, "
    "Nightjar, Osprey, Petrel, Raven, Swallow, Tern, Voyager"
)
ADJECTIVES = _listed(
    "amber, brass, broken, copper, crooked, distant, faded, folded, frozen, gilded, hollow, iron, ivory, "
    "narrow, painted, paper, patient, scarlet, silent, silver, tidal, velvet"
)
NOUNS = _listed(
    "anchor, basket, bell, bridge, candle, clock, drum, cradle, garden, harbour, kettle, ladder, lantern, "
    "ledger, mirror, orchard, pavilion, quarry, saddle, staircase, violin"
)
TERRAINS = _listed("border, canal, fishing, harbour, hill, market, mining, mountain, railway, spa")
MONTHS = _listed("January, February, March, April, May, June, July, August, September, October, November, December")
METALS = _listed("Bronze, Copper, Crystal, Golden, Iron, Ivory, Silver, Steel")
TROPHIES = _listed("Anchor, Compass, Feather, Inkwell, Laurel, Pen, Quill, Wreath")
FIELDS = _listed(
    "Biography, Comedy, Criticism, Drama, Essays, Fables, History, Letters, Memoir, Poetry, Reportage, "
    "Satire, Translation, Travel"
)
SUBJECTS = _listed(
    "acoustics, archaeology, astronomy, botany, cartography, chemistry, geology, law, linguistics, medicine, "
    "metallurgy, music, optics, philosophy, statistics, zoology"
)
SCHOOLS = _listed("Academy, College, Conservatory, Institute, Lyceum, Polytechnic, Seminary, University")
BUILDINGS = _listed("barn, boathouse, chapel, cottage, farmhouse, lighthouse, mill, station, tower, windmill")
ANIMALS = _listed("badger, crow, ferret, goat, goose, hare, heron, lynx, otter, owl, tortoise, wolfhound")
COLOURS = _listed("black, brown, golden, grey, red, russet, spotted, striped, white")
CRAFTS = _listed(
    "carving, collecting, drawing, engraving, mending, painting, polishing, restoring, sketching, trading, weaving"
)
GENRES = _listed(
    "adventure stories, comic verse, detective stories, family sagas, fantasy tales, ghost stories, "
    "historical novels, love letters, philosophical dialogues, radio plays, science fiction, sea ballads"
)
HEROES = _listed(
    "acrobats, astronomers, bakers, beekeepers, botanists, clockmakers, divers, ferrymen, foresters, "
    "gardeners, innkeepers, mapmakers, monks, pilots, sailors, tailors, weavers, widows"
)
TRADES = _listed(
    "baker, barber, blacksmith, bookbinder, brewer, carpenter, cooper, dyer, falconer, glazier, locksmith, "
    "miller, potter, ropemaker, saddler, shepherd, stonemason, tanner"
)
DISHES = _listed("barley soup, braised goose, grilled trout, lentil stew, onion tart, roast duck, smoked eel")
SAUCES = _listed("capers, chestnuts, fennel, honey, juniper, lemons, mint, mustard, plums, quinces, saffron")
SEASONS = _listed("spring, summer, autumn, winter")


def names(rng: random.Random, count: int) -> list[str]:
    """`count` people, no two of whom share a given or a family name.

    Raises:
        UsageError: there are not that many names.
    """
    given, family = _shuffled(rng, _GIVEN), _shuffled(rng, _FAMILY)
    most = min(len(given), len(family))
    if count > most:
        raise UsageError(f"a world has at most {most} people, not {count}", hint=f"use --people {most}")
    return [f"{one} {two}" for one, two in zip(given[:count], family[:count], strict=True)]


def towns(rng: random.Random, count: int) -> list[str]:
    """`count` different names of towns, or all there are."""
    return _shuffled(rng, _TOWN)[:count]


def _shuffled(rng: random.Random, parts: Sequence[Sequence[str]]) -> list[str]:
    found = ["".join(part) for part in itertools.product(*parts)]
    rng.shuffle(found)
    return found
