"""fastai's own pipeline is the reference: the tensor that serving sees is the one that learn.predict sees."""

import io
import subprocess
import sys

import numpy as np
import PIL
import pytest
import torch
from fastai.vision.all import PILImage, PILImageBW, Pipeline, Resize, ToTensor
from PIL import Image

from fastmaker import pipeline, preprocess

METHODS = preprocess.RESIZE_METHODS
MODES = ("RGB", "L")  # of PILImage and PILImageBW; those of other classes: test_pipeline.py
# Each mode in a file format that can hold it: (mode made, file format, mode that Pillow opens it in).
STORED_MODES = [
    ("1", "PNG", "1"),
    ("L", "PNG", "L"),
    ("L", "JPEG", "L"),
    ("LA", "PNG", "LA"),
    ("P", "PNG", "P"),
    ("P", "GIF", "P"),
    ("PA", "TIFF", "PA"),
    ("RGB", "PNG", "RGB"),
    ("RGB", "JPEG", "RGB"),
    ("RGB", "WEBP", "RGB"),
    ("RGB", "BMP", "RGB"),
    ("RGBA", "PNG", "RGBA"),
    ("RGBA", "WEBP", "RGBA"),
    ("CMYK", "JPEG", "CMYK"),
    ("CMYK", "TIFF", "CMYK"),
    ("YCbCr", "TIFF", "YCbCr"),
    ("LAB", "TIFF", "LAB"),
    ("I", "TIFF", "I"),
    ("I;16", "PNG", "I;16"),
    ("I;16B", "TIFF", "I;16B"),
    ("F", "TIFF", "F"),
]
# (width, height) of the image, (height, width) of the target
GEOMETRIES = [
    ((70, 45), (32, 32)),
    ((45, 70), (32, 32)),
    ((64, 64), (64, 64)),
    ((8, 8), (28, 28)),
    ((71, 43), (20, 51)),
    ((43, 71), (51, 20)),
    ((300, 3), (24, 24)),
    ((2, 250), (24, 24)),
    ((1, 1), (16, 16)),
    ((1, 90), (7, 40)),
    ((333, 221), (1, 1)),
]


def picture(mode="RGB", size=(70, 45)):
    """Noise over a gradient with some transparency, in any mode that Pillow has."""
    width, height = size
    pixels = np.random.default_rng(width * height).integers(0, 120, (height, width, 4), dtype=np.uint8)
    pixels += np.linspace(0, 130, width).astype(np.uint8)[None, :, None]
    image = Image.fromarray(pixels)
    if mode == "RGBA":
        return image
    if mode == "LAB":
        return image.convert("RGB").convert("LAB")
    if mode.startswith("I;16"):
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 3).convert(mode)
    if mode == "I":
        return Image.fromarray(pixels[..., 0].astype(np.int32) * 3)
    if mode == "PA":
        return image.convert("RGB").convert("P").convert("PA")
    return image.convert("RGB").convert(mode) if mode != "LA" else image.convert("LA")


def encoded(image, file_format, **options):
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def fastai_tensor(data, mode, size, method):
    create = PILImage.create if mode == "RGB" else PILImageBW.create
    return torch.Tensor(Pipeline([Resize(size, method=method), ToTensor()], split_idx=1)(create(data)))


def assert_same_as_fastai(data, size, method, modes=MODES):
    for mode in modes:
        tensor = preprocess.to_tensor(preprocess.decode(data), mode, size, method)
        assert tensor.dtype == torch.uint8
        assert tensor.shape == ((3 if mode == "RGB" else 1), *size)
        assert torch.equal(tensor, fastai_tensor(data, mode, size, method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("mode", "file_format", "opened_as"), STORED_MODES)
def test_every_image_mode_gives_fastais_tensor(mode, file_format, opened_as, method):
    data = encoded(picture(mode), file_format)
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError as error:  # Pillow 12.3, the last one for Python 3.10, with YCbCr
        pytest.skip(f"Pillow {PIL.__version__} does not read the {mode} {file_format} that it wrote: {error}")
    assert preprocess.decode(data).mode == opened_as
    # Pillow, and so fastai, cannot make LAB gray.
    assert_same_as_fastai(data, (24, 40), method, modes=("RGB",) if mode == "LAB" else MODES)


@pytest.mark.parametrize("transparency", [3, bytes(range(256))], ids=["one colour", "a table"])
def test_a_palette_with_transparency_gives_fastais_tensor(transparency):
    data = encoded(picture("P"), "PNG", transparency=transparency)
    assert "transparency" in preprocess.decode(data).info
    assert_same_as_fastai(data, (24, 24), "crop")


def test_an_image_that_cannot_be_converted_is_refused_with_one_line():
    lab = preprocess.decode(encoded(picture("LAB"), "TIFF"))
    with pytest.raises(preprocess.ImageError, match=r"^a LAB image of 70x45 cannot be made L 28x28: .+$"):
        preprocess.to_tensor(lab, "L", (28, 28), "crop")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "target"), GEOMETRIES)
def test_every_size_and_aspect_ratio_gives_fastais_tensor(size, target, method):
    assert_same_as_fastai(encoded(picture(size=size), "PNG"), target, method)


@pytest.mark.parametrize("method", METHODS)
def test_a_hundred_random_sizes_give_fastais_tensor(method):
    random = np.random.default_rng(11)
    for _ in range(100):
        (*size, height, width) = (int(n) for n in random.integers(1, 130, 4))
        assert_same_as_fastai(encoded(picture(size=size), "BMP"), (height, width), method, modes=("RGB",))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_treated_as_fastai_treats_it(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), "JPEG", exif=exif)
    assert preprocess.decode(data).getexif()[0x0112] == orientation
    assert_same_as_fastai(data, (30, 20), "crop")


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(file_format):
    frames = [picture(size=(40, 30)), picture(size=(40, 30)).transpose(Image.Transpose.ROTATE_180)]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert preprocess.decode(data).n_frames == 2
    assert_same_as_fastai(data, (24, 24), "squish")


BROKEN = ("broken_data_stream.png", "broken_header.png", "decompression_bomb.gif", "truncated.jpg")


@pytest.mark.data
@pytest.mark.parametrize("method", METHODS)
def test_ugly_images_are_refused_with_one_line_or_give_fastais_tensor(test_data, method):
    for file in sorted((test_data / "ugly_images").iterdir()):
        if file.suffix == ".txt":
            continue
        if file.name in BROKEN:
            assert_refused(file.read_bytes(), "image")
        else:
            assert_same_as_fastai(file.read_bytes(), (64, 96), method)


def assert_refused(data, reason):
    with pytest.raises(preprocess.ImageError, match=reason) as error:
        preprocess.decode(data)
    assert len(str(error.value).splitlines()) == 1


def test_no_bytes_are_refused():
    assert_refused(b"", r"^the image is empty \(0 bytes\)$")


@pytest.mark.parametrize("data", [b"\x00" * 100, b"hello", np.random.default_rng(0).bytes(5000), b"\xff\xd8\xff"])
def test_bytes_that_are_no_image_are_refused(data):
    assert_refused(data, "are not an image that Pillow can read")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_image_is_refused_with_one_line(file_format, share):
    data = encoded(picture(size=(200, 150)), file_format)
    assert_refused(data[: int(share * len(data))], "damaged or truncated|no image")


def test_an_image_with_a_damaged_byte_is_refused_with_one_line():
    data = bytearray(encoded(picture(), "PNG"))
    data[len(data) // 2] ^= 0xFF
    assert_refused(bytes(data), "damaged or truncated")


@pytest.fixture
def few_pixels(monkeypatch):
    """At most 1,000 pixels are accepted, for the length of a test."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # decode sets it: have it put back
    monkeypatch.setenv("FASTMAKER_MAX_PIXELS", "1000")


@pytest.mark.parametrize("size", [(1001, 1), (40, 40), (500, 500)])
def test_an_image_of_too_many_pixels_is_refused(few_pixels, size):
    assert_refused(encoded(picture(size=size), "PNG"), "1,000 pixels")


def test_an_image_of_just_so_many_pixels_is_accepted(few_pixels):
    assert preprocess.decode(encoded(picture(size=(100, 10)), "PNG")).size == (100, 10)


def test_an_array_of_too_many_pixels_is_refused(few_pixels):
    with pytest.raises(preprocess.ImageError, match=r"^the array is 26x40; at most 1,000 pixels are accepted$"):
        preprocess.image_from_array(np.zeros((40, 26, 3), np.uint8))


def test_by_default_64_megapixels_are_accepted_and_not_one_more(monkeypatch):
    monkeypatch.delenv("FASTMAKER_MAX_PIXELS", raising=False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    assert preprocess.decode(encoded(Image.new("1", (8000, 8000)), "PNG")).size == (8000, 8000)
    assert_refused(encoded(Image.new("1", (8000, 8001)), "PNG"), "8000x8001; at most 64,000,000 pixels")


# One byte of pixels in a 44 byte file whose header says 65,535 x 65,535.
GIF_BOMB = (
    b"GIF89a\xff\xff\xff\xff\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02D\x01\x00;"
)


def test_a_decompression_bomb_is_refused_before_it_takes_memory():
    assert_refused(GIF_BOMB, "more than 64,000,000 pixels")


IN_LITTLE_MEMORY = """
import io, resource
from PIL import Image
from fastmaker import preprocess

stream = io.BytesIO()
Image.new("RGB", (60_000, 1)).save(stream, "PNG")
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), -1))  # a GiB more than there is now
try:
    print(tuple(preprocess.to_array(preprocess.decode(stream.getvalue()), "RGB", (64, 64), "pad").shape))
except preprocess.ImageError as error:
    print(error)
"""


def test_a_hair_thin_image_is_padded_or_refused_without_taking_gigabytes():
    run = subprocess.run([sys.executable, "-c", IN_LITTLE_MEMORY], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-500:]
    assert "60000x1" in run.stdout or run.stdout == "(3, 64, 64)\n"


WITHOUT_TORCH = """
import sys
import numpy
from fastmaker import preprocess
from fastmaker.serving import wire

image = preprocess.image_from_array(numpy.zeros((30, 40), "uint8"))
preprocess.to_array(image, "RGB", (28, 28), "pad")
print(*sorted(name for name in sys.modules if name.startswith("torch")))
"""


def test_images_become_arrays_without_torch():
    run = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True)
    assert run.stdout == "\n"


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_an_array_becomes_the_image_it_describes(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for variant in (array, np.asfortranarray(array)):
        assert np.array_equal(np.asarray(preprocess.image_from_array(variant)), array)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 4), np.float32), "expected a uint8 array .* got float32"),
        (np.zeros((4, 4), np.int8), "expected a uint8 array .* got int8"),
        (np.zeros(4, np.uint8), r"got uint8 \(4,\)"),
        (np.zeros((4, 4, 4), np.uint8), r"got uint8 \(4, 4, 4\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"got uint8 \(1, 4, 4, 3\)"),
        (np.zeros((0, 4), np.uint8), "the array is empty"),
        (np.zeros((4, 0, 3), np.uint8), "the array is empty"),
    ],
)
def test_an_array_that_is_no_image_is_refused(array, reason):
    with pytest.raises(preprocess.ImageError, match=reason):
        preprocess.image_from_array(array)


def test_normalise_scales_to_one_then_takes_off_the_mean_and_divides():
    batch = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    mean, std = torch.tensor([0.5, 0.1, 0.0]).view(1, 3, 1, 1), torch.tensor([0.5, 0.2, 2.0]).view(1, 3, 1, 1)
    result = preprocess.standardise(pipeline.to_pixels(batch, []), mean, std)
    assert result.dtype == torch.float32
    assert torch.allclose(result.flatten(), torch.tensor([-1.0, 0.5, 0.5]))
    assert batch.flatten().tolist() == [0, 51, 255]  # the caller's tensor stays as it is
