"""The images of a stack are put in the order in which they lie, or it is said why they cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from instances import make_instance
from series import ct_series
from stepwedge.dicom.geometry import Place, in_order, place_of
from stepwedge.manifest import Stack

POSITION, NUMBER = Stack(), Stack(order="instance_number")


def places(count: int = 4) -> list[Place]:
    return [place_of(dataset) for dataset in ct_series(0.5, count)]


class TestTheOrder:
    def test_is_along_the_normal_of_the_slices_whatever_their_numbers_say(self) -> None:
        shuffled = [replace(place, instance_number=1) for place in places()][::-1]
        assert in_order(shuffled, POSITION) == ([3, 2, 1, 0], None)

    def test_is_that_of_the_instance_numbers_where_the_package_says_so(self) -> None:
        shuffled = [
            replace(place, instance_number=number) for place, number in zip(places(), [7, 5, 9, 6], strict=True)
        ]
        assert in_order(shuffled, NUMBER) == ([1, 3, 0, 2], None)

    def test_of_oblique_slices_is_along_their_own_normal(self) -> None:
        datasets = ct_series(0.5, 3)
        for number, dataset in enumerate(datasets):
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]  # sagittal: the normal points to −x
            dataset.ImagePositionPatient = [5.0 * number, 0, 0]
        assert in_order([place_of(dataset) for dataset in datasets], POSITION) == ([2, 1, 0], None)

    def test_of_two_series_is_one_series_after_the_other(self) -> None:
        first, second = places(2), places(2)
        assert in_order([second[1], first[1], second[0], first[0]], POSITION) == ([2, 0, 3, 1], None)

    def test_more_than_the_model_takes_are_thinned_out_evenly_with_both_ends_kept(self) -> None:
        order, problem = in_order(places(9), Stack(maximum=3))
        assert (order, problem) == ([0, 4, 8], None)


class TestAStackThatDoesNotFitTogether:
    def test_too_few_images(self) -> None:
        _, problem = in_order(places(2), Stack(minimum=3))
        assert problem is not None
        assert (problem.code, problem.detail) == ("stack_too_small", "2 of at least 3")

    @pytest.mark.parametrize("stack", [POSITION, NUMBER])
    def test_an_image_without_a_place(self, stack: Stack) -> None:
        order, problem = in_order([*places(2), place_of(make_instance())], stack)
        assert order == []
        assert problem is not None
        assert problem.code == "stack_inconsistent"

    def test_slices_that_are_not_parallel(self) -> None:
        first, second, third = places(3)
        _, problem = in_order([first, second, replace(third, normal=(0.0, 0.1, 0.995))], POSITION)
        assert problem is not None
        assert problem.detail == "the slices are not parallel"

    def test_two_slices_in_one_place(self) -> None:
        _, problem = in_order([*(three := places(3)), three[0]], POSITION)
        assert problem is not None
        assert problem.detail == "two slices lie in one place"


@pytest.mark.parametrize("value", [["1", "0", "0"], ["a", "b", "c"], "1e999\\0\\0\\0\\1\\0", None])
def test_an_orientation_that_is_none_is_unknown(value: object) -> None:
    dataset = ct_series(0.5, 1)[0]
    del dataset.ImageOrientationPatient
    dataset.add_new("ImageOrientationPatient", "LO", value)
    assert place_of(dataset).normal is None
