# SPDX-License-Identifier: Apache-2.0
"""The words of captions for the Pantry's factors: everyday words, and true but unusual ones."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Wording = Literal["plain", "unusual"]
Words = dict[str, tuple[str, ...]]

# Examples of each colour name, sRGB in hex: several per name, because names cover regions of different shapes.
_SWATCHES: dict[str, tuple[str, ...]] = {
    "red": ("c62f2f", "a8323a", "7a1f2b", "d4483f"),
    "orange": ("ea7a1f", "d9743f", "f0913c"),
    "yellow": ("e9c23c", "d9c04f", "e6d27a"),
    "green": ("3d8f4b", "2e6b3a", "8fb53a", "8fb890", "1f3d2b"),
    "teal": ("2f8a86", "6fb3ae"),
    "blue": ("2f6db0", "3a5f8f", "7fa6d0", "26355f", "a9c8e0"),
    "purple": ("7d4a94", "a884bd", "4b2f63"),
    "pink": ("dd7f9f", "eab3c3", "c9508a"),
    "brown": ("6b3a1a", "9a6335", "5b3a22", "7b5a3c"),
    "beige": ("dcc7a0", "c7a77c", "e3cfae"),
    "black": ("1c1c1e", "303034"),
    "grey": ("8d9094", "b4b3b0", "606367"),
    "white": ("f2efe8", "e6e8ea", "f6f6f4"),
}
COLOURS = tuple(_SWATCHES)


@dataclass(frozen=True)
class Lexicon:
    """Words of one kind for every factor; all entries of a tuple are equally likely.

    A noun with ``{}`` is a periphrasis, and ``{}`` is the place of its adjectives. Other nouns get an article.
    """

    nouns: Words
    colours: Words
    finishes: Words
    """Materials that are named before the colour."""
    stuffs: Words
    """Materials that are named after the colour."""
    patterns: Words
    grounds: Words
    """The surface under the object, with article; ``{}`` is the place of its colour."""
    looks: Words
    """Styles that are named before the object."""
    times: Words
    """Styles that are named at the end."""
    beside: tuple[str, ...]
    """Phrases in front of further objects."""


PLAIN = Lexicon(
    nouns={name: (name,) for name in ("mug", "bowl", "plate", "bottle", "jar", "pot", "pan", "kettle", "goblet",
                                      "spoon", "apple", "carrot")},
    colours={name: (name,) for name in (*COLOURS, "silver")},
    finishes={"matte": ("matte",), "glossy": ("glossy", "shiny")},
    stuffs={"metal": ("metal",), "glass": ("glass",)},
    patterns={"bands": ("banded",), "stripes": ("striped",), "dots": ("dotted",), "checks": ("checked",)},
    grounds={"worktop": ("a {} worktop", "a {} counter"), "wood": ("a {} wooden table",), "tiles": ("{} tiles",),
             "cloth": ("a {} cloth", "a {} tablecloth"), "marble": ("{} marble", "a {} marble top"),
             "boards": ("{} wooden boards", "{} planks")},
    looks={"poster": ("a poster of",), "sketch": ("a sketch of", "a drawing of")},
    times={"dusk": ("at dusk", "in the evening")},
    beside=("beside", "next to"),
)  # fmt: skip

# No word of PLAIN.nouns may occur here, not even inside a longer word ("saucepan", "spot").
UNUSUAL = Lexicon(
    nouns={
        "mug": ("tankard", "stout handled cup", "something {} to drink cocoa from"),
        "bowl": ("basin", "deep round dish", "something {} to eat cereal from"),
        "plate": ("platter", "flat dinner dish", "something {} that holds a dinner"),
        "bottle": ("flask", "narrow-necked vessel", "something {} to pour wine out of"),
        "jar": ("canister", "lidded tub for jam", "something {} to keep honey in"),
        "pot": ("casserole", "cauldron", "something {} to boil soup in"),
        "pan": ("skillet", "long-handled fryer", "something {} to fry eggs in"),
        "kettle": ("spouted water heater", "tea-water boiler", "something {} that whistles when the water boils"),
        "goblet": ("chalice", "long-stemmed cup", "something {} for a king to raise in a toast"),
        "spoon": ("ladle", "scoop for soup", "something {} to stir tea with"),
        "apple": ("pippin", "round orchard fruit", "something {} to press into cider"),
        "carrot": ("crunchy root", "pointed root vegetable", "something {} that rabbits love to eat"),
    },
    colours={
        "red": ("crimson", "scarlet"), "orange": ("tangerine", "apricot"), "yellow": ("lemon", "golden"),
        "green": ("emerald", "leafy"), "teal": ("turquoise", "sea-green"), "blue": ("azure", "cobalt"),
        "purple": ("violet", "plum"), "pink": ("rosy", "salmon"), "brown": ("chestnut", "chocolate"),
        "beige": ("sandy", "buff"), "black": ("ebony", "inky"), "grey": ("ashen", "slaty"),
        "silver": ("silvery", "pewter"), "white": ("snowy", "milky"),
    },
    finishes={"matte": ("dull", "lustreless"), "glossy": ("gleaming", "polished")},
    stuffs={"metal": ("metallic",), "glass": ("see-through", "crystal")},
    patterns={"bands": ("ringed",), "stripes": ("pinstriped",), "dots": ("speckled",), "checks": ("chequered",)},
    grounds={"worktop": ("a {} kitchen surface",), "wood": ("a {} timber table",), "tiles": ("{} ceramic squares",),
             "cloth": ("a {} sheet of linen", "{} fabric"), "marble": ("{} veined stone",),
             "boards": ("{} slats", "{} floor timber")},
    looks={"poster": ("a flat print of",), "sketch": ("pencil lines that show",)},
    times={"dusk": ("in failing light", "as night falls")},
    beside=("close to", "together with"),
)  # fmt: skip


def name_colours(colours: Tensor) -> list[str]:
    """The everyday name of each colour: that of the nearest example in Oklab.  sRGB [N, 3] in [0, 1] -> N names

    Source: Ottosson, "A perceptual color space for image processing", 2020 (Oklab's two matrices).
    """
    owner = [name for name, swatches in _SWATCHES.items() for _ in swatches]
    codes = [swatch for swatches in _SWATCHES.values() for swatch in swatches]
    known = torch.tensor([[int(code[place : place + 2], 16) / 255 for place in (0, 2, 4)] for code in codes])
    return [owner[row] for row in torch.cdist(_oklab(colours), _oklab(known)).argmin(1).tolist()]


def _oklab(colours: Tensor) -> Tensor:
    """Converts sRGB to Oklab, in which distances correspond to perceived differences.  [N, 3] -> [N, 3]"""
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    cones = linear @ torch.tensor(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    ).T  # fmt: skip
    return cones ** (1 / 3) @ torch.tensor(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    ).T  # fmt: skip
