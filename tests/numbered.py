"""Films whose frames show their number: a bright bar stands as many pixels from the left."""

from fractions import Fraction

import av
import numpy as np

from avssl.media.decode import stream_video

WIDTH, HEIGHT, FPS = 128, 64, 25


def image(number):
    """uint8 (HEIGHT, WIDTH, 3): the bar moves on by a pixel per frame, and begins again."""
    pixels = np.full((HEIGHT, WIDTH, 3), 16, np.uint8)
    pixels[:, number % (WIDTH - 8) :][:, :8] = 240
    return pixels


def number(pixels):
    """The number of an image, uint8 tensor (3, HEIGHT, WIDTH)."""
    return round(float((pixels.float().mean((0, 1)) > 128).nonzero().float().mean() - 3.5))


def numbers(source):
    """[(seconds, number)] of all frames."""
    return [(seconds, number(pixels)) for seconds, pixels in stream_video(source)]


def encoder(codec, options, **settings):
    """An open encoder of such images."""
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    context.time_base, context.framerate, context.bit_rate = Fraction(1, FPS), Fraction(FPS), 3_000_000
    context.options = options
    for name, value in settings.items():
        setattr(context, name, value)
    return context


def packets(context, num_pictures):
    """What it makes of the first so many."""
    found = []
    for k in range(num_pictures):
        frame = av.VideoFrame.from_ndarray(image(k), format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = k, Fraction(1, FPS)
        found += context.encode(frame)
    return found + context.encode(None)


def write(path, codec, options, num_pictures, container_format=None):
    """A film in the container that the name says, or that one."""
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.bit_rate = 3_000_000
        for k in range(num_pictures):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image(k), format="rgb24")))
        container.mux(stream.encode())
