"""Draws one clothed pedestrian: who it is (Identity), what it does (Pose), and the picture of both (Painter).

FAMILY_SIZE people form a family of look-alikes: they share cut, pattern, hair style and kind of bag. Mostly the
absolute colour and lightness of their clothes tell them apart. Instance normalisation removes the channel means and
variances of each image, and so blurs that difference.
"""

import colorsys
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, ...]  # red, green, blue and perhaps opacity, 0 to 255
FAMILY_SIZE = 6
# Patches (top, bottom, left, right) of a torso that reaches from 0 to 1 downwards and from -1 to 1 across.
PATTERNS = {
    "plain": (),
    "hoops": tuple((k / 4 + 0.1, k / 4 + 0.22, -1, 1) for k in range(4)),
    "stripes": tuple((0, 1, k / 2 - 0.85, k / 2 - 0.6) for k in range(4)),
    "check": tuple((k / 6, (k + 1) / 6, c + k % 2 / 2, c + k % 2 / 2 + 0.5) for k in range(6) for c in (-1, 0)),
    "block": ((0.45, 1, -1, 1),),
    "open": ((0, 1, -0.3, 0.3),),
}


class Identity(NamedTuple):
    """What is the same in all pictures of a person."""

    pattern: str
    bag: str
    lower_kind: str
    long_hair: bool
    hat: bool
    short_sleeves: bool
    hem: float
    build: float
    height: float
    skin: Colour
    hair: Colour
    upper: Colour
    accent: Colour
    lower: Colour
    shoes: Colour
    extra: Colour  # bag and hat


class Pose(NamedTuple):
    """What differs between pictures of a person."""

    yaw: float  # radians, 0 = towards the camera
    stride: float
    swing: float
    lean: float
    shift: float
    drop: float
    scale: float


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(round(factor * channel) for channel in colour)


def draw_identity(family: np.random.Generator, own: np.random.Generator, member: int) -> Identity:
    """Draws a person: the cut of the clothes from the family's generator, most colours from the person's own.

    The members of a family wear one outfit in two pairs of hues, each pair dark, medium and light.
    """
    hues, saturation, shades = family.random(2), family.uniform(0.2, 0.85), family.uniform(0.55, 1.0, 2)
    hues += (member // 3) * family.uniform(0.25, 0.75) + own.normal(0.0, 0.02, 2)
    light = own.uniform(*((0.22, 0.32), (0.48, 0.6), (0.85, 1.0))[member % 3])
    skin = np.clip(family.random() + own.normal(0.0, 0.15), 0.0, 1.0)
    return Identity(
        pattern=family.choice(list(PATTERNS)),
        bag=family.choice(["none", "backpack", "shoulder", "hand"]),
        lower_kind=family.choice(["trousers", "shorts", "skirt"], p=[0.6, 0.2, 0.2]),
        long_hair=family.random() < 0.4,
        hat=family.random() < 0.25,
        short_sleeves=family.random() < 0.4,
        hem=family.choice([0.52, 0.70], p=[0.75, 0.25]),
        build=own.uniform(0.9, 1.15),
        height=own.uniform(0.95, 1.05),
        skin=_hsv(0.07, 0.3 + 0.3 * skin, 0.95 - 0.6 * skin),
        hair=_hsv(0.08, own.uniform(0.1, 0.6), family.choice([0.1, 0.25, 0.45, 0.75])),
        upper=_hsv(hues[0], saturation, shades[0] * light),
        accent=_hsv(hues[0] + family.choice([0.0, 0.3, 0.5]), 0.8 * saturation, 0.45 * shades[0] * light),
        lower=_hsv(hues[1], 0.7 * saturation, shades[1] * light),
        shoes=_hsv(own.random(), own.uniform(0.0, 0.6), own.choice([0.12, 0.4, 0.9])),
        extra=_hsv(own.random(), saturation, own.uniform(0.2, 0.9)),
    )


def draw_pose(rng: np.random.Generator, yaw: float) -> Pose:
    """Draws a pose that faces approximately `yaw`."""
    stride, swing = rng.uniform(-1.0, 1.0, 2)
    lean, shift, drop, scale, turn = rng.normal(0.0, (0.02, 0.03, 0.015, 0.04, 0.35))
    return Pose(yaw + turn, stride, swing, lean, shift, drop, 1.0 + scale)


class Painter:
    """Paints a person into an RGB image, in place.

    image: the scene behind the person. height: of an average person, as a share of the image's height. tilt: how far
    the camera looks down (0 to 0.5): larger heads, shorter legs.
    Coordinates are in body heights: x from the body's axis, y from 0 (crown) to 1 (soles).
    """

    def __init__(self, image: Image.Image, person: Identity, pose: Pose, height: float, tilt: float):
        self.draw = ImageDraw.Draw(image, "RGBA")
        self.person, self.pose, self.tilt = person, pose, tilt
        self.unit = min(image.height, 2 * image.width) * height * pose.scale * person.height
        self.centre = image.width / 2 + pose.shift * self.unit
        self.top = (image.height - self.unit) / 2 + pose.drop * self.unit
        self.front, self.side = math.cos(pose.yaw), math.sin(pose.yaw)
        self.near = 1 if self.side >= 0 else -1
        self.half = person.build * (0.105 * abs(self.front) + 0.07 * abs(self.side))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point, for a camera that looks down."""
        x = x * (1 + self.tilt * (0.5 - y)) + self.pose.lean * (1 - y)
        y = y + 0.5 * self.tilt * y * (1 - y)
        return self.centre + x * self.unit, self.top + y * self.unit

    def quad(
        self, colour: Colour, y0: float, y1: float, left0: float, right0: float, left1: float, right1: float
    ) -> None:
        corners = self.at(left0, y0), self.at(right0, y0), self.at(right1, y1), self.at(left1, y1)
        self.draw.polygon(corners, fill=colour)

    def disc(self, colour: Colour, x: float, y: float, rx: float, ry: float) -> None:
        self.draw.ellipse((*self.at(x - rx, y - ry), *self.at(x + rx, y + ry)), fill=colour)

    def limb(self, colour: Colour, start: tuple[float, float], end: tuple[float, float], r0: float, r1: float) -> None:
        self.quad(colour, start[1], end[1], start[0] - r0, start[0] + r0, end[0] - r1, end[0] + r1)
        self.disc(colour, *start, r0, r0)
        self.disc(colour, *end, r1, r1)

    def torso_patch(self, colour: Colour, top: float, bottom: float, left: float, right: float) -> None:
        w0, w1 = self.half * (1 - 0.15 * top), self.half * (1 - 0.15 * bottom)
        y0, y1 = (0.17 + (self.person.hem - 0.17) * t for t in (top, bottom))
        self.quad(colour, y0, y1, left * w0, right * w0, left * w1, right * w1)

    def leg(self, sign: int) -> None:
        person, stride = self.person, sign * self.pose.stride
        fade = 1.0 if sign == self.near else 0.82
        cloth, bare, shoe = (_shade(colour, fade) for colour in (person.lower, person.skin, person.shoes))
        lift, thick = 0.02 * max(0.0, stride), 0.046 * person.build
        hip = (sign * 0.5 * self.half * abs(self.front), 0.50)
        knee = (hip[0] + 0.06 * stride * self.side, 0.73 - lift)
        ankle = (hip[0] + 0.13 * stride * self.side, 0.95 - lift)
        self.limb(bare if person.lower_kind == "skirt" else cloth, hip, knee, thick, 0.8 * thick)
        self.limb(cloth if person.lower_kind == "trousers" else bare, knee, ankle, 0.76 * thick, 0.55 * thick)
        self.disc(shoe, ankle[0] + 0.03 * self.side, 0.975 - lift, 0.03 + 0.015 * abs(self.side), 0.02)

    def arm(self, sign: int) -> None:
        person, swing = self.person, -sign * self.pose.swing
        fade = 0.92 if sign == self.near else 0.78
        cloth, bare = _shade(person.upper, fade), _shade(person.skin, fade)
        shoulder = (sign * 0.105 * person.build * abs(self.front), 0.20)
        elbow = (shoulder[0] + sign * 0.02 * abs(self.front) + 0.05 * swing * self.side, 0.34)
        hand = (elbow[0] + 0.07 * swing * self.side, 0.48 - 0.02 * abs(swing))
        self.disc(bare, *hand, 0.02, 0.025)
        self.limb(bare if person.short_sleeves else cloth, elbow, hand, 0.025, 0.02)
        self.limb(cloth, shoulder, elbow, 0.032 * person.build, 0.027)
        if person.bag == "hand" and sign > 0:
            x, y = hand
            self.quad(person.extra, y + 0.03, y + 0.15, x - 0.05, x + 0.05, x - 0.06, x + 0.06)

    def torso(self) -> None:
        person, w = self.person, self.half
        if person.lower_kind == "skirt":
            self.quad(person.lower, 0.48, 0.72, -0.8 * w, 0.8 * w, -1.15 * w, 1.15 * w)
        self.disc(person.skin, 0.0, 0.15, 0.028, 0.04)
        self.disc(person.upper, 0.0, 0.182, w, 0.03)
        self.torso_patch(person.upper, 0, 1, -1, 1)
        if person.pattern != "open" or self.front > -0.2:
            for patch in PATTERNS[person.pattern]:
                self.torso_patch(person.accent, *patch)
        if person.bag == "shoulder":
            self.quad(person.extra, 0.17, 0.46, 0.5 * w, 0.8 * w, -0.95 * w, -0.7 * w)
            self.quad(person.extra, 0.43, 0.56, -1.3 * w, -0.3 * w, -1.3 * w, -0.3 * w)
        if person.bag == "backpack" and self.front > 0.5:
            for left in (-0.7, 0.45):
                self.torso_patch(person.extra, 0, 0.55, left, left + 0.25)
        elif person.bag == "backpack":
            x, half = -0.085 * self.side, 0.05 + 0.03 * abs(self.front)
            self.disc(person.extra, x, 0.20, half, 0.025)
            self.quad(person.extra, 0.20, 0.42, x - half, x + half, x - half, x + half)
            self.quad(_shade(person.extra, 0.7), 0.32, 0.335, x - half, x + half, x - half, x + half)
        self.torso_patch((0, 0, 0, 45), 0, 1, 0.45, 1)

    def head(self) -> None:
        person, x = self.person, 0.02 * self.side
        self.disc(person.hair, x, 0.08, 0.062, 0.075)
        if self.front > -0.35:
            self.disc(person.skin, x + 0.025 * self.side, 0.10, 0.05, 0.058)
        elif person.long_hair:
            self.quad(person.hair, 0.08, 0.26, x - 0.062, x + 0.062, x - 0.055, x + 0.055)
        if person.hat:
            self.disc(person.extra, x, 0.035, 0.06, 0.04)
            self.disc(_shade(person.extra, 0.75), x + 0.05 * self.side, 0.06, 0.065, 0.014)

    def paint(self) -> None:
        self.disc((0, 0, 0, 70), 0.02, 0.975, 0.16, 0.025)
        if self.person.long_hair and self.front > -0.35:
            self.quad(self.person.hair, 0.08, 0.25, -0.06, 0.06, -0.075, 0.075)
        self.arm(-self.near)
        self.leg(-self.near)
        self.leg(self.near)
        self.torso()
        self.arm(self.near)
        self.head()
