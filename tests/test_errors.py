# SPDX-License-Identifier: Apache-2.0
import doctest
import os

import pytest

from recipes_lib import errors
from recipes_lib.errors import ConfigError, Faults, Interrupted, UserError, nearest, path_fault, printable


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(errors).failed == 0


def test_nearest_names_the_closest_option_and_all_of_them():
    assert nearest("labtop", ["toy", "laptop"]) == "Did you mean 'laptop'? There are: toy, laptop."


def test_nearest_does_not_guess_where_nothing_is_close():
    assert nearest("zzz", ["toy", "laptop"]) == "There are: toy, laptop."


def test_nearest_reads_any_iterable_once():
    assert nearest("toi", iter(["toy", "laptop"])) == "Did you mean 'toy'? There are: toy, laptop."


def test_faults_are_collected_and_raised_together_a_line_each():
    faults = Faults()
    faults.need(False, "a.b", 3, "of at least 5", "The paper uses 7.")
    faults.need(True, "a.c", 3, "anything")
    faults.add("Something else.")
    with pytest.raises(ConfigError) as caught:
        faults.raise_any()
    assert str(caught.value).splitlines() == [
        "a.b = 3 is not allowed: use a value of at least 5. The paper uses 7.",
        "Something else.",
    ]


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), (0.1, float("inf"))])
def test_an_infinite_value_is_a_fault_in_any_field(value):
    faults = Faults()
    faults.need(True, "optim.warmup_epochs", value, "of at least 0")
    assert faults.lines == [f"optim.warmup_epochs = {value} is not allowed: use a finite value of at least 0."]


def test_no_fault_raises_nothing():
    Faults().raise_any()


@pytest.mark.parametrize("kind", UserError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_users_mistake_exits_with_2_and_an_interruption_with_3(kind):
    assert kind.exit_code == (3 if kind is Interrupted else 2)


def test_names_that_no_file_can_have_are_told_from_other_errors():
    with pytest.raises(ValueError, match="null") as null:
        os.stat("a\0b")
    assert "null character" in path_fault(null.value)
    with pytest.raises(OSError, match="too long") as long:
        os.stat("a" * 300)
    assert path_fault(long.value).startswith("aaa")
    with pytest.raises(UnicodeEncodeError) as half:
        "a\ud800".encode()
    assert "half a surrogate pair" in path_fault(half.value)
    assert path_fault(OSError(28, "No space left on device")) is None
    assert path_fault(ValueError("something else")) is None


def test_a_line_of_thousands_of_characters_loses_its_middle():
    shown = printable("x" * 5000 + " end")
    assert len(shown) <= 800
    assert shown.endswith(" end")
