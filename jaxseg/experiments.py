"""From a config to an experiment: checked, its data set read, its facts measured."""

from jaxseg import losses
from jaxseg.config.resolve import Config, resolve
from jaxseg.config.schema import DatasetConfig, Experiment, from_dict
from jaxseg.data.catalog import load_spec
from jaxseg.data.measure import measure
from jaxseg.data.spec import DatasetSpec
from jaxseg.validation import check_alone, without_auto


def open_experiment(config: Config, *, measured: bool = True) -> tuple[Experiment, DatasetSpec]:
    """Load the experiment of a config, and its data set's spec, which later steps take.

    Args:
        config: It is not changed.
        measured: Measure what the config leaves to the data: dtype, mean and std, class weights.
            With several processes each calls this, process 0 measures.

    Raises:
        ConfigError: A field is unknown, missing or out of range, or fields contradict each other or
            the data set.
        DataError: The data set cannot be read.
    """
    config = check_alone(config)
    spec = load_spec(from_dict(DatasetConfig, config.dataset))
    experiment = resolve(config, spec)
    losses.check_losses(without_auto(experiment.losses), experiment.model.num_classes)
    return (measure(experiment, spec) if measured else experiment), spec


def load_experiment(config: Config, *, measured: bool = True) -> Experiment:
    """Return the experiment of a config: `open_experiment` without the data set's spec.

    Args:
        config: The config (`jaxseg.config.get_experiment`), after overrides; it is
            not changed.
        measured: Measure what the config leaves to the data: dtype, mean and std, class weights.

    Returns:
        The experiment.

    Raises:
        ConfigError: A field is unknown, missing or out of range, or fields contradict each other or
            the data set.
        DataError: The data set cannot be read.
    """
    return open_experiment(config, measured=measured)[0]
