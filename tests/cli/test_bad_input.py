"""Whatever is wrong: one sentence on the error stream, exit code 2, and nothing half-written."""

import pytest

TINY = ("--workers", "2", "--seeds", "1", "--steps", "1")

REFUSED = {
    # the method
    "qsdg": "unknown name 'qsdg'; did you mean 'qsgd'",
    "PowerSGd(rank=2)": "unknown name 'PowerSGd'; did you mean 'PowerSGD'",
    "qsgd(bit=4)": "qsgd has no argument 'bit'; did you mean 'bits'",
    "qsgd(": "cannot read 'qsgd('",
    "__import__('os')": "unknown name '__import__'",
    "QSGD(bits=4)": "'QSGD(bits=4)' is no method; wrap it in an aggregator, as in AllGather(QSGD(bits=4)).",
    "top_k(fraction=0)": "fraction must lie in (0, 1], got 0",
    "random_k(fraction=1.5)": "fraction must lie in (0, 1], got 1.5",
    "qsgd(bits=1)": "bits must lie in 2 ... 8 (sign included), got 1",
    "qsgd(bits=33)": "bits must lie in 2 ... 8 (sign included), got 33",
    "qsgd(bits='four')": "bits must be of type int, got 'four'",
    "power_sgd(rank=0)": "rank must be at least 1, got 0",
    "AllReduce(TopK(fraction=0.1))": "AllReduce needs a linear compressor, and TopK(fraction=0.1) is not",
    "AllGather(ErrorFeedback(QSGD(bits=2)))": "ErrorFeedback needs a contraction",
    "AllGather(ErrorFeedback(RandomK(k=3)))": "drop the rescaling",
    "AllGather(4)": "compressor must be of type Compressor, got 4",
    "Partition({'matrix': PowerSGD()})": "no rule fits tensor '0.bias'",
    # local updates
    "local_sgd(h=0)": "Every: h, the steps between two syncs, must be an integer of at least 1, got 0",
    "local_sgd(h=-8)": "must be an integer of at least 1, got -8",
    "local_sgd(h='8')": "local_sgd: h must be of type int, got '8'",
    "diloco": "Every(h=500): worker 0 would not synchronise once in 1 steps; train longer",
    "LocalMethod(AllReduce(Identity()), At(()))": "At: no steps given, so the workers would never synchronise",
    "LocalMethod(AllReduce(Identity()), At((7, 3)))": "At: steps must ascend and start from 1, got (7, 3)",
    "LocalMethod(AllReduce(Identity()), At((2, 4)))": "worker 0 would not synchronise once in 1 steps",
    "LocalMethod(AsyncServer(Sign()), PerWorker(()))": "PerWorker: no schedules given; name one for each worker",
    "LocalMethod(AsyncServer(Sign()), PerWorker((Every(1), Every(1), Every(1))))": "3 schedules for 2 workers",
    "LocalMethod(AsyncServer(Sign()), PerWorker((Every(1), Every(3))))": "worker 1 would not synchronise once",
    "LocalMethod(AllGather(Sign()), RandomGaps(4))": "workers come at different steps, and "
    "AllGather(compressor=Sign()) needs all at once; use an AsyncServer.",
    "LocalMethod(AsyncServer(Sign()), Every(1), outer=SlowMo())": "SlowMo() has no round to act on; use Average()",
    "LocalMethod(AllReduce(Identity()), Streaming(9, 2))": "h must be a multiple of the number of fragments, got h=9",
    "LocalMethod(AllReduce(Identity()), 8)": "schedule must be of type Schedule, got 8",
    "LocalMethod(Sign(), Every(8))": "aggregator must be of type Aggregator or AsyncServer, got Sign()",
    "slow_mo(slow_momentum=1.0)": "SlowMo: momentum must lie in [0, 1), got 1.0",
    "Every(8)": "'Every(8)' is no method; say what it schedules, as in LocalMethod(AllReduce(Identity()), Every(h=8)).",
    "SlowMo()": "'SlowMo()' is no method; try qsgd.",
}

OPTIONS = {
    ("--task", "digit"): "There is no task 'digit'; did you mean 'digits'",
    ("--workers", "0"): "at least one worker, got workers=0",
    ("--workers", "-3"): "at least one worker, got workers=-3",
    ("--workers", "1438"): "1438 workers cannot share the 1437 training samples of 'digits'; use at most 1437 workers",
    (
        "--workers",
        "two",
    ): "Invalid value for '--workers': Input should be a valid integer, unable to parse string "
    "as an integer, got 'two'; see thriftgrad compare --help.",
    ("--seeds", "0"): "at least one seed, got seeds=0",
    ("--steps", "0"): "at least one step, got steps=0",
    ("--steps", "-1"): "at least one step, got steps=-1",
    ("--link", "fast"): 'expected "100mbit,1ms" or "20mbit/100mbit,30ms" (up/down,latency), got \'fast\'',
    ("--link", "0mbit"): "up_bits_per_second must be positive, got 0",
    ("--target", "high"): "got 'high'; see thriftgrad compare --help.",
    ("--target", "nan"): "the target is a quality to reach, got nan",
    ("--task", "mnist", "--data-dir", "nowhere"): "There is no folder nowhere with MNIST",
    ("--task", "mnist"): "There is no folder data with MNIST",
    ("--out", "a-file/x"): "cannot write to a-file/x (Not a directory); choose another folder with --out.",
    ("--bogus",): "No such option: --bogus",
    ("--trace", "t.json"): "--trace records real processes, got t.json without; add --processes or --lab.",
    ("--trace", "no/t.json", "--processes"): "--trace writes a file, and there is no folder no; make it first.",
}


def one_sentence(result):
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("thriftgrad: ")
    assert err.count("\n") == 1
    assert err.endswith(".\n")
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("method", REFUSED)
def test_a_method_that_is_none(cli, tmp_path, method):
    assert REFUSED[method] in one_sentence(cli("compare", "sgd", method, *TINY, "--out", "out"))
    assert list(tmp_path.iterdir()) == []


SERVED = "LocalMethod(AsyncServer(Sign()), Every(1))"

NOT_LOCAL = {
    ("local_sgd(h=1)", "--on-sgd"): "--on-sgd shows methods the gradients of plain SGD, and 'local_sgd(h=1)' exchanges "
    "what its own steps have come to; leave one of them out.",
    (SERVED, "--processes"): f"--processes runs all workers in lockstep, and those of {SERVED!r} come when they like",
    ("local_sgd(h=8)", "--steps", "15", "--tune"): "--tune tries learning rates on 7 steps, half of a run, and "
    "'local_sgd(h=8)' would not synchronise once in them",
    (SERVED, "--task", "digits32"): "an asynchronous server averages no buffers, and the model has '1.running_mean'",
}


@pytest.mark.parametrize("options", NOT_LOCAL)
def test_an_option_that_does_not_suit_local_updates(cli, tmp_path, options):
    assert NOT_LOCAL[options] in one_sentence(cli("compare", *TINY, "--out", "out", *options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", OPTIONS)
def test_an_option_that_cannot_be(cli, tmp_path, options):
    (tmp_path / "a-file").touch()
    assert OPTIONS[options] in one_sentence(cli("compare", "sgd", *TINY, "--out", "out", *options))
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bogus"], "No such command 'bogus'; see thriftgrad --help."),
        (["compare"], "Missing argument 'methods'; see thriftgrad compare --help."),
        (["report"], "Missing argument 'folder'; see thriftgrad report --help."),
        (["explain", "qsdg"], "did you mean 'qsgd'"),
        (["explain", "qsgd", "--size", "0"], "explain: it takes 1 to 100,000,000 elements"),
        (["explain", "AllReduce(Sign())"], "AllReduce needs a linear compressor"),
        (["explain", "Every(0)"], "must be an integer of at least 1, got 0"),
        (["explain", "PerWorker((Every(2),))"], "PerWorker: 1 schedules for 4 workers; give one for each"),
        (["explain", "LinkModel(1e8)"], "is no compressor, aggregator, schedule or method"),
        (["report", "nowhere"], "There is no comparison to read in nowhere"),
    ],
)
def test_the_other_commands_too(cli, arguments, sentence):
    assert sentence in one_sentence(cli(*arguments))


def write_mnist(folder, images=b""):
    folder.mkdir()
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1\0\0\0\1\0")


@pytest.mark.parametrize(
    "images",
    [
        b"",
        b"\0\0\x08\3" + b"\0\0\0\x01" + b"\0\0\0\x08" * 2 + b"\0" * 63,
        b"rubbish that is long enough to be a header",
    ],
)
def test_a_corrupt_data_folder(cli, tmp_path, images):
    write_mnist(tmp_path / "data", images)
    assert "train-images-idx3-ubyte" in one_sentence(cli("compare", "sgd", "--task", "mnist", *TINY, "--out", "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_of_another_comparison(cli, tmp_path):
    assert cli("compare", "sgd", *TINY, "--out", "out").code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    sentence = one_sentence(cli("compare", "sgd", *TINY, "--out", "out", "--workers", "3"))
    assert "out holds another comparison (workers is 2 there and 3 here); choose another folder with --out." in sentence
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_corrupt_comparison(cli, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.json").write_text('{"schema": 1,')
    assert "comparison.json is corrupt" in one_sentence(cli("compare", "sgd", *TINY, "--out", "out"))
    assert "comparison.json" in one_sentence(cli("report", "out"))


def test_an_interrupt_is_a_sentence_too(cli, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("thriftgrad.lab.runner.train", interrupted)
    monkeypatch.setattr("thriftgrad.lab.runner._evaluations", interrupted)
    assert one_sentence(cli("compare", "sgd", *TINY)) == (
        "thriftgrad: interrupted; what is finished is kept, and the same command goes on from there.\n"
    )


def test_a_full_disk_is_a_sentence_too(cli, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "out/runs/sgd-seed0.jsonl")

    monkeypatch.setattr("thriftgrad.lab.runner._evaluations", full)
    assert "No space left on device" in cli("compare", "sgd", *TINY).err


@pytest.mark.filterwarnings("default")
def test_a_setting_without_effect_is_told_once(cli):
    code, _, err = cli("compare", "PowerSGD(rank=100)", *TINY, "--data-dir", "x", "--out", "out")
    assert code == 0
    first, second = err.splitlines()
    assert first == "thriftgrad: warning: data_dir has no effect on 'digits', whose data is embedded."
    assert second.startswith("thriftgrad: warning: PowerSGD(rank=100) compresses none of the 8 tensors")
