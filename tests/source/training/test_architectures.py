"""Networks of torchvision and timm: each trains, and its bundle answers without timm, or one line says why not."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from fastmaker import bundle, preprocess
from fastmaker.serving import models
from fastmaker.training import architectures, run
from fastmaker.training.arguments import parse_args

pytestmark = pytest.mark.training
HAS_TIMM = importlib.util.find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")
TORCHVISION = (
    *("wide_resnet50_2", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small", "convnext_tiny", "mnasnet0_5"),
    *("shufflenet_v2_x0_5", "regnet_y_400mf", "googlenet", "efficientnet_b0", "vit_b_32", "vgg11", "swin_t"),
)
TIMM = (
    *("resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "timm/resnet18"),
    *(
        "efficientnet_lite0",
        "convnext_atto",
        "test_vit",
        "levit_128s",
        "deit_tiny_distilled_patch16_224",
        "ghostnet_050",
    ),
    *(
        "xcit_nano_12_p8_224",
        "poolformer_s12",
        "mixer_s32_224",
        "regnetx_002",
        "dm_nfnet_f0",
        "lcnet_035",
        "hardcorenas_a",
    ),
    *("repvgg_a0", "res2net50_26w_4s", "edgenext_xx_small", "mobileone_s0", "resnet18.a1_in1k", "cait_xxs24_224"),
    *("ghostnet_050", "hardcorenas_a"),
)
UNETS = (
    *("densenet121", "vgg11_bn", "convnext_tiny", "efficientnet_b0", "wide_resnet50_2"),
    *(pytest.param(name, marks=needs_timm) for name in ("resnet10t", "convnext_atto")),
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of noise, dark and light, each with a mask of its left half."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    (folder / "images").mkdir()
    for number in range(12):
        kind = "light" if number % 2 else "dark"
        image = Image.fromarray(random.integers(0, 128, (70, 80, 3), np.uint8) + np.uint8(127 * (number % 2)))
        for path in (folder / "classes" / kind / f"{number}.png", folder / "masks" / "images" / f"{number}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        mask = np.zeros((70, 80), np.uint8)
        mask[:, :40] = 1
        path = folder / "masks" / "labels" / f"{number}_P.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    (folder / "masks" / "codes.txt").write_text("right\nleft\n")
    return folder


def assert_trains(pictures, folder, arch, task="classification", more=""):
    """A run ends well: then the bundle was compared with the Learner's answers before it was written."""
    data = pictures / ("masks" if task == "segmentation" else "classes")
    words = f"--task {task} --arch {arch} --pretrained false --image-size 64 --epochs 1 --batch-size 4 --workers 0"
    directories = ["--train", str(data), "--model-dir", f"{folder}/model", "--output-data-dir", str(folder)]
    assert run.main(parse_args([*words.split(), *directories, *more.split()])) == 0
    model = models.load(folder / "model")
    [answer] = model.predict([preprocess.decode(next((pictures / "classes").rglob("*.png")).read_bytes())])
    assert answer is not None
    return model.info


def test_a_network_that_fastai_does_not_list_becomes_a_graph(pictures, tmp_path):
    info = assert_trains(pictures, tmp_path, "mnasnet0_5")
    assert info.architecture == bundle.GRAPH
    assert info.mean == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.slow
@pytest.mark.parametrize("arch", [*TORCHVISION, *(pytest.param(name, marks=needs_timm) for name in TIMM)])
def test_each_network_trains_and_is_kept(pictures, tmp_path, arch):
    assert_trains(pictures, tmp_path, arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "vit_b_32", pytest.param("resnet10t", marks=needs_timm)])
def test_networks_take_grey_images(pictures, tmp_path, arch):
    assert_trains(pictures, tmp_path, arch, more="--image-mode L")


@pytest.mark.slow
@pytest.mark.parametrize("arch", UNETS)
def test_encoders_of_other_networks_get_a_unet(pictures, tmp_path, arch):
    assert_trains(pictures, tmp_path, arch, "segmentation")


@pytest.mark.parametrize(
    ("arch", "size", "reason"),
    [
        ("vit_b_16", (64, 48), "--arch vit_b_16 takes square images; --image-size is 64 x 48"),
        ("vit_b_16", (60, 60), "--arch vit_b_16 takes no images of 60 x 60 (--image-size): Input shape indivisible"),
        ("inception_v3", (32, 32), "--arch inception_v3 takes no images of 32 x 32 (--image-size): Given input size"),
        ("maxvit_t", (64, 64), "--arch maxvit_t takes no images of 64 x 64 (--image-size): shape"),
    ],
)
def test_a_size_that_a_network_does_not_take_is_refused(arch, size, reason):
    with pytest.raises(architectures.ArchitectureError) as refused:
        architectures.check(arch, "classification", size)
    assert str(refused.value).startswith(reason)
    assert len(str(refused.value).splitlines()) == 1


def test_pretrained_weights_for_another_size_are_refused():
    with pytest.raises(architectures.ArchitectureError, match="are for images of 224 x 224: give --image-size 224"):
        architectures.check("vit_b_16", "classification", (64, 64), pretrained=True)


@pytest.mark.parametrize("arch", ["mobilenet_v2", "vit_b_32"])
def test_a_network_that_is_no_encoder_is_refused(arch):
    with pytest.raises(architectures.ArchitectureError, match=f"--arch '{arch}' has no U-Net: "):
        architectures.check(arch, "segmentation", (64, 64))


@pytest.mark.skipif(HAS_TIMM, reason="timm is installed")
def test_without_timm_its_networks_are_refused_and_the_package_is_named():
    with pytest.raises(
        architectures.ArchitectureError, match="timm, which has more, is not installed: pip install timm"
    ):
        architectures.check("resnet10t", "classification", (64, 64))


@needs_timm
@pytest.mark.parametrize("arch", ["resnet19", "resnet18.no_such_tag", "timm/nothing"])
def test_a_name_that_nobody_knows_is_refused(arch):
    with pytest.raises(architectures.ArchitectureError, match="neither torchvision nor timm has such a network"):
        architectures.check(arch, "classification", (64, 64))


@needs_timm
def test_a_network_of_timm_has_the_statistics_of_its_weights():
    assert architectures.statistics("vit_tiny_patch16_224", "RGB") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert architectures.statistics("vit_tiny_patch16_224", "L") == ((0.1307,), (0.3081,))
