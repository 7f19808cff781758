"""The public data sets: where they come from and how a copy is known to be whole.

Checksums are SHA-256, of the archives as published: MVTec AD's as anomalib lists it, COIL-100's as
TensorFlow Datasets does, MNIST's as is widely listed for the original four files. An archive that GitHub
makes on request has no lasting checksum, so the magnetic tiles are checked by their files: `tree` is the
SHA-256 of the lines "<sha256 of the file>  <path>" of all files that match `tree_files`, sorted by path
and each ended by a newline (the format of `sha256sum`), computed from a copy of the commit that the
address names.
"""

from __future__ import annotations

from dataclasses import dataclass

_CATEGORIES = (
    "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor wood zipper"
)
_MVTEC = "https://www.mydrive.ch/shares"
_TILES = "https://github.com/abin24/Magnetic-tile-defect-datasets."
_COIL = "databases/SLAM_coil-20_coil-100/coil-100/coil-100.zip"


@dataclass(frozen=True)
class Download:
    """A file to download: addresses, tried in order, SHA-256 ("" if none is published) and size in bytes."""

    file: str
    urls: tuple[str, ...]
    sha256: str = ""
    size: int | None = None


@dataclass(frozen=True)
class Source:
    """A public data set.

    `folders` are the names it may lie under, the first of which `fetch` makes; one of `contains` shows that
    it is there. `strip` says that all the archive's entries lie in one folder that is dropped.
    """

    name: str
    title: str
    example: str
    terms: str
    homepage: str
    folders: tuple[str, ...]
    contains: tuple[str, ...]
    downloads: tuple[Download, ...] = ()
    extract: bool = True
    strip: bool = False
    tree: str = ""
    tree_files: str = ""


SOURCES: tuple[Source, ...] = (
    Source(
        name="mvtec",
        title="MVTec AD: 15 categories of objects and textures, 5,354 images",
        example="mvtec:screw",
        terms="CC BY-NC-SA 4.0, no commercial use; cite Bergmann et al., CVPR 2019",
        homepage="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        folders=("mvtec_anomaly_detection", "mvtec", "mvtec_ad", "MVTecAD", "mvtec_256"),
        contains=tuple(_CATEGORIES.split()),
        downloads=(
            Download(
                "mvtec_anomaly_detection.tar.xz",
                (
                    f"{_MVTEC}/150996/b52ecdcbf521176e9db9c731f2304b27/download/420938113-1629960298/mvtec_anomaly_detection.tar.xz",
                    f"{_MVTEC}/38536/3830184030e49fe74747669442f0f282/download/420938113-1629952094/mvtec_anomaly_detection.tar.xz",
                ),
                "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
                5_264_982_680,
            ),
        ),
    ),
    Source(
        name="magnetic_tile",
        title="Magnetic Tile Defects: 952 good and 392 defective pictures of tiles, five kinds of defect",
        example="magnetic_tile",
        terms="free to use; cite Huang, Qiu, Yuan, The Visual Computer 36, 2020",
        homepage=_TILES,
        folders=("magnetic_tile", "Magnetic-tile-defect-datasets.", "Magnetic-tile-defect-datasets.-master"),
        contains=("MT_Free",),
        downloads=(Download("magnetic_tile.zip", (f"{_TILES}/archive/cc4eb53.zip",)),),
        strip=True,
        tree="d2601c3c228c0b4d340c8dae4216c25798bf4ff6339d1fe13fbfb23ad1667a25",
        tree_files="MT_*/Imgs/*",
    ),
    Source(
        name="mnist",
        title="MNIST: 70,000 handwritten digits, 28 x 28; one digit is good, the others are anomalous",
        example="mnist:8",
        terms="CC BY-SA 3.0 (Yann LeCun and Corinna Cortes)",
        homepage="http://yann.lecun.com/exdb/mnist/",
        folders=("mnist",),
        contains=("train.npz", "train-images-idx3-ubyte.gz"),
        downloads=tuple(
            Download(
                file,
                (
                    f"https://ossci-datasets.s3.amazonaws.com/mnist/{file}",
                    f"https://storage.googleapis.com/cvdf-datasets/mnist/{file}",
                ),
                sha256,
                size,
            )
            for file, sha256, size in (
                (
                    "train-images-idx3-ubyte.gz",
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                    9_912_422,
                ),
                (
                    "train-labels-idx1-ubyte.gz",
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                    28_881,
                ),
                (
                    "t10k-images-idx3-ubyte.gz",
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                    1_648_877,
                ),
                (
                    "t10k-labels-idx1-ubyte.gz",
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                    4_542,
                ),
            )
        ),
        extract=False,
    ),
    Source(
        name="coil100",
        title="COIL-100: 100 objects from 72 sides, 7,200 images; ten objects are normal",
        example="coil100",
        terms="for research; cite Nene, Nayar, Murase, CUCS-006-96",
        homepage="https://www.cs.columbia.edu/CAVE/software/softlib/coil-100.php",
        folders=("coil-100", "coil100"),
        contains=("obj1__0.png",),
        downloads=(
            Download(
                "coil-100.zip",
                (
                    f"http://www.cs.columbia.edu/CAVE/{_COIL}",
                    f"https://cave.cs.columbia.edu/old/{_COIL}",
                ),
                "fcb4b8b01c0778f416d8d7a09f45082c4f7075cc74743dcddd5c44307bd4afe7",
                130_688_843,
            ),
        ),
        strip=True,
    ),
    Source(
        name="cookies",
        title="Cookies: 45 good and 40 damaged cookies in colour, from Amazon Lookout for Vision's samples",
        example="cookies",
        terms="documentation CC BY-SA 4.0, code MIT-0",
        homepage="https://github.com/aws-samples/amazon-lookout-for-vision",
        folders=("cookies",),
        contains=("train",),
    ),
)
