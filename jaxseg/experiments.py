"""From a config to an experiment: check the config, load its data set, measure statistics."""

from jaxseg import losses
from jaxseg.config.resolve import Config, resolve
from jaxseg.config.schema import DatasetConfig, Experiment, from_dict
from jaxseg.data.catalog import load_spec
from jaxseg.data.measure import measure
from jaxseg.data.spec import DatasetSpec
from jaxseg.validation import check_alone, without_auto


def open_experiment(config: Config, *, measured: bool = True) -> tuple[Experiment, DatasetSpec]:
    """Load the experiment of a config together with the spec of its data set.

    Args:
        config: The config, after overrides; it is not changed.
        measured: Whether to measure the dtype, mean and std, and class weights that the config
            leaves open. With several processes all of them call this function, and process 0
            measures.

    Returns:
        The experiment and the spec.

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
    """Load the experiment of a config.

    Args:
        config: The config, for instance from `jaxseg.config.get_experiment`; it is not changed.
        measured: Whether to measure the dtype, mean and std, and class weights that the config
            leaves open.

    Returns:
        The experiment.

    Raises:
        ConfigError: A field is unknown, missing or out of range, or fields contradict each other or
            the data set.
        DataError: The data set cannot be read.
    """
    return open_experiment(config, measured=measured)[0]
