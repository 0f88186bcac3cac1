"""Ranges and profiles: what is refused, what is said, and that both travel through text."""

from __future__ import annotations

import pytest
from cnclip_builder.errors import SettingError
from cnclip_builder.plans.api import BuildOptions
from cnclip_builder.plans.here import PlanSettings
from cnclip_builder.plans.profiles import Profile, ShapeRange, check_profiles, default_profiles, largest_batch
from cnclip_builder.tensors import InputSpec
from hypothesis import given
from hypothesis import strategies as st

IDS = InputSpec("text", "int32", ("batch", "length"))
PIXELS = InputSpec("pixels", "uint8", ("batch", 224, 224, 3))


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 3), (1, 3, 2), (1, 1, True), (1, 1.0, 2), (-1, -1, -1)])
def test_nonsense_is_no_range(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(SettingError, match="such as 1:16:64"):
        ShapeRange(*sizes)


@pytest.mark.parametrize("text", ["", "1", "1:2", "1:2:3:4", "a:b:c", "1:2:-3", "１:2:3 ", "1:2:99999999"])
def test_text_that_is_no_range(text: str) -> None:
    with pytest.raises(SettingError, match=r"write min:opt:max"):
        ShapeRange.parse(text)


def test_what_lies_in_a_range() -> None:
    sizes = ShapeRange(2, 4, 8)
    assert [size in sizes for size in (1, 2, 8, 9, "4")] == [False, True, True, False, False]


@given(st.lists(st.integers(1, 999), min_size=6, max_size=6))
def test_a_profile_comes_back_from_its_text_and_its_sidecar(numbers: list[int]) -> None:
    profile = Profile({"batch": ShapeRange(*sorted(numbers[:3])), "length": ShapeRange(*sorted(numbers[3:]))})
    assert Profile.parse(str(profile)) == profile
    assert Profile.from_dict(profile.as_dict()) == profile


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1:2:3", "is no profile: write batch=1:16:64"),
        ("batch=1:2:3,batch=1:2:3", "is no profile"),
        ("length=3:20:52", "gives no range for 'batch'"),
        ("batch=3:2:1", "is no range"),
    ],
)
def test_text_that_is_no_profile(text: str, complaint: str) -> None:
    with pytest.raises(SettingError, match=complaint):
        Profile.parse(text)


def test_shapes() -> None:
    profile = Profile.parse("batch=1:8:64,length=3:20:52")
    assert profile.shapes(IDS) == ((1, 3), (8, 20), (64, 52))
    assert Profile.parse("batch=1:8:64").shapes(PIXELS) == ((1, 224, 224, 3), (8, 224, 224, 3), (64, 224, 224, 3))


def test_unknown_and_missing_axes_are_answered_with_the_real_ones() -> None:
    with pytest.raises(SettingError, match="'pixels' has no axis 'length': its axes that vary are 'batch'$"):
        Profile.parse("batch=1:8:64,length=3:20:52").shapes(PIXELS)
    with pytest.raises(SettingError, match="no range for axis 'length' of input 'text': name 'batch', 'length'$"):
        Profile.parse("batch=1:8:64").shapes(IDS)


def test_profiles_that_do_not_serve() -> None:
    with pytest.raises(SettingError, match="needs a profile"):
        check_profiles([], PIXELS)
    short = Profile.parse("batch=1:8:64,length=3:20:40")
    check_profiles([short], IDS, 40)
    with pytest.raises(SettingError, match="no profile takes texts of 3 to 52 tokens"):
        check_profiles([short], IDS, 52)
    with pytest.raises(SettingError, match="no profile takes texts of 3"):
        check_profiles([Profile.parse("batch=1:8:64,length=4:20:52")], IDS, 52)


@given(st.integers(1, 512), st.one_of(st.none(), st.integers(3, 512)))
def test_the_default_profiles_take_all_that_is_served(max_batch_size: int, context_length: int | None) -> None:
    profiles = default_profiles(max_batch_size, context_length)
    check_profiles(profiles, PIXELS if context_length is None else IDS, context_length)
    assert largest_batch(profiles) == max_batch_size
    for batch in range(1, max_batch_size + 1):
        assert any(batch in profile.batch for profile in profiles)
    assert len(profiles) == (1 if max_batch_size < 8 else 2)
    assert profiles[0].batch.opt == 1 or max_batch_size < 8


def test_texts_are_tuned_for_a_length_that_is_served() -> None:
    def tuned(context_length: int, tuned_length: int | None) -> set[int]:
        return {profile.ranges["length"].opt for profile in default_profiles(64, context_length, tuned_length)}

    assert tuned(52, 40) == {40}
    assert PlanSettings(64, 52, tuned_length=40).profiles("text") == default_profiles(64, 52, 40)
    assert tuned(30, 40) == {30}
    assert tuned(52, None) == {52}


def test_a_fast_build_is_tuned_for_full_batches_alone() -> None:
    fast = PlanSettings(64, 52, options=BuildOptions(fast=True))
    assert fast.profiles("image") == default_profiles(64)[-1:]
    assert fast.profiles("text") == default_profiles(64, 52)[-1:]
    named = (Profile.parse("batch=1:1:4"), Profile.parse("batch=1:8:64"))
    assert PlanSettings(64, 52, image_profiles=named, options=BuildOptions(fast=True)).profiles("image") == named
    assert len(PlanSettings(64, 52).profiles("image")) == 2
