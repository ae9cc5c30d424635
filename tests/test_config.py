"""Configuration: typed, strict, with errors that say what to do."""

import dataclasses
from dataclasses import dataclass, field

import pytest

from avssl import config, help_text
from avssl.config import ConfigError, RunConfig, parse
from avssl.data.loader_config import LoaderConfig
from avssl.eval import tasks
from avssl.files.progress import Stages
from avssl.losses.avid_cma import AVIDCMA, AVIDCMAConfig
from avssl.losses.configs import CONFIGURATIONS, CLIPFrozenTextConfig
from avssl.models import create_encoder
from avssl.optim.config import OptimConfig
from avssl.options.counts import LEAST, POSITIVE, least_of
from avssl.transforms.config import AudioViewConfig, VideoViewConfig, ViewsConfig
from recipes import pretrain
from tests.conftest import ROOT, run_python

AVID = str(ROOT / "recipes/configs/avid.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/configs").glob("*avid*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_fits_the_schema_and_opens_with_its_command(path):
    cfg = parse(RunConfig, [str(path)])
    assert path.stem.removesuffix("_small").endswith(cfg.loss.name)
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert f"avssl pretrain {path.stem} " in first


def test_the_loss_section_takes_the_type_of_its_loss():
    cfg = parse(
        RunConfig, [str(ROOT / "recipes/configs/avid_cma.yaml"), "loss.agreement=union", "loss.num_positives=8"]
    )
    assert isinstance(cfg.loss, AVIDCMAConfig)
    assert (cfg.loss.agreement, cfg.loss.num_positives, cfg.loss.temperature) == ("union", 8, 0.07)


def test_later_changes_win():
    assert parse(RunConfig, [AVID, "optim.lr=1", "optim.lr=2"]).optim.lr == 2.0


def test_a_saved_configuration_reads_back_equal(tmp_path):
    cfg = parse(RunConfig, [AVID, "encoders.video.name=avid_video", "encoders.video.depth=10", "run=x"])
    config.save(cfg, tmp_path / "config.yaml")
    assert config.load_run(tmp_path) == cfg


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.shard=x", r"'shard' not in.*Did you mean: 'shards'.*data\.shard"),
        ("loss.temprature=1", "Did you mean: 'temperature'"),
        ("loss.name=avod", r"no loss is called 'avod'. Did you mean 'avid'\?"),
        ("loss.variant=both", r"expected one of \['cross', 'self', 'joint'\].*loss\.variant"),
        ("optim.lr=fast", r"could not be converted to Float.*optim\.lr"),
        ("views.video.size_px=0", "size_px must be at least 1"),
        ("log_every_steps=0", "^log_every_steps is 0; it must be at least 1. .* leave the key out for the 10 .*never"),
        ("checkpoint_every_steps=0", "^checkpoint_every_steps is 0; it must be at least 1"),
        ("gradient_accumulation_steps=0", "^gradient_accumulation_steps is 0; it must be at least 1"),
        ("data.num_workers=-1", r"^data\.num_workers is -1; it must be at least 0"),
        ("steps=-1", "^steps is -1; it must be at least 0"),
        ("probe.every_steps=0", r"^probe\.every_steps is 0; it must be at least 1"),
        ("optim.clip_norm=-1", r"^optim\.clip_norm is -1.0; it must be at least 0. .* for the 0.0 that it has"),
        ("optim.lr=nan", r"^optim\.lr is nan; it must be at least 0"),
        ("loss.temperature=-0.07", r"^loss\.temperature is -0.07; it must be above 0"),
        ("views.video.fps=0", r"^views\.video\.fps is 0.0; it must be above 0"),
        ("views.statistics_samples=0", r"^views\.statistics_samples is 0; it must be at least 1"),
        ("auto=false", r"^auto is \[False\]; allowed are data\.global_batch_size, data\.num_workers"),
        ("--optim.lr", "changes are written key=value, without dashes"),
        ("nothing.yaml", r"nothing\.yaml: no such file"),
    ],
)
def test_a_wrong_configuration_is_refused_with_what_to_do(change, message):
    with pytest.raises(ConfigError, match=message):
        parse(RunConfig, [AVID, change])


def test_a_period_of_a_loss_is_at_least_1_in_a_recipe_and_in_python():
    for loss, key in (("avid_cma", "search_every_epochs"), ("deepcluster", "cluster_every_epochs")):
        with pytest.raises(ConfigError, match=rf"^loss\.{key} is 0; it must be at least 1"):
            parse(RunConfig, [f"loss.name={loss}", f"loss.{key}=0"])
    encoders = {
        "video": create_encoder("avid_video", depth=10, width=4),
        "audio": create_encoder("avid_audio", width=4),
    }
    with pytest.raises(ValueError, match=r"^loss\.search_every_epochs is -1; it must be at least 1"):
        AVIDCMA(AVIDCMAConfig(num_positives=2, search_every_epochs=-1), encoders, 500)


def test_the_counts_of_a_run_that_is_made_in_python_are_checked_before_it_starts(tmp_path):
    for section, key in ((None, "log_every_steps"), ("data", "prefetch_batches"), ("probe", "num_neighbors")):
        cfg = RunConfig(run=str(tmp_path / "run"))
        setattr(getattr(cfg, section) if section else cfg, key, 0)
        with pytest.raises(ValueError, match=rf"^{section + '.' if section else ''}{key} is 0; it must be at least 1"):
            pretrain.pretrain(cfg, Stages(shown=False))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", tasks.names())
def test_every_count_of_a_task_is_checked_with_its_configuration(task):
    schema = tasks.get(task).Config
    for key, least in least_of(schema).items():
        with pytest.raises(ConfigError, match=f"^{key} is {least - 1}; it must be at least {least}"):
            parse(schema, [f"{key}={least - 1}"])
        assert getattr(parse(schema, [f"{key}={least}"]), key) == least


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_every_count_of_a_loss_is_checked_with_its_configuration(name):
    for key, least in least_of(CONFIGURATIONS[name]).items():
        with pytest.raises(ConfigError, match=rf"^loss\.{key} is {least - 1}; it must be at least {least}"):
            parse(RunConfig, [f"loss.name={name}", f"loss.{key}={least - 1}"])


def test_the_counts_are_keys_of_sections_that_there_are():
    kinds = [RunConfig, LoaderConfig, config.ProbeConfig, OptimConfig, *CONFIGURATIONS.values()]
    kinds += [ViewsConfig, VideoViewConfig, AudioViewConfig, *(tasks.get(task).Config for task in tasks.names())]
    known = {kind.__name__: kind for one in kinds for kind in one.__mro__}
    for name, keys in [*LEAST.items(), *POSITIVE.items()]:
        assert set(keys) <= {field.name for field in dataclasses.fields(known[name])}, name


def test_a_temperature_of_a_loss_that_has_none_of_its_own_checks_is_above_0():
    kinds = [
        kind for kind in CONFIGURATIONS.values() if hasattr(kind, "temperature") and kind is not CLIPFrozenTextConfig
    ]
    assert len(kinds) == 10
    for kind in kinds:
        with pytest.raises(ConfigError, match=r"^loss\.temperature is 0.0; it must be above 0"):
            parse(RunConfig, [f"loss.name={kind.name}", "loss.temperature=0"])


def test_the_help_of_pretrain_says_how_it_is_called_above_the_keys():
    text = run_python("recipes/pretrain.py", "--help").stdout
    assert text.index("usage: avssl pretrain") < text.index("data.shards=VIDEOS") < text.index("\nrun: str = ")


def test_the_recipe_leaves_with_status_2_and_one_line_for_a_wrong_key():
    process = run_python("recipes/pretrain.py", AVID, "optim.learning_rate=1", check=False)
    assert process.returncode == 2
    assert process.stderr.strip().splitlines()[-1].startswith("configuration error: Key 'learning_rate' not in")
    assert "Traceback" not in process.stderr


def test_a_key_of_a_recipe_that_another_loss_has_not_says_what_to_do(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("loss: {name: avid, num_negatives: 64}")
    with pytest.raises(
        config.ConfigError, match=r"'num_negatives'.*and the loss simclr has no such key: leave the recipe"
    ):
        config.parse(RunConfig, [str(recipe), "loss.name=simclr"])
    with pytest.raises(config.ConfigError, match=r"'negatives' not in [^;]*$"):
        config.parse(RunConfig, [str(recipe), "loss.name=avid", "loss.negatives=2"])


def test_a_command_that_names_another_encoder_drops_the_options_that_the_yaml_gave_the_first_one(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("encoders: {image: {name: vit_small, num_heads: 12}}")

    def encoder(*changes):
        return config.parse(RunConfig, [str(recipe), *changes]).encoders["image"]

    assert encoder("encoders.image={name: resnet10, width: 4}") == {"name": "resnet10", "width": 4}
    assert encoder("encoders.image.depth=2") == {"name": "vit_small", "num_heads": 12, "depth": 2}
    assert encoder("encoders.image.name=vit_small") == {"name": "vit_small", "num_heads": 12}


def test_help_prints_every_key_with_its_comment():
    text = help_text.describe(RunConfig)
    assert "global_batch_size: int = 256  # samples in a micro-batch, over all processes" in text
    assert "\n  video:\n    num_frames" in text


def test_help_shows_the_defaults_of_the_section_and_not_of_its_type():
    """An optimizer of a task starts from other values than one of pretraining."""

    @dataclass
    class Task:
        optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=0.125))

    assert "\n  lr: float = 0.125\n" in help_text.describe(Task)
    assert OptimConfig().lr != 0.125


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        config.load_run(tmp_path)
