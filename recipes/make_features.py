"""Train the feature extractors that prunekit ships, reproducibly to the byte with one torch version and one kind of CPU.

    python recipes/make_features.py --fashion FOLDER

trains ``digits-cnn`` on scikit-learn's digits and ``fashion-cnn`` on Fashion-MNIST at 16×16. FOLDER has the four idx
files (``train-`` and ``t10k-images-idx3-ubyte``, ``train-`` and ``t10k-labels-idx1-ubyte``, each ``.gz`` or not). Without
``--fashion`` it makes only the digits' network, and no statistics. Training and held-out images are those of
``prunekit.data.load_images``.

For each extractor it also writes the statistics of the training pictures' features, by which runs decide whether an extractor suits
their pictures, and records the distances of other pictures. ``--statistics-only`` does not change the extractors.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunekit._files import sha256_file
from prunekit.data import ImageSplit, load_images
from prunekit.data.idx import find_idx, read_idx_labels
from prunekit.errors import FileFormatError, MissingFileError
from prunekit.extractors import save_statistics, statistics_path
from prunekit.features import FeatureExtractor, FeatureTraining, read_features, save_features, train_features
from prunekit.frechet import FeatureStatistics, frechet_distance

DIGITS = FeatureTraining(resolution=8, epochs=40, batch_size=64, learning_rate=2e-3)
FASHION = FeatureTraining(resolution=16, epochs=12, batch_size=128, learning_rate=2e-3)


def digits_labels(count: int) -> tuple[Tensor, Tensor]:
    """Training and held-out labels of scikit-learn's digits, in the order of ``load_images("digits")``.

    Args:
        count: number of images that the two parts have together, for a check.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second, and only the digits need it

    labels = torch.from_numpy(load_digits().target).to(torch.int64)
    if len(labels) != count:
        raise FileFormatError(f"scikit-learn has {len(labels)} labels for {count} digits; expected one for each.")
    order = np.random.default_rng(0).permutation(count)
    held_out = count // 6
    return labels[np.sort(order[held_out:])], labels[np.sort(order[:held_out])]


def idx_labels(folder: Path, part: str) -> Tensor:
    """Labels, int64, shape (count,), of a folder's idx1 file."""
    path = find_idx(folder, f"{part}-labels", sides=1)
    if path is None:
        raise MissingFileError(
            f"{folder} has no {part}-labels-idx1-ubyte, with .gz or without; give --fashion the folder that has."
        )
    return torch.from_numpy(read_idx_labels(path))


def make(name: str, split: ImageSplit, labels: tuple[Tensor, Tensor], training: FeatureTraining, output: Path) -> str:
    """Train, measure on the held-out part, write ``features-<name>.safetensors`` and return a line about it."""
    net = train_features(split.train.images, labels[0], training)
    accuracy = net.accuracy(split.held_out.images, labels[1])
    path = output / f"features-{name}.safetensors"
    save_features(net, path, name, accuracy, training)
    return (
        f"{path}: held-out accuracy {accuracy:.4f} on {len(split.held_out)} images, "
        f"{path.stat().st_size} bytes, sha256 {sha256_file(path)}"
    )


def others(split: ImageSplit, foreign: Tensor) -> dict[str, Tensor]:
    """Pictures of the extractor's mode and size that it must tell from its own, and held-out ones that it must know.

    Args:
        split: the extractor's own images.
        foreign: another data set's, of the same size.
    """
    own, generator = split.held_out.images, torch.Generator().manual_seed(0)
    count, side = 2000, split.resolution
    uniform = torch.randint(256, (count, 1, side, side), generator=generator, dtype=torch.uint8)
    normal = (127 + 40 * torch.randn(uniform.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
    coarse = torch.randint(256, (count, 1, side // 4, side // 4), generator=generator, dtype=torch.uint8)
    noisy = (own + 40 * torch.randn(own.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
    return {
        "held-out": own,
        "held-out at half brightness": own // 2,
        "held-out with noise of 40": noisy,
        "held-out mirrored": own.flip(3),
        "held-out upside down": own.flip(2),
        "held-out inverted": 255 - own,
        "the other data set": foreign,
        "the other data set inverted": 255 - foreign,
        "uniform noise": uniform,
        "normal noise": normal,
        "coarse noise": coarse.repeat_interleave(4, 2).repeat_interleave(4, 3),
    }


def record(name: str, split: ImageSplit, foreign: Tensor, output: Path) -> str:
    """Write the statistics of an extractor's training pictures beside it and return lines about the distances."""
    extractor = read_features(output / f"features-{name}.safetensors")
    statistics = FeatureStatistics.of(extractor.features(split.train.images).numpy())
    distances = {kind: _distance(extractor, statistics, images) for kind, images in others(split, foreign).items()}
    generator, least = torch.Generator().manual_seed(0), 5 * extractor.net.num_features
    pictures = torch.cat([split.train.images[::7], split.held_out.images])
    few = [pictures[torch.randperm(len(pictures), generator=generator)[:least]] for _ in range(50)]
    distances[f"{least} own, the farthest of 50 draws"] = max(_distance(extractor, statistics, part) for part in few)
    rounded = {kind: round(distance, 3) for kind, distance in distances.items()}
    path = statistics_path(output, name)
    save_statistics(extractor, split.train.images, rounded, path)
    return "\n".join([f"{path}:", *(f"  {kind}: {distance}" for kind, distance in rounded.items())])


def _distance(extractor: FeatureExtractor, statistics: FeatureStatistics, images: Tensor) -> float:
    return frechet_distance(statistics, FeatureStatistics.of(extractor.features(images).numpy()))


def main() -> None:
    """Parse the arguments and make the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", type=Path, metavar="FOLDER", help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "prunekit" / "assets")
    parser.add_argument("--statistics-only", action="store_true", help="leave the extractors as they are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order give other bytes
    anew, output = not arguments.statistics_only, arguments.output
    digits = load_images("digits")
    if anew:
        labels = digits_labels(len(digits.train) + len(digits.held_out))
        print(make("digits-cnn", digits, labels, DIGITS, output))  # noqa: T201 - a script says what it did
    if arguments.fashion is None:
        return
    source = str(arguments.fashion)
    fashion = load_images(source, FASHION.resolution)
    if anew:
        labels = idx_labels(arguments.fashion, "train"), idx_labels(arguments.fashion, "t10k")
        print(make("fashion-cnn", fashion, labels, FASHION, output))  # noqa: T201 - a script says what it did
    small, large = load_images(source, DIGITS.resolution), load_images("digits", FASHION.resolution)
    print(record("digits-cnn", digits, small.held_out.images, output))  # noqa: T201 - see above
    print(record("fashion-cnn", fashion, large.train.images, output))  # noqa: T201 - see above


if __name__ == "__main__":
    main()
