"""What a request resolves to, and which folders it may go on in."""

import hashlib
import json
import re
from dataclasses import replace

import pytest
import torch

import thriftgrad
from thriftgrad import QSGD, AllGather, AllReduce, Cast, Identity, Key, Ledger, LinkModel, TensorSpec, recipes, simulate
from thriftgrad.lab.comparison import (
    ComparisonError,
    Request,
    as_link,
    as_method,
    prepare,
    resolve,
    ring_traffic,
)
from thriftgrad.lab.load import read_configuration
from thriftgrad.tasks import load
from thriftgrad.train.method import Method


def request(**changes):
    asked = {
        "methods": ("sgd", "qsgd"),
        "task": "digits",
        "workers": 2,
        "seeds": 2,
        "steps": 20,
        "links": ("100mbit,1ms",),
        "target": None,
        "tune": False,
        "processes": False,
        "data_dir": None,
    }
    return Request(**(asked | changes))


def refused(pattern):
    return pytest.raises(ComparisonError, match=re.escape(pattern))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"workers": 0}, "compare: it takes at least one worker, got workers=0."),
        ({"workers": -2}, "compare: it takes at least one worker, got workers=-2."),
        ({"seeds": 0}, "compare: it takes at least one seed, got seeds=0."),
        ({"steps": 0}, "compare: it takes at least one step, got steps=0."),
        ({"methods": ()}, "compare: name at least one method, such as sgd, qsgd or power_sgd(rank=4)."),
        ({"target": float("nan")}, "compare: the target is a quality to reach, got nan."),
        ({"target": float("inf")}, "compare: the target is a quality to reach, got inf."),
        (
            {"on_sgd": True, "tune": True},
            "compare: --on-sgd trains by plain SGD at the task's learning rate, got --tune too; leave one out.",
        ),
    ],
)
def test_a_request_that_makes_no_sense(changes, sentence):
    with refused(sentence):
        request(**changes)


def test_the_default_folder_is_a_function_of_the_request_alone():
    assert request().default_folder() == request().default_folder()
    assert request().default_folder().parent.name == "runs"
    assert request().default_folder().name.startswith("digits-")
    others = [
        request(**change)
        for change in (
            {"methods": ("qsgd", "sgd")},
            {"workers": 3},
            {"seeds": 3},
            {"steps": None},
            {"links": ("1gbit",)},
            {"target": 0.9},
            {"tune": True},
            {"processes": True},
            {"data_dir": "x"},
            {"on_sgd": True},
        )
    ]
    assert len({each.default_folder() for each in [request(), *others]}) == 11


def test_what_follows_from_a_request():
    task = load("digits")
    found = resolve(request(methods=("sgd", "signum", "AllGather(QSGD(bits=2))"), steps=None), "the command")
    configuration = found.configuration
    assert configuration.command == "the command"
    assert configuration.thriftgrad == thriftgrad.__version__
    assert (configuration.mode, configuration.workers, configuration.seeds) == ("simulated", 2, (0, 1))
    assert (configuration.steps, configuration.batch_size) == (task.steps, task.batch_size)
    assert configuration.parameters == sum(p.numel() for p in task.build(0).parameters()) == 38282
    assert configuration.task.provenance["sha256"] == task.provenance["sha256"]
    sgd, signum, own = configuration.methods
    assert (sgd.label, sgd.slug, sgd.momentum, sgd.paper) == (
        "sgd",
        "sgd",
        "0.9 after aggregation",
        recipes.sgd().paper,
    )
    assert signum.momentum == "0.9 on each worker, before compression"
    assert signum.learning_rate == task.learning_rate * recipes.signum().learning_rate_scale
    assert own.slug == "allgather-qsgd-bits-2"
    assert found.methods[own.slug] == Method(AllGather(QSGD(bits=2)), momentum=0.9)
    assert all(as_method(row.expression) == found.methods[row.slug] for row in configuration.methods)
    assert configuration.versions["torch"] == torch.__version__


def test_the_target_is_the_tasks_unless_stated():
    assert resolve(request()).configuration.task.target == load("digits").target
    stated = resolve(request(target=0.5))
    assert stated.configuration.task.target == stated.task.target == 0.5


def test_links_up_and_down():
    found = resolve(request(links=("20mbit/100mbit,30ms", "1gbit")))
    slow, fast = found.configuration.links
    assert (slow.label, slow.up_bits_per_second, slow.down_bits_per_second) == ("20mbit/100mbit,30ms", 2e7, 1e8)
    assert slow.latency_seconds == 0.03
    assert (fast.up_bits_per_second, fast.down_bits_per_second, fast.latency_seconds) == (1e9, 1e9, 0)
    assert list(found.links) == ["20mbit/100mbit,30ms", "1gbit"]


def test_a_link_may_be_an_expression():
    assert as_link("LinkModel(1e8, latency_seconds=0.001)") == as_link("100mbit,1ms") == LinkModel.of("100mbit,1ms")
    assert as_link("LinkModel(1e6, slowdown=(1.0, 3.0))").slowdown == (1.0, 3.0)
    with refused("compare: --link takes 100mbit,1ms or a LinkModel(...), got 'TopK(k=3)'."):
        as_link("TopK(k=3)")


def test_methods_whose_names_look_alike_have_files_of_their_own():
    found = resolve(request(methods=("qsgd(bits=4)", "qsgd(bits= 4)")))
    assert [row.slug for row in found.configuration.methods] == ["qsgd-bits-4", "qsgd-bits-4--2"]


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize(("dtype", "compressor"), [(torch.float32, Identity()), (torch.bfloat16, Cast("bf16"))])
def test_the_baselines_are_what_a_ring_all_reduce_is_booked_at(workers, dtype, compressor):
    ledger, aggregator, spec = Ledger(), AllReduce(compressor), TensorSpec((101,))
    simulate([aggregator.aggregate([spec.zeros()], aggregator.init([spec]), Key(0)) for _ in range(workers)], ledger)
    traffic = ring_traffic(101, dtype, workers)
    assert (traffic.up, traffic.down) == (ledger.up_bytes, ledger.down_bytes)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "QSGD(bits=4)",
            "compare: 'QSGD(bits=4)' is no method; wrap it in an aggregator, as in AllGather(QSGD(bits=4)).",
        ),
        ("LinkModel(1e8)", "compare: 'LinkModel(1e8)' is no method; try qsgd."),
        ("3", "compare: '3' is no method; try qsgd."),
    ],
)
def test_no_method(text, sentence):
    with refused(sentence):
        as_method(text)


def test_parts_that_do_not_fit_are_no_type_error():
    with refused("AllReduce needs a linear compressor, and TopK(k=3) is not"):
        as_method("AllReduce(TopK(k=3))")


def test_what_does_not_fit_the_task_is_refused_before_a_run():
    with pytest.raises(ValueError, match="use at most 1437 workers"):
        resolve(request(workers=1438))
    with pytest.raises(ValueError, match=r"no rule fits tensor '0.bias'"):
        resolve(request(methods=("Partition({'matrix': PowerSGD()})",)))
    with pytest.warns(UserWarning, match="compresses none of the 8 tensors"):
        resolve(request(methods=("PowerSGD(rank=100)",)))


def test_a_folder_remembers(tmp_path):
    folder = tmp_path / "new" / "folder"
    comparison = prepare(resolve(request(), "first"), folder)
    assert read_configuration(folder) == comparison.configuration
    assert sorted(each.name for each in folder.iterdir()) == ["comparison.json", "runs"]
    before = (folder / "comparison.json").read_bytes()
    again = prepare(resolve(request(), "worded otherwise"), folder)
    assert again.configuration.command == "first"
    assert (folder / "comparison.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"workers": 3}, "workers is 2 there and 3 here"),
        ({"steps": None}, "steps is 20 there and None here"),
        ({"methods": ("sgd",)}, "methods is ['sgd', 'qsgd'] there and ['sgd'] here"),
        ({"target": 0.5, "seeds": 1}, "seeds is 2 there and 1 here; target is None there and 0.5 here"),
        ({"on_sgd": True}, "on_sgd is False there and True here"),
    ],
)
def test_a_folder_of_another_request_is_refused(tmp_path, changes, difference):
    prepare(resolve(request()), tmp_path)
    with refused(f"compare: {tmp_path} holds another comparison ({difference}); choose another folder with --out."):
        prepare(resolve(request(**changes)), tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "difference"),
    [
        (["thriftgrad"], "0.0.1", f"thriftgrad is '0.0.1' there and '{thriftgrad.__version__}' here"),
        (["versions", "torch"], "1.0", f"versions.torch is '1.0' there and '{torch.__version__}' here"),
        (["task", "provenance", "sha256"], "ab", "task.provenance.sha256 is 'ab' there and '"),
        (["methods", 1, "expression"], "old", "methods.qsgd is 'old' there and \"Method("),
    ],
)
def test_a_folder_begun_with_other_data_or_versions_is_refused(tmp_path, path, value, difference):
    prepare(resolve(request()), tmp_path)
    file = tmp_path / "comparison.json"
    settings = json.loads(file.read_text())
    place = settings
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    file.write_text(json.dumps(settings))
    with refused(difference):
        prepare(resolve(request()), tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 99}', '"\\ud800"'])
def test_a_corrupt_folder_is_refused_and_left_as_it_is(tmp_path, text):
    file = tmp_path / "comparison.json"
    file.write_text(text)
    with pytest.raises(ComparisonError) as caught:
        prepare(resolve(request()), tmp_path)
    assert str(caught.value).startswith(f"compare: {file} is corrupt (")
    assert str(caught.value).endswith("; choose another folder with --out.")
    assert file.read_text() == text


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with refused(f"compare: cannot write to {tmp_path}/file/x (Not a directory); choose another folder with --out."):
        prepare(resolve(request()), tmp_path / "file" / "x")


def test_a_configuration_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    comparison = prepare(resolve(request()), tmp_path)
    before = (tmp_path / "comparison.json").read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        replace(comparison, configuration=replace(comparison.configuration, steps=1)).save(tmp_path)
    assert (tmp_path / "comparison.json").read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["comparison.json", "runs"]


def test_a_method_cannot_train_where_it_was_looking_on(tmp_path):
    prepare(resolve(request(on_sgd=True)), tmp_path)
    with refused(f"compare: {tmp_path} holds another comparison (on_sgd is True there and False here); choose another"):
        prepare(resolve(request()), tmp_path)


def test_a_folder_from_before_there_were_onlookers_goes_on(tmp_path):
    prepare(resolve(request()), tmp_path)
    file = tmp_path / "comparison.json"
    settings = json.loads(file.read_text())
    del settings["protocol"], settings["request"]["on_sgd"]
    file.write_text(json.dumps(settings))
    assert prepare(resolve(request()), tmp_path).configuration.protocol == "trained"
    with refused("on_sgd is False there and True here"):
        prepare(resolve(request(on_sgd=True)), tmp_path)


def test_the_digest_of_a_request_without_onlookers_is_what_it_was():
    """So that the default folder of an older comparison is found again."""
    text = json.dumps({k: v for k, v in vars(request()).items() if k not in ("on_sgd", "lab")}, sort_keys=True)
    assert request().digest == hashlib.sha256(text.encode()).hexdigest()[:8]


def test_onlookers_have_plain_sgds_learning_rate():
    own, looking = (resolve(request(methods=("signum",), on_sgd=each)).configuration for each in (False, True))
    assert (own.protocol, looking.protocol) == ("trained", "on-sgd")
    assert looking.methods[0].learning_rate == load("digits").learning_rate != own.methods[0].learning_rate
