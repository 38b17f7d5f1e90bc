"""The built-in synthetic people: pedestrians (pedestrian.py) in six camera networks, one per domain.

The domains differ as real camera networks do: in colour cast, contrast, gamma, blur, resolution, noise, scene,
viewpoint and scale. Statistics of some domains therefore do not fit another. The last domain, `underpass`, is the
unseen target: more extreme than all others in cast, gamma, blur, resolution and noise.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from metabin_jax.data import pedestrian
from metabin_jax.data.records import Record

DRAWING = "drawing 1"  # names what is drawn: change it with the drawing
SUPERSAMPLING = 3
SCENE_WIDTHS = 6  # a camera's scene is this many images wide, and each image shows a random part of it
MIN_SIZE = (16, 8)


class Camera(NamedTuple):
    """A network of cameras: value = offset + contrast * gain * light ** gamma per channel, all in [0, 1]."""

    yaws: tuple[float, ...]  # one per camera: the direction that people face, in radians, 0 = towards the camera
    gain: tuple[float, ...]
    offset: float
    contrast: float
    gamma: float
    blur: float  # radius in pixels of an image 64 pixels high
    resolution: float  # of the sensor, per side, relative to the image
    noise: float  # standard deviation
    height: float  # of a person / of the image
    tilt: float  # how far the camera looks down, see pedestrian.Painter
    wall: tuple[pedestrian.Colour, ...]
    floor: pedestrian.Colour
    motif: tuple[str, float, float]  # things before the wall: shape, largest width and height in image heights


DOMAINS = {
    "plaza": Camera(
        yaws=(0.2, 2.9, 1.2), gain=(1.1, 1.0, 0.84), offset=0.02, contrast=1.02, gamma=0.9,
        blur=0.2, resolution=1.0, noise=0.012, height=0.92, tilt=0.12,
        wall=((214, 190, 160), (190, 150, 120), (120, 130, 140), (90, 80, 80)),
        floor=(196, 184, 166), motif=("rectangle", 0.2, 0.3),
    ),
    "campus": Camera(
        yaws=(0.6, -2.4), gain=(0.9, 1.06, 0.86), offset=0.0, contrast=0.98, gamma=1.1,
        blur=0.5, resolution=0.85, noise=0.02, height=0.86, tilt=0.05,
        wall=((190, 210, 224), (110, 140, 70), (50, 80, 50), (70, 110, 60)),
        floor=(130, 146, 92), motif=("ellipse", 0.4, 0.35),
    ),
    "station": Camera(
        yaws=(-0.3, 3.0, -1.3), gain=(0.84, 1.03, 0.98), offset=0.08, contrast=0.78, gamma=1.0,
        blur=0.6, resolution=0.75, noise=0.03, height=0.9, tilt=0.32,
        wall=((150, 156, 150), (96, 104, 104), (196, 196, 180)),
        floor=(126, 124, 120), motif=("rectangle", 0.15, 2.0),
    ),
    "mall": Camera(
        yaws=(0.0, 1.6), gain=(1.06, 0.97, 1.04), offset=0.24, contrast=0.66, gamma=0.85,
        blur=0.4, resolution=0.9, noise=0.016, height=0.95, tilt=0.2,
        wall=((236, 226, 220), (200, 90, 110), (90, 150, 190), (230, 190, 90)),
        floor=(224, 216, 214), motif=("rectangle", 0.5, 0.6),
    ),
    "street": Camera(
        yaws=(-0.9, 2.2), gain=(0.86, 0.95, 1.14), offset=-0.02, contrast=1.0, gamma=1.2,
        blur=0.3, resolution=0.8, noise=0.02, height=0.84, tilt=0.1,
        wall=((150, 154, 164), (128, 88, 76), (70, 80, 100), (180, 180, 172), (120, 44, 44)),
        floor=(104, 106, 110), motif=("rounded_rectangle", 0.5, 0.2),
    ),
    "underpass": Camera(
        yaws=(0.4, -2.8, 1.8), gain=(1.15, 0.72, 0.42), offset=0.03, contrast=0.95, gamma=1.25,
        blur=0.7, resolution=0.6, noise=0.045, height=0.88, tilt=0.24,
        wall=((84, 80, 78), (120, 116, 108), (60, 58, 60), (255, 240, 210)),
        floor=(110, 104, 98), motif=("ellipse", 0.15, 0.15),
    ),
}  # fmt: skip
DOMAIN_NAMES = tuple(DOMAINS)


def list_records(
    domains: Sequence[str] = DOMAIN_NAMES, ids_per_domain: int = 40, images_per_id: int = 8
) -> list[Record]:
    """The records that `generate` returns, without drawing the images."""
    return [
        Record(f"synthetic/{name}/{pid:04d}_c{camid}_{index:02d}", pid, camid, name, "all")
        for name in domains
        for pid in range(ids_per_domain)
        for index in range(images_per_id)
        for camid in [1 + index % len(DOMAINS[name].yaws)]
    ]


def generate(
    seed: int,
    domains: Sequence[str] = DOMAIN_NAMES,
    ids_per_domain: int = 40,
    images_per_id: int = 8,
    size: tuple[int, int] = (64, 32),
) -> tuple[np.ndarray, list[Record]]:
    """Draws the set. An image depends on (seed, domain, pid, its number, size) only.

    Args:
      domains: which of DOMAIN_NAMES, in this order.
      images_per_id: images of each identity, taken by the domain's cameras in turn.
      size: (height, width) in pixels, at least MIN_SIZE; people look right at 2 : 1.

    Returns:
      Images, uint8 [n, height, width, 3] in RGB, and their n Records: pid 0, 1, ...; camid 1, 2, ...; split
      "all". A path such as "synthetic/plaza/0007_c1_03" (pid, camid, number) is a name only: there is no such file.
    """
    _check(seed, domains, ids_per_domain, images_per_id, size)
    people, numbers, (height, width) = range(ids_per_domain), range(images_per_id), size
    drawn = [draw(seed, name, pid, number, (height, width)) for name in domains for pid in people for number in numbers]
    return np.stack(drawn), list_records(domains, ids_per_domain=ids_per_domain, images_per_id=images_per_id)


def _check(seed: int, domains: Sequence[str], ids: int, images_per_id: int, size: tuple[int, int]) -> None:
    if isinstance(domains, str) or not domains or sorted(set(domains) & set(DOMAINS)) != sorted(domains):
        known = ", ".join(DOMAINS)
        raise ValueError(f"domains must be a list of different names out of {known}, not {domains!r}.")
    if np.shape(size) != (2,):
        raise ValueError(f"size must be (height, width), not {size!r}.")
    for name, value, least in (
        ("seed", seed, 0),
        ("ids_per_domain", ids, 1),
        ("images_per_id", images_per_id, 1),
        ("The height in size", size[0], MIN_SIZE[0]),
        ("The width in size", size[1], MIN_SIZE[1]),
    ):
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}.")


@functools.lru_cache(maxsize=2 * len(DOMAINS))
def _network(seed: int, domain: str, size: tuple[int, int]) -> tuple[list[Camera], list[Image.Image]]:
    """The domain's cameras and the scene before each of them."""
    network = DOMAINS[domain]
    cameras = [_camera(network, _rng(seed, domain, 0, k)) for k in range(len(network.yaws))]
    return cameras, [_scene(camera, _rng(seed, domain, 1, k), size) for k, camera in enumerate(cameras)]


def draw(seed: int, domain: str, pid: int, number: int, size: tuple[int, int]) -> np.ndarray:
    """Image `number` of a person, uint8 [height, width, 3], as in `generate`."""
    cameras, scenes = _network(seed, domain, size)
    family, member = divmod(pid, pedestrian.FAMILY_SIZE)
    person = pedestrian.draw_identity(_rng(seed, domain, 2, family), _rng(seed, domain, 3, pid), member)
    k, rng = number % len(cameras), _rng(seed, domain, 4, pid, number)
    pose = pedestrian.draw_pose(rng, DOMAINS[domain].yaws[k])
    return _photograph(person, pose, cameras[k], scenes[k], rng)


def draw_record(record: Record, size: tuple[int, int]) -> np.ndarray:
    """The image of a record of `list_records`, of seed 0."""
    return draw(0, record.domain, record.pid, int(record.path[-2:]), size)


def _rng(seed: int, domain: str, kind: int, first: int, second: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, DOMAIN_NAMES.index(domain), kind, first, second])


def _camera(network: Camera, rng: np.random.Generator) -> Camera:
    """One camera: its network with slightly different values."""
    return network._replace(
        gain=tuple(np.multiply(network.gain, rng.normal(1.0, 0.025, 3))),
        offset=network.offset + rng.normal(0.0, 0.015),
        gamma=network.gamma * rng.normal(1.0, 0.04),
        height=network.height * rng.normal(1.0, 0.03),
        tilt=network.tilt + rng.normal(0.0, 0.03),
    )


def _scene(camera: Camera, rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """The empty scene before a camera, SCENE_WIDTHS images wide, in sun and shade."""
    height, width = SUPERSAMPLING * size[0], SUPERSAMPLING * size[1] * SCENE_WIDTHS
    image = Image.new("RGB", (width, height), camera.wall[0])
    draw = ImageDraw.Draw(image)
    horizon = round(height * rng.uniform(0.45, 0.6))
    shape, widest, highest = camera.motif
    for _ in range(10 * SCENE_WIDTHS):
        w, h = np.multiply((widest, highest), rng.uniform(0.3, 1.0, 2)) * height / 2
        x, y = width * rng.random(), horizon * rng.random()
        colour = np.multiply(camera.wall[rng.integers(1, len(camera.wall))], rng.uniform(0.7, 1.0))
        getattr(draw, shape)((x - w, y - h, x + w, y + h), fill=tuple(colour.astype(int).tolist()))
    draw.rectangle((0, horizon, width, height), fill=camera.floor)
    joint = tuple(channel * 4 // 5 for channel in camera.floor)
    for depth in (0.04, 0.12, 0.28, 0.6):
        y = horizon + depth * (height - horizon)
        draw.line((0, y, width, y), fill=joint, width=1 + round(depth * height / 50))
    suns = rng.uniform(0.4, 1.4, 2 * SCENE_WIDTHS)
    sun = np.interp(np.arange(width), np.linspace(0, width, suns.size), suns)
    grain = rng.normal(1.0, 0.06, (height, width))
    return Image.fromarray(np.clip(np.asarray(image) * (sun * grain)[..., None], 0, 255).astype(np.uint8))


def _photograph(
    person: pedestrian.Identity, pose: pedestrian.Pose, camera: Camera, scene: Image.Image, rng: np.random.Generator
) -> np.ndarray:
    height, width = scene.height // SUPERSAMPLING, scene.width // (SUPERSAMPLING * SCENE_WIDTHS)
    left = round((scene.width - SUPERSAMPLING * width) * rng.random())
    image = scene.crop((left, 0, left + SUPERSAMPLING * width, scene.height))
    pedestrian.Painter(image, person, pose, camera.height, camera.tilt).paint()
    _occlude(image, camera, rng)
    image = image.reduce(SUPERSAMPLING).filter(ImageFilter.GaussianBlur(camera.blur * height / 64))
    sensor = round(camera.resolution * width), round(camera.resolution * height)
    image = image.resize(sensor, Image.Resampling.BOX).resize((width, height), Image.Resampling.BILINEAR)
    light = np.arange(256)[:, None] / 255 * rng.normal(1.0, 0.05)
    response = camera.offset + camera.contrast * np.multiply(camera.gain, light**camera.gamma)
    value = response[np.asarray(image), np.arange(3)] + rng.normal(0.0, camera.noise, (height, width, 3))
    return np.clip(np.rint(255 * value), 0, 255).astype(np.uint8)


def _occlude(image: Image.Image, camera: Camera, rng: np.random.Generator) -> None:
    """Draws a post or a low box in front of one person in four."""
    if rng.random() > 0.25:
        return
    colour = camera.wall[rng.integers(len(camera.wall))]
    x, y = image.width * rng.random(), image.height * rng.uniform(0.65, 0.9)
    half = image.width * rng.uniform(0.04, 0.2)
    top = y if half > 0.1 * image.width else 0
    ImageDraw.Draw(image).rectangle((x - half, top, x + half, image.height), fill=colour)
