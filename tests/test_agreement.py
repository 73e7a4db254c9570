"""Agreement of pictures with their captions: which class a caption names, and how often a classifier finds it."""

import numpy as np
import pytest
import torch

from prunekit.agreement import CaptionJudge, named_classes
from prunekit.data import load_images
from prunekit.errors import FileFormatError, InputError
from prunekit.extractors import Choice, OwnExtractor, read_extractor
from prunekit.features import FeatureNet, FeatureTraining, load_features, read_features, save_features
from prunekit.steps.distances import Distances

CLASSES = load_features("fashion-cnn").classes
TRAINING = FeatureTraining()


def test_a_name_is_a_whole_word_and_may_be_in_the_plural():
    captions = ["a photo of a T-shirt", "this is a shirt", "trousers", "two dresses", "an ankle boot in a catalogue"]
    assert [CLASSES[place] for place in named_classes(captions, CLASSES)] == [
        "t-shirt",
        "shirt",
        "trouser",
        "dress",
        "ankle boot",
    ]


@pytest.mark.parametrize("caption", ["a cat", "a coat and a bag", "coatings", ""])
def test_captions_that_do_not_name_one_class_each_are_not_judged(caption):
    assert named_classes(["a coat", caption], CLASSES) is None
    assert CaptionJudge(load_features("fashion-cnn")).subjects(["a coat", caption]) is None
    assert named_classes([], CLASSES) is None


def test_the_shipped_classifier_finds_what_real_pictures_are_captioned_with():
    pictures = load_images("digits").held_out.images
    extractor = load_features("digits-cnn")
    judge = CaptionJudge.of(extractor)
    own = [f"a {extractor.classes[place]}" for place in extractor.predicted(pictures).tolist()]
    assert judge.hits(pictures, own).all()
    other = ["a 3"] * len(pictures)
    assert 0 < judge.hits(pictures, other).mean() < 0.2
    assert judge.subjects(other)[:2] == ["3", "3"]


def test_ones_own_classifier_says_its_classes_itself(tmp_path):
    net, path = FeatureNet(8, 4, 3, 2), tmp_path / "mine.safetensors"
    save_features(net, path, "mine", 0.5, TRAINING, ["cat", "dog", "bird"])
    own = read_extractor(path)
    judge = CaptionJudge.of(own)
    pictures = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8)
    wanted = own.classifier.predicted(pictures)
    captions = [("a cat", "a dog", "a bird")[place] for place in wanted.tolist()]
    assert judge.hits(pictures, captions).all()
    save_features(net, path, "mine", 0.5, TRAINING)
    assert CaptionJudge.of(read_extractor(path)) is None
    assert CaptionJudge.of(OwnExtractor("pixels", lambda images: images.flatten(1))) is None


def test_names_for_other_classes_than_the_network_has_are_refused(tmp_path):
    net, path = FeatureNet(8, 4, 3, 2), tmp_path / "mine.safetensors"
    with pytest.raises(InputError, match="names of 2 classes for 3"):
        save_features(net, path, "mine", 0.5, TRAINING, ["cat", "dog"])
    save_features(net, path, "mine", 0.5, TRAINING, ["cat", "dog", "bird"])
    content = path.read_bytes()
    path.write_bytes(content.replace(b', \\"bird\\"', b"          "))
    with pytest.raises(FileFormatError, match="names of 2 classes for 3"):
        read_features(path)


def test_the_difference_in_agreement_is_paired_and_has_an_error_with_one_seed():
    pictures = load_images("digits").held_out.images[:60]
    extractor = load_features("digits-cnn")
    captions = [extractor.classes[place] for place in extractor.predicted(pictures).tolist()]
    distances = Distances(pictures, Choice(extractor), judge=CaptionJudge.of(extractor))
    worse = torch.cat([pictures[:50], pictures[:10]])
    distances.add("base", pictures, captions)
    distances.add("experts", worse, captions)
    base, experts = distances.row("base", "base"), distances.row("experts", "base")
    hits = (extractor.predicted(worse) == extractor.predicted(pictures)).numpy()
    assert (base.agreement.mean, experts.agreement.mean) == (1.0, pytest.approx(hits.mean()))
    found = experts.agreement_difference
    assert found.mean == pytest.approx(hits.mean() - 1)
    assert found.se == pytest.approx(np.std(hits, ddof=1) / np.sqrt(60))


def test_captions_without_a_class_leave_agreement_out():
    pictures = load_images("digits").held_out.images[:60]
    extractor = load_features("digits-cnn")
    distances = Distances(pictures, Choice(extractor), judge=CaptionJudge.of(extractor))
    distances.add("base", pictures, ["a cat"] * 60)
    assert distances.row("base", "base").agreement is None
