"""avssl.media.images: what Pillow reads becomes RGB as documented, and whatever cannot be read has a typed reason."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from avssl.media import images, jpeg
from avssl.media.images import MAX_PIXELS, probe_image, read_image
from avssl.types import MediaError


def scene(height=20, width=31, channels=3):
    """A smooth image without symmetry, uint8 (height, width, channels)."""
    y, x = np.mgrid[:height, :width]
    planes = [7 * x + 3 * y, 200 - 5 * x + 2 * y, 40 + 9 * y, 255 - 8 * x]
    return np.stack([plane % 256 for plane in planes[:channels]], axis=-1).astype(np.uint8)


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def as_hwc(tensor):
    return tensor.permute(1, 2, 0).numpy()


def png_header(width, height):
    """A PNG that claims this size and holds next to nothing."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_the_tensor_is_uint8_and_channels_come_first():
    tensor = read_image(saved(Image.fromarray(scene()), "PNG"))
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.uint8, (3, 20, 31))
    assert np.array_equal(as_hwc(tensor), scene())


@pytest.mark.parametrize(
    ("format", "options"),
    [("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}),
     ("TIFF", {"compression": "tiff_lzw"}), ("GIF", {})],
)  # fmt: skip
def test_every_format_is_read_as_pillow_reads_it(format, options, tmp_path):
    content = saved(Image.fromarray(scene()), format, **options)
    wanted = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    (tmp_path / "image").write_bytes(content)
    for source in (content, tmp_path / "image", str(tmp_path / "image")):
        assert np.array_equal(as_hwc(read_image(source)), wanted)
        assert (probe_image(source).format, probe_image(source).width, probe_image(source).height) == (format, 31, 20)


def test_gray_is_repeated():
    gray = scene()[..., 0]
    assert np.array_equal(as_hwc(read_image(saved(Image.fromarray(gray), "PNG"))), np.stack([gray] * 3, axis=-1))
    bits = Image.fromarray(gray).convert("1")
    wanted = np.where(np.asarray(bits), 255, 0)[..., None].repeat(3, axis=-1)
    assert np.array_equal(as_hwc(read_image(saved(bits, "PNG"))), wanted)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_dropped_and_not_blended(format):
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    image = Image.fromarray(scene(channels=4), "RGBA")
    assert np.array_equal(as_hwc(read_image(saved(image, format, **options))), scene())


def test_gray_with_alpha_is_its_gray():
    image = Image.merge("LA", [Image.fromarray(scene()[..., 0]), Image.fromarray(scene()[..., 1])])
    wanted = scene()[..., :1].repeat(3, axis=-1)
    assert np.array_equal(as_hwc(read_image(saved(image, "PNG"))), wanted)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 160, 10))])
def test_a_palette_is_looked_up_whatever_is_transparent(transparency):
    numbers = np.arange(20 * 31).reshape(20, 31).astype(np.uint8) % 16
    palette = np.random.default_rng(0).integers(0, 256, (16, 3), dtype=np.uint8)
    image = Image.fromarray(numbers, "P")
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(as_hwc(read_image(saved(image, "PNG", **options))), palette[numbers])


def test_cmyk_is_converted_as_pillow_does():
    content = saved(Image.fromarray(scene(channels=4), "CMYK"), "JPEG", quality=100)
    image = Image.open(io.BytesIO(content))
    assert image.mode == "CMYK"
    cmyk = np.asarray(image).astype(float)
    textbook = 255 * (1 - cmyk[..., :3] / 255) * (1 - cmyk[..., 3:] / 255)
    found = as_hwc(read_image(content))
    assert np.array_equal(found, np.asarray(image.convert("RGB")))
    assert np.abs(found - textbook).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_keep_their_high_byte(format):
    values = (np.arange(20 * 31).reshape(20, 31) * 105).astype(np.uint16)
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    wanted = (values // 256).astype(np.uint8)[..., None].repeat(3, axis=-1)
    assert np.array_equal(as_hwc(read_image(saved(image, format))), wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(dtype):
    content = saved(Image.fromarray(scene()[..., 0].astype(dtype)), "TIFF")
    with pytest.raises(MediaError, match=r"x\.tif: has pixels of mode [FI], whose range is unknown") as error:
        read_image(content, name="x.tif")
    assert error.value.reason == "decode_error"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    content = saved(Image.fromarray(scene()), format, exif=exif, **options)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    assert wanted.shape == ((31, 20, 3) if orientation > 4 else (20, 31, 3))
    assert np.array_equal(as_hwc(read_image(content)), wanted)


def test_of_an_animation_the_first_image_is_read():
    frames = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (30, 200)]
    for format in ("GIF", "TIFF", "WEBP", "PNG"):
        options = {"lossless": True} if format == "WEBP" else {}
        content = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (read_image(content) == 30).all(), format


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (b"no image\n" * 50, "not_media"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40), "not_media"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "not_media"),
        (b"P6 1 1 255 abc", "not_media"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "decode_error"),
        (png_header(9_500, 9_500), "truncated"),  # large enough for Pillow to warn
        (png_header(MAX_PIXELS, 1), "decode_error"),  # Pillow raises MemoryError
        (png_header(MAX_PIXELS + 1, 1), "decode_error"),
        (png_header(60_000, 60_000), "decode_error"),
        (png_header(0, 5), "decode_error"),
    ],
)
def test_what_is_no_image_has_a_reason(content, reason, tmp_path):
    (tmp_path / "image.png").write_bytes(content)
    for source, name in ((content, "shard 3"), (tmp_path / "image.png", "")):
        with pytest.raises(MediaError) as error:
            read_image(source, name=name)
        assert error.value.reason == reason
        assert (name or "image.png") in error.value.message


def test_a_file_that_is_not_there_is_missing(tmp_path):
    for path in (tmp_path / "nowhere.png", tmp_path):
        with pytest.raises(MediaError, match="missing_file"):
            read_image(path)


def test_the_limit_of_pixels_is_ours(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(MediaError, match="claims 60000 x 60000 pixels; allowed are at most"):
        read_image(png_header(60_000, 60_000))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_file_that_ends_early_is_truncated(format):
    noise = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    content = saved(Image.fromarray(noise), format)
    assert tuple(read_image(content).shape) == (3, 60, 70)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(MediaError) as error:
            read_image(content[: int(share * len(content))])
        assert error.value.reason == "truncated"


def test_damaged_files_give_typed_errors_and_no_warnings():
    rng = np.random.default_rng(1)
    outcomes = set()
    for format in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        good = np.frombuffer(saved(Image.fromarray(scene()), format), np.uint8)
        for _ in range(40):
            bad = good.copy()
            bad[rng.integers(0, min(len(bad), 300), 5)] = rng.integers(0, 256, 5)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    read_image(bad.tobytes())
                    outcomes.add("read")
                except MediaError as error:
                    outcomes.add(error.reason)
    assert {"read", "decode_error", "truncated", "not_media"} >= outcomes > {"read", "decode_error"}


def colors(height, width):
    """Waves and noise in three colors, uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 17 + y / 9), np.cos(x / 5), np.sin(y / 7 + x * y / 900)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 14, waves.shape)
    return (127 + 90 * waves + noise).clip(0, 255).astype(np.uint8)


def by_pillow(content):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


@pytest.mark.parametrize(
    "size", [(64, 85), pytest.param((256, 341), marks=pytest.mark.slow), (33, 17), (1, 1), (7, 90)]
)
def test_plain_jpeg_is_decoded_by_torchvision_to_the_pixels_and_the_layout_of_pillow(size, monkeypatch):
    contents = [
        saved(Image.fromarray(colors(*size)), "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
        for quality in (30, 75, 95)
        for subsampling in (0, 1, 2)
        for progressive in (False, True)
    ]
    found = [read_image(content) for content in contents]
    monkeypatch.setattr(images, "decode_plain_jpeg", lambda content: None)
    for content, tensor in zip(contents, found, strict=True):
        assert jpeg.is_plain_jpeg(content)
        assert np.array_equal(as_hwc(tensor), by_pillow(content))
        expected = read_image(content)
        assert torch.equal(tensor, expected)
        assert tensor.stride() == expected.stride()


def test_torchvision_is_asked_for_plain_jpeg_and_for_nothing_else(monkeypatch):
    assert jpeg._agrees_with_pillow()
    asked = []
    monkeypatch.setattr(images, "decode_plain_jpeg", asked.append)
    picture, exif = Image.fromarray(colors(20, 31)), Image.Exif()
    exif[0x0112] = 6
    others = [
        saved(picture.convert("L"), "JPEG"),
        saved(picture.convert("CMYK"), "JPEG"),
        saved(picture, "JPEG", exif=exif),
        saved(picture, "JPEG", keep_rgb=True),
        saved(picture, "PNG"),
        saved(picture, "WEBP"),
        b"\xff\xd8\xff\xe0\0\4ab",
        b"\xff\xd8",
    ]
    for content in others:
        if content[:2] != b"\xff\xd8" or len(content) > 10:
            assert np.array_equal(as_hwc(read_image(content)), by_pillow(content))
        assert not jpeg.is_plain_jpeg(content)
    assert not asked
    plain = saved(picture, "JPEG", comment=b"a comment")
    read_image(plain)
    assert asked == [plain]


def test_a_damaged_jpeg_has_the_error_or_the_pixels_that_pillow_gives():
    content = saved(Image.fromarray(colors(64, 85)), "JPEG", quality=90)
    for cut in (len(content) // 2, len(content) - 2):
        with pytest.raises(MediaError) as error:
            read_image(content[:cut], name="x.jpg")
        assert error.value.reason == "truncated"
    generator = np.random.default_rng(0)
    num_read = 0
    for _ in range(40):
        damaged = bytearray(content)
        for at in generator.integers(2, len(content), 4):
            damaged[at] = generator.integers(256)
        try:
            expected = by_pillow(bytes(damaged))
        except Exception:
            with pytest.raises(MediaError):
                read_image(bytes(damaged))
            continue
        assert np.array_equal(as_hwc(read_image(bytes(damaged))), expected)
        num_read += 1
    assert num_read > 10


def test_where_the_decoders_disagree_pillow_reads(monkeypatch):
    content = saved(Image.fromarray(colors(20, 31)), "JPEG")
    monkeypatch.setattr(jpeg, "_decoded", lambda content: torch.zeros(3, 24, 38, dtype=torch.uint8))
    jpeg._agrees_with_pillow.cache_clear()
    try:
        assert not jpeg._agrees_with_pillow()
        assert np.array_equal(as_hwc(read_image(content)), by_pillow(content))
    finally:
        jpeg._agrees_with_pillow.cache_clear()
