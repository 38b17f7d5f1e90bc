"""Data sets in miniature: real folder and file names, flat colours in place of pictures."""

from pathlib import Path

from PIL import Image

MARKET = (
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0002_c2s1_000501_01.jpg",
    "query/0001_c1s1_001051_00.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "bounding_box_test/0000_c1s1_000151_01.jpg",
    "bounding_box_test/0001_c3s1_000551_00.jpg",
)
DUKE = (
    "bounding_box_train/0001_c2_f0046182.jpg",
    "query/0005_c2_f0046985.jpg",
    "bounding_box_test/0005_c5_f0051341.jpg",
    "bounding_box_test/7139_c8_f0140000.jpg",
)
CUHK02 = tuple(f"P{pair}/cam{camera}/001_{camera}.png" for pair in range(1, 6) for camera in (1, 2))
PRID = ("cam_a/person_0001.png", "cam_a/person_0201.png", "cam_b/person_0001.png", "cam_b/person_0201.png")
GRID = (
    "probe/0001_1_25023_116_134_128_330.jpeg",
    "gallery/0000_8_25008_169_19_94_220.jpeg",
    "gallery/0001_2_25004_107_32_106_221.jpeg",
)
VIPER = ("cam_a/000_45.bmp", "cam_a/873_0.bmp", "cam_b/000_90.bmp")
ILIDS = ("0001001.jpg", "0001002.jpg", "0119004.jpg")


def draw(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 4), (40 * number % 256, 90, 160)).save(path)
    return folder
