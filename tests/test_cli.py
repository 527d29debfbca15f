"""The command line: flags and overrides as absl reads them, mistakes refused, bugs not hidden."""

import dataclasses
import shutil
import sys

import numpy as np
import pytest
from absl import flags
from helpers.narrow import narrow

from jaxseg import checkpoint, cli, workdir
from jaxseg.config import Experiment, defaults, get_experiment
from jaxseg.config.schema import from_dict
from jaxseg.errors import ConfigError, DataError, JaxsegError
from jaxseg.inference import predictor as inference
from jaxseg.models import create_model, init_variables
from jaxseg.validation import check_alone

FCN = "--config=configs/fcn.py:r18-d8_64x64_2k_folder"


@pytest.fixture
def parse(monkeypatch):
    """(arguments, options of cli.parse) -> (config, arguments that are not flags)."""
    names = ("config", "checkpoint", "workdir", "pictures", "size")

    def call(*arguments, **options):
        clear()
        config = cli.define_config()
        for name in names[1:3]:
            flags.DEFINE_string(name, "", "A folder.")
        flags.DEFINE_integer("pictures", 8, "How many.", lower_bound=0)
        flags.DEFINE_string("size", "", "HxW.")
        flags.register_validator(
            "size", lambda text: "x" in text or not text, message="give --size=HxW"
        )
        rest = cli.parse(["script.py", *map(str, arguments)], **options)
        return config.value, rest[1:]

    def clear():
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name in names or name.startswith("config.")]:
            delattr(flags.FLAGS, name)

    yield call
    clear()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with the config of a run and no checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    config = get_experiment("fcn_r18-d8_64x64_2k_folder")
    config.dataset.update(dict(root="photos", dtype="uint8", **defaults.IMAGENET))
    config.model.num_classes = 3
    workdir.write_experiment(folder, from_dict(Experiment, check_alone(config)), {})
    return folder


def test_the_last_of_repeated_flags_counts(parse, run, tmp_path):
    config, _ = parse("--config=nothing.py", FCN, "--config.steps=5", "--config.steps", "7")
    assert config.name == "fcn_r18-d8_64x64_2k_folder" and config.steps == 7
    config, _ = parse(
        "--checkpoint=nothing", f"--checkpoint={run}", "--config.eval.flip", of_run=True
    )
    assert config.eval.flip is True
    (tmp_path / "flags.txt").write_text("\n".join([FCN, "--config.steps=9"]))
    assert parse(f"--flagfile={tmp_path / 'flags.txt'}")[0].steps == 9
    assert parse("--config.steps=3", FCN)[0].steps == 3  # in any order
    assert parse("a", "--pictures=2", "b")[1] == ["a", "b"]


def test_home_is_expanded(parse, monkeypatch, tmp_path, run):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(run, tmp_path / "run")
    config, _ = parse("--checkpoint=~/run", "--config.eval.flip=True", of_run=True)
    assert config.eval.flip and flags.FLAGS["checkpoint"].value == str(tmp_path / "run")


@pytest.mark.parametrize(
    "arguments, field, decisive",
    [
        (["--picturs=3"], "--picturs", "--pictures"),
        (["--pictures=many"], "--pictures", "'many'"),
        (["--pictures=-1"], "--pictures", "non-negative"),
        (["--size=3"], "", "give --size=HxW"),
        (["--config"], "--config", "Missing value"),
        (["--flagfile=nowhere.txt"], "", "nowhere.txt"),
        (["--config.steps=3"], "steps", "--config"),
        (["--config=configs/nothing.py:x"], "--config", "no such file"),
        (["--config=configs"], "--config", "no such file"),
        (["--config=configs/fcn.py"], "--config", "r50-d8_512x1024_40k_cityscapes"),
        (["--config=configs/quickstart.py:r18"], "--config", "takes no variant"),
        (["--config=configs/fcn.py:r18-d8_64x64_2k_foler"], "variant", "'folder'"),
        ([FCN, "--config.seed=abc"], "seed", "'abc'"),
        (
            [FCN, "--config.dataset.flip", "often"],
            "dataset.flip",
            "'often'; it must be a probability",
        ),
        ([FCN, "--config.optimizer.lr=0.1"], "optimizer.lr", "'learning_rate'"),
        ([FCN, "--config.model.norm.eps=0.1"], "model.norm.eps", "'epsilon'"),
        ([FCN, "--config.eval.scale=(1.0,)"], "eval.scale", "'scales'"),
        ([FCN, "--config.steps.more=1"], "steps.more", "2000"),
        ([FCN, "--config.dataset.crop_size[0]=1"], "dataset.crop_size[0]", "'crop_size'"),
        ([FCN, "--config.dataset.concat=['b']"], "dataset.concat", "'folder'"),
        ([FCN, "--config.losses={x"], "losses", "'dice'"),
        (
            [FCN, "--config.losses.extra.weight=1"],
            "losses.extra.weight",
            "{'extra': {'name': 'dice'",
        ),
        (
            [FCN, "--config.losses.decode.smooth=1"],
            "losses.decode.smooth",
            "losses.decode.name=dice",
        ),
        (
            [FCN, "--config.optimizer.multipliers.frozen.learning_rate=0"],
            "optimizer.multipliers.frozen.learning_rate",
            "'pattern'",
        ),
        (
            [FCN, "--config.losses.decode.name=dice", "--config.losses={}"],
            "--config.losses",
            "overwrite",
        ),
        ([FCN, "--noconfig.eval.flip=1"], "--noconfig.eval.flip", "argument"),
    ],
)
def test_mistakes_are_one_message(parse, arguments, field, decisive):
    with pytest.raises(ConfigError) as error:
        parse(*arguments)
    assert error.value.field == field and decisive in str(error.value)
    assert "Traceback" not in str(error.value)


def test_fields_left_to_a_default_can_be_overridden(parse):
    config, _ = parse(
        FCN,
        "--config.model.heads.decode.in_index=2",
        "--config.losses.decode.name=dice",
        "--config.losses.decode.smooth=0.5",
    )
    assert (
        config.model.heads.decode.in_index == 2
        and config.losses.decode.smooth == 0.5
        and "smooth" not in config.losses.aux_0
    )
    config, _ = parse(
        "--config=configs/deeplabv3.py:r18-d8_64x64_2k_folder",
        "--config.model.heads.decode.low_level_index=0",
    )
    assert config.model.heads.decode.low_level_index == 0


def test_needs_a_config(parse):
    with pytest.raises(ConfigError) as error:
        parse(needs_config=True)
    assert error.value.field == "--config"


# --- Config files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, decisive",
    [
        ("def get_config(:", "line 1"),
        ("x = 1", "get_config"),
        ("\n\ndef get_config():\n    return nme", "line 4: NameError"),
        ("import nowhere", "line 1: ModuleNotFoundError"),
        ("def get_config():\n    pass", "NoneType"),
        (
            "from jaxseg.config import experiment\ndef get_config():\n    return "
            "experiment('fcn', 'r18-d8_64x64_2k_folder')",
            "line 3: TypeError",
        ),
    ],
)
def test_faults_of_a_config_file_are_reported_with_their_line(parse, tmp_path, source, decisive):
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(ConfigError) as error:
        parse(f"--config={file}")
    assert error.value.file == str(file) and decisive in str(error.value)


def test_errors_of_builders_called_while_a_config_file_loads_stay_as_they_are(parse, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxseg.config import parse_variant\nVARIANT = parse_variant('fcn', 'r18')"
    )
    with pytest.raises(ConfigError) as error:
        parse(f"--config={file}")
    assert error.value.field == "variant" and "r18" in error.value.problem


def test_a_bug_behind_a_config_file_keeps_its_traceback(parse, tmp_path, monkeypatch):
    (tmp_path / "ours_with_a_bug.py").write_text("def helper():\n    return int('low')")
    (tmp_path / "mine.py").write_text(
        "from ours_with_a_bug import helper\ndef get_config():\n    return helper()"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="invalid literal") as error:
        parse(f"--config={tmp_path / 'mine.py'}")
    assert not isinstance(error.value, JaxsegError)


@pytest.mark.parametrize(
    "bug",
    [ValueError("shapes (2,) and (3,)"), KeyError("x"), TypeError("int"), RuntimeError("XLA")],
)
def test_bugs_keep_their_traceback(monkeypatch, bug):
    def main(_):
        raise bug

    _no_flags(monkeypatch)
    with pytest.raises(type(bug)) as error:
        cli.run_main(main, needs_config=False)
    assert error.value is bug


def test_mistakes_end_scripts_with_one_message(monkeypatch, capsys):
    def main(_):
        raise DataError("is 3 bytes long", file="a.png", hint="fetch it again")

    _no_flags(monkeypatch)
    with pytest.raises(SystemExit) as stop:
        cli.run_main(main, needs_config=False)
    assert (
        stop.value.code == 1
        and capsys.readouterr().err == "error: a.png: is 3 bytes long; fetch it again\n"
    )
    _no_flags(monkeypatch, "--config.eval.flip", "False")
    with pytest.raises(SystemExit):
        cli.run_main(main, needs_config=False)
    _no_flags(monkeypatch, "False")  # what is left of --flag False where a flag is True or False
    with pytest.raises(SystemExit):
        cli.run_main(main, needs_config=False)
    assert "unexpected argument 'False'" in capsys.readouterr().err
    monkeypatch.setenv("JAXSEG_TRACEBACK", "1")
    with pytest.raises(ConfigError):
        cli.run_main(main, needs_config=False)


def _no_flags(monkeypatch, *argv):
    flags.FLAGS.unparse_flags()
    monkeypatch.setattr(sys, "argv", ["script.py", *argv])
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "")
    monkeypatch.setattr(cli, "set_up_process", lambda: None)


# --- Overrides of a trained run -------------------------------------------------------------------


def test_overrides_are_of_the_run_where_no_config_is_given(parse, run):
    config, _ = parse(
        f"--workdir={run}",
        "--config.eval.flip=True",
        "--config.dataset.root=other",
        "--config.precision=bfloat16",
        of_run=True,
    )
    assert (
        config.eval.flip is True and config.dataset.root == "other" and config.eval.scales == (1.0,)
    )
    assert parse(f"--workdir={run}", of_run=True)[0] is None
    with pytest.raises(ConfigError) as error:
        parse("--config.eval.flip=True", of_run=True)
    assert error.value.field == "eval.flip" and "--checkpoint" in str(error.value)


@pytest.mark.parametrize("file", [[], [FCN]])
@pytest.mark.parametrize(
    "override, instead",
    [
        ("dataset.image_mean=(0,0,0)", "mean"),
        ("dataset.channels=4", "channels"),
        ("dataset.dtype=uint16", "dtype"),
        ("model.num_classes=7", "model"),
        ("model.align_corners=True", "model"),
        ("batch_size=4", "config.eval.batch_size"),
        ("dataset.crop_size=(32,32)", "config.eval.crop_size"),
        ("dataset.train_split=all", "config.dataset.val_split"),
        ("optimizer.learning_rate=1", "training"),
        ("seed=3", "training"),
        ("losses.decode.weight=3", "training"),
    ],
)
def test_overrides_that_a_trained_model_does_not_read_are_refused(
    parse, run, file, override, instead
):
    with pytest.raises(ConfigError) as error:
        parse(
            *file,
            f"--checkpoint={run}",
            f"--config.{override}",
            "--config.eval.flip=True",
            of_run=True,
        )
    assert (
        error.value.field == override.partition("=")[0]
        and instead in str(error.value)
        and "eval.flip" not in str(error.value)
    )


def test_overrides_that_say_what_the_run_says_are_harmless(parse, run):
    same = (
        "--config.steps=2000",
        "--config.dataset.crop_size=(64,64)",
        "--config.model.num_classes=3",
    )
    assert parse(f"--checkpoint={run}", *same, of_run=True)[0].steps == 2000
    honoured = (
        "--config.dataset.val_split=test",
        "--config.dataset.num_workers=2",
        "--config.eval={'scales':(0.5,)}",
    )
    assert parse(f"--checkpoint={run}", *honoured, of_run=True)[0].dataset.val_split == "test"


def test_a_given_precision_counts_and_that_of_a_config_file_does_not(parse, run, tmp_path):
    half = FCN.replace("r18-d8_", "r18-d8_fp16_")
    assert (
        parse(half, f"--checkpoint={run}", "--config.eval.flip=True", of_run=True)[0].precision
        == "float32"
    )
    assert (
        parse(FCN, f"--checkpoint={run}", "--config.precision=bfloat16", of_run=True)[0].precision
        == "bfloat16"
    )


def test_a_model_is_loaded_in_the_precision_that_is_asked_for(tmp_path):
    config = narrow(get_experiment("quickstart"))
    config.dataset.dtype = "uint8"
    experiment = from_dict(Experiment, check_alone(config))
    variables = init_variables(create_model(experiment.model), seed=0)
    dataset = {"classes": ["a"], "palette": [[0, 0, 0]]}
    checkpoint.save_variables(tmp_path, experiment, variables, dataset)
    other = dataclasses.replace(workdir.read_experiment(tmp_path), precision="bfloat16")
    for given, dtype in ((None, "float32"), (other, "bfloat16")):
        model, _, used = inference.load_model(tmp_path, given)
        assert used.precision == dtype and np.dtype(model.layer.dtype).name == dtype
