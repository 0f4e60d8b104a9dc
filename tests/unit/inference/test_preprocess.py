"""The model's input: grey scale as the package presents it, the geometry that it asks for, and no aliasing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from radiographs import shades
from stepwedge.inference.preprocess import presented, resized, to_tensor
from stepwedge.manifest import Input
from stepwedge.records import Image

PERCENTILE = {"kind": "percentile", "low": 1, "high": 99}
RESAMPLINGS = ["bilinear", "bicubic", "lanczos", "box"]


def spec(**values: Any) -> Input:
    return Input.model_validate(
        {"name": "image", "rows": 32, "columns": 32, "presentation": {"kind": "range"}} | values
    )


def image(
    pixels: NDArray[np.float32],
    value_range: tuple[float, float] = (0.0, 1.0),
    window: tuple[float, float] | None = None,
) -> Image:
    return Image(pixels=pixels.astype(np.float32), value_range=value_range, window=window)


def noise(rows: int = 40, columns: int = 50, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((rows, columns), dtype=np.float32)


class TestPercentilePresentation:
    @given(st.floats(0.01, 100), st.floats(-1000, 1000))
    def test_it_is_blind_to_a_linear_change_of_the_grey_scale(self, contrast: float, brightness: float) -> None:
        wanted = spec(presentation=PERCENTILE)
        pixels = noise().astype(np.float64)
        changed = (pixels * contrast + brightness).astype(np.float32)
        # float32 keeps seven digits, of which a large brightness takes some.
        tolerance = 1e-4 + 1e-6 * abs(brightness) / contrast
        assert presented(image(changed), wanted) == pytest.approx(presented(image(pixels), wanted), abs=tolerance)

    def test_it_is_blind_to_the_window_and_to_the_stored_range(self) -> None:
        wanted = spec(presentation=PERCENTILE)
        plain = presented(image(noise()), wanted)
        assert np.array_equal(presented(image(noise(), (-500.0, 9000.0), (3.0, 4.0)), wanted), plain)

    def test_the_percentiles_become_black_and_white(self) -> None:
        shown = presented(image(noise(200, 200)), spec(presentation={"kind": "percentile", "low": 10, "high": 80}))
        assert np.mean(shown == 0.0) == pytest.approx(0.10, abs=0.01)
        assert np.mean(shown == 1.0) == pytest.approx(0.20, abs=0.01)

    def test_a_few_glaring_pixels_do_not_darken_the_rest(self) -> None:
        pixels = noise(200, 200)
        glaring = pixels.copy()
        glaring[:3, :30] = 1000.0
        wanted = spec(presentation=PERCENTILE)
        assert presented(image(glaring), wanted)[10:] == pytest.approx(presented(image(pixels), wanted)[10:], abs=0.01)

    def test_a_mark_on_a_plain_ground_is_white_on_black(self) -> None:
        pixels = np.zeros((100, 100), np.float32)
        pixels[0, :10] = 4000
        shown = presented(image(pixels, (0, 4095)), spec(presentation=PERCENTILE))
        assert np.array_equal(shown, pixels / 4000)

    def test_a_large_image_is_presented_like_the_same_image_small(self) -> None:
        wanted = spec(presentation=PERCENTILE)
        large, small = (presented(image(shades(0.5, side, side)), wanted) for side in (1800, 180))
        assert large.mean() == pytest.approx(small.mean(), abs=0.01)


class TestWindowPresentation:
    wanted = spec(presentation={"kind": "window"})

    def test_the_windows_ends_become_black_and_white_and_what_is_beyond_is_clipped(self) -> None:
        pixels = np.array([[-10, 100, 150, 200, 999]], np.float32)
        shown = presented(image(pixels, (0, 4095), window=(150, 100)), self.wanted)
        assert shown[0] == pytest.approx([0, 0, 0.5, 1, 1])

    def test_without_a_window_the_images_own_range_is_shown(self) -> None:
        shown = presented(image(np.array([[-5, 0, 15]], np.float32), (-1024, 3071)), self.wanted)
        assert shown[0] == pytest.approx([0, 0.25, 1])


class TestRangePresentation:
    def test_the_stored_ranges_ends_become_black_and_white(self) -> None:
        shown = presented(image(np.array([[-1024, 0, 3072]], np.float32), (-1024, 3072)), spec())
        assert shown[0] == pytest.approx([0, 0.25, 1])

    def test_it_keeps_an_images_brightness(self) -> None:
        assert presented(image(shades(0.75)), spec()).mean() == pytest.approx(0.75, abs=1e-4)


class TestAnImageOfOneValue:
    @pytest.mark.parametrize("presentation", [PERCENTILE, {"kind": "window"}, {"kind": "range"}])
    @pytest.mark.parametrize("value", [0.0, 1e-3, 65535.0, -1024.0])
    def test_it_is_a_finite_tensor(self, presentation: dict[str, Any], value: float) -> None:
        constant = image(np.full((20, 30), value, np.float32), (value, value))
        tensor = to_tensor(constant, spec(presentation=presentation))
        assert np.isfinite(tensor).all()
        assert tensor.min() >= 0
        assert tensor.max() <= 1


class TestGeometry:
    """A bright mark on black shows where each part of the image comes to lie."""

    def marked(self, rows: int, columns: int, down: slice, across: slice) -> NDArray[np.float32]:
        pixels = np.zeros((rows, columns), np.float32)
        pixels[down, across] = 1
        return pixels

    def test_stretch_shows_everything(self) -> None:
        pixels = self.marked(64, 128, slice(0, 64), slice(0, 64))
        fitted = resized(pixels, spec(fit="stretch", resampling="box"))
        assert fitted[:, :16] == pytest.approx(1)
        assert fitted[:, 16:] == pytest.approx(0)

    @pytest.mark.parametrize("wide", [True, False])
    def test_crop_shows_the_middle_and_nothing_of_the_ends(self, wide: bool) -> None:
        pixels = self.marked(64, 128, slice(0, 64), slice(32, 96))
        fitted = resized(pixels if wide else np.ascontiguousarray(pixels.T), spec(fit="crop"))
        assert fitted == pytest.approx(1)

    @pytest.mark.parametrize("wide", [True, False])
    def test_pad_shows_everything_undistorted_between_black_bands(self, wide: bool) -> None:
        pixels = np.ones((64, 128), np.float32)
        fitted = resized(pixels if wide else pixels.T, spec(fit="pad", resampling="box"))
        fitted = fitted if wide else fitted.T
        assert fitted[8:24] == pytest.approx(1)
        assert fitted[:8] == pytest.approx(0)
        assert fitted[24:] == pytest.approx(0)

    @pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
    def test_an_image_of_the_inputs_own_size_stays_as_it_is(self, fit: str) -> None:
        pixels = noise(32, 48)
        assert np.array_equal(resized(pixels, spec(columns=48, fit=fit)), pixels)

    @pytest.mark.parametrize("fit", ["crop", "pad"])
    @pytest.mark.parametrize("resampling", RESAMPLINGS)
    def test_an_image_of_the_inputs_proportions_is_neither_cropped_nor_padded(self, fit: str, resampling: str) -> None:
        pixels = noise(64, 96)
        other = resized(pixels, spec(columns=48, fit="stretch", resampling=resampling))
        assert np.array_equal(resized(pixels, spec(columns=48, fit=fit, resampling=resampling)), other)

    @settings(deadline=None)
    @given(st.integers(12, 300), st.integers(28, 300), st.sampled_from(["stretch", "crop", "pad"]))
    def test_any_image_that_the_gate_finds_large_enough_becomes_the_inputs_size(
        self, rows: int, columns: int, fit: str
    ) -> None:
        fitted = resized(np.full((rows, columns), 0.5, np.float32), spec(rows=24, columns=56, fit=fit))
        assert fitted.shape == (24, 56)
        assert fitted.dtype == np.float32
        assert 0 < fitted.max() <= 0.5 + 1e-5


class TestResampling:
    @pytest.mark.parametrize("resampling", RESAMPLINGS)
    def test_fine_stripes_become_their_mean_and_no_coarse_ones(self, resampling: str) -> None:
        stripes = np.tile(np.array([0.0, 1.0], np.float32), (256, 128))
        shrunk = resized(stripes, spec(resampling=resampling))[:, 2:-2]
        assert shrunk.std() < 0.02
        assert shrunk.mean() == pytest.approx(0.5, abs=0.02)

    @pytest.mark.parametrize("resampling", RESAMPLINGS)
    def test_the_mean_survives(self, resampling: str) -> None:
        assert resized(shades(0.4, 200, 300), spec(resampling=resampling)).mean() == pytest.approx(0.4, abs=1e-3)

    def test_overshoot_of_a_sharp_kernel_stays_within_the_grey_scale(self) -> None:
        edge = np.zeros((128, 128), np.float32)
        edge[:, 64:] = 1
        tensor = to_tensor(image(edge), spec(resampling="lanczos"))
        assert tensor.min() >= 0
        assert tensor.max() <= 1


class TestTheTensor:
    def test_it_is_one_batch_of_one_channel_of_float32(self) -> None:
        tensor = to_tensor(image(noise()), spec(rows=24, columns=40))
        assert tensor.shape == (1, 1, 24, 40)
        assert tensor.dtype == np.float32
        assert tensor.flags.c_contiguous

    def test_three_channels_hold_the_same_picture_each_with_its_own_normalisation(self) -> None:
        tensor = to_tensor(image(noise()), spec(channels=3, mean=[0.1, 0.2, 0.3], sd=[1.0, 2.0, 0.5]))
        plain = to_tensor(image(noise()), spec())[0, 0]
        assert tensor.shape == (1, 3, 32, 32)
        for channel, (mean, sd) in enumerate([(0.1, 1.0), (0.2, 2.0), (0.3, 0.5)]):
            assert tensor[0, channel] == pytest.approx((plain - mean) / sd, abs=1e-6)

    def test_one_mean_and_one_sd_serve_every_channel(self) -> None:
        tensor = to_tensor(image(noise()), spec(channels=3, mean=[0.5], sd=[0.25]))
        assert np.array_equal(tensor[0, 0], tensor[0, 2])

    def test_the_image_itself_is_left_alone(self) -> None:
        pixels = noise()
        before = pixels.copy()
        to_tensor(image(pixels), spec(presentation=PERCENTILE, fit="pad"))
        assert np.array_equal(pixels, before)

    def test_the_same_image_gives_the_same_bytes(self) -> None:
        wanted = spec(presentation=PERCENTILE, fit="crop", resampling="lanczos")
        assert to_tensor(image(noise()), wanted).tobytes() == to_tensor(image(noise()), wanted).tobytes()
