"""Names of tasks, and what loading and importing them costs."""

import subprocess
import sys

import pytest

from thriftgrad import tasks


def test_an_unknown_name_is_answered_with_the_nearest_and_the_list():
    with pytest.raises(
        ValueError,
        match=r"There is no task 'digit'; did you mean 'digits'\? The tasks are "
        r"digits, digits32, digits18, logreg, softmax, text, lstm, cifar10, mnist, images, tokens\.",
    ):
        tasks.load("digit")
    with pytest.raises(ValueError, match=r"There is no task 'CIFAR-10'; did you mean 'cifar10'\?"):
        tasks.load("CIFAR-10")
    with pytest.raises(ValueError, match=r"There is no task 'xyzzy'; the tasks are digits,"):
        tasks.load("xyzzy")


def test_settings_without_effect_warn(tmp_path):
    with pytest.warns(UserWarning, match=r"data_dir has no effect on 'logreg', whose data is embedded\."):
        tasks.load("logreg", tmp_path)
    with pytest.warns(UserWarning, match=r"image_size has no effect on 'logreg', only on 'images'\."):
        tasks.load("logreg", image_size=32)


def test_names_are_listed_without_heavy_imports():
    code = (
        "import sys; from thriftgrad.tasks import DESCRIPTIONS, DataError; "
        "print(len(DESCRIPTIONS), sorted({'torch', 'sklearn', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "11 []"


def test_the_tasks_import_scikit_learn_and_pillow_only_when_needed():
    code = (
        "import sys; from thriftgrad import tasks; tasks.load('text'); "
        "print(sorted({'sklearn', 'scipy', 'PIL'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "[]"
